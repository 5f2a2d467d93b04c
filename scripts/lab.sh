#!/usr/bin/env bash
# Real daemons on hosts that are network namespaces, through cut cables, strangers and new keys: what must hold, and how
# long it takes. Usage: scripts/lab.sh [--only WORD].. [--bin PATH] [--quick] [--long] [--seed N] [--list]
#
# Everything runs in namespaces of its own, processes and network included: nothing of this machine's network is
# touched, and whatever ends the lab ends all that it started.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "lab: skipped: $1"
    exit 0
}

install() {
    command -v apt-get >/dev/null || skip "needs $1, and there is no apt-get to install it"
    echo "lab: installing $1" >&2
    { apt-get update && apt-get install --yes --no-install-recommends "$1"; } >&2 || skip "needs $1"
}

[ "$(uname -s)" = Linux ] || skip "needs Linux"
[ "$(id -u)" = 0 ] || skip "needs root"
command -v ip >/dev/null || install iproute2
command -v python3 >/dev/null || install python3
# To compare with, no more: the lab says what it leaves out.
command -v rsync >/dev/null || ! command -v apt-get >/dev/null || apt-get install --yes --no-install-recommends rsync >&2 || true

bin=${MESHD_BIN:-}
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --bin) bin=${2:?--bin takes a path} && shift 2 ;;
        --bin=*) bin=${1#--bin=} && shift ;;
        *) arguments+=("$1") && shift ;;
    esac
done
if [ -z "$bin" ]; then
    bin=${CARGO_TARGET_DIR:-target}/release/meshd
    [ -x "$bin" ] || cargo build --locked --release --bin meshd
fi
[ -x "$bin" ] || { echo "lab: no program at $bin" >&2 && exit 2; }

# MCAP's own reader, for checks of recordings, which say so where it cannot be had. Hosts of the lab have no way out to fetch it.
reader=$(realpath -m "${CARGO_TARGET_DIR:-target}/lab-python")
if [ ! -x "$reader/bin/python" ]; then
    { python3 -m venv "$reader" && timeout 60 "$reader/bin/pip" install --quiet mcap; } >/dev/null 2>&1 || rm -rf "$reader"
fi
export MESHD_LAB_PYTHON=$reader/bin/python

exec python3 -B scripts/lab --bin "$(realpath "$bin")" "${arguments[@]}"
