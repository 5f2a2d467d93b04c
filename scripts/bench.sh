#!/usr/bin/env bash
# What meshd does on this machine: `meshd bench`, built as it is installed. Arguments go to it; `--help` names them. Loopback only.
# Beside other systems: scripts/bench_peers.sh. The core alone, by size: scripts/micro.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --locked --release
exec "${CARGO_TARGET_DIR:-target}/release/meshd" bench "$@"
