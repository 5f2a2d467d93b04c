#!/usr/bin/env bash
# meshd beside other ways for programs to exchange messages: docs/SPEED.md and docs/speed.svg, from one run on this machine.
# Builds scripts/bench_peers and gets what it compares into its target directory; sends on the loopback interface only.
#
#   scripts/bench_peers.sh                 all of it, three rounds: about 12 minutes on two cores, after the build
#   scripts/bench_peers.sh --quick         one short round, to see that it works; docs/ stays as it is
#   scripts/bench_peers.sh --only WORD,..  some systems (meshd zenoh nats zmq execnet rosy libp2p unix tcp) or works (flood64
#                                          flood1k flood64k flood1m trip calls fan start); docs/ stays as it is
#   scripts/bench_peers.sh --rounds N
#
# Raw figures of all rounds: raw.jsonl in the state folder, which it names. What cannot be had is skipped, and said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=$PWD/scripts/bench_peers

fail() { printf 'bench_peers.sh: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }
say() { printf '== %s\n' "$*" >&2; }

docs=docs
args=()
while [ $# -gt 0 ]; do
    case $1 in
    --quick) docs='' args+=("$1") ;;
    --only) docs='' args+=("$1" "${2:?--only WORD,..}") && shift ;;
    --rounds) args+=("$1" "${2:?--rounds N}") && shift ;;
    *) fail "unknown argument '$1'" "--quick, --only WORD,.., --rounds N" ;;
    esac
    shift
done

command -v cargo >/dev/null || fail "there is no cargo" "install Rust 1.88 or later"
target=${CARGO_TARGET_DIR:-$here/target}
mkdir -p "$target/state"
target=$(cd "$target" && pwd)

# libzmq is built from source, which takes a C++ compiler.
if ! command -v c++ >/dev/null; then
    say "a C++ compiler"
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y g++ >&2; } ||
        fail "there is no C++ compiler, which libzmq needs" "apt-get install g++"
fi

say "build"
CARGO_TARGET_DIR=$target cargo build --quiet --locked --release --manifest-path "$here/Cargo.toml" ||
    fail "it does not build" "if its lock file is older than Cargo.toml: cargo update --workspace --manifest-path scripts/bench_peers/Cargo.toml"

say "nats-server, execnet, rosy"
venv=$target/venv
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv" >&2 || say "no Python with venv: execnet and rosy are skipped"
fi
if [ -x "$venv/bin/python" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2 ||
        say "not all of requirements.txt could be had"
    args+=(--python "$venv/bin/python" --helpers "$here")
fi
nats=
for candidate in "$venv/bin/nats-server" "$(command -v nats-server || true)"; do
    if [ -z "$nats" ] && [ -x "$candidate" ]; then nats=$candidate; fi
done
if [ -z "$nats" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq >&2 && apt-get install -y -qq nats-server >&2 || true
    nats=$(command -v nats-server || true)
fi
[ -z "$nats" ] || args+=(--nats-server "$nats")
[ -z "$docs" ] || args+=(--docs "$docs")

say "measure (state: $target/state)"
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/bench-peers-XXXXXX")
export TMPDIR
run=
tidy() {
    trap '' INT TERM HUP
    if [ -n "$run" ]; then
        { kill "$run" && wait "$run"; } 2>/dev/null || true
        sleep 0.5 # for its halves to see that
    fi
    "$target/release/bench_peers" clean || true
    rm -rf "$TMPDIR"
}
trap tidy EXIT
trap 'exit 130' INT TERM HUP
# What it starts ends when it does: each process watches its standard input.
"$target/release/bench_peers" run --state "$target/state" ${args[@]+"${args[@]}"} &
run=$!
done=0
wait "$run" || done=$?
run=
exit "$done"
