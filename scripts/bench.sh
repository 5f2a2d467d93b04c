#!/usr/bin/env bash
# The figures of docs/DECISIONS.md: links beside a bare libp2p stream, on this machine, in one run. Loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --quiet --locked --release --example speed
