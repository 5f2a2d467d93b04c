#!/usr/bin/env bash
# Everything that has to hold before a change goes in. Needs Rust (with rustfmt and clippy) and a C compiler.
#
#   scripts/test.sh            all of it
#   scripts/test.sh --no-lab   without the lab, which builds hosts out of network namespaces
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'test.sh: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }
run() { say "$*"; "$@"; }

lab=yes
case "${1-}" in
'') ;;
--no-lab) lab=no ;;
*) fail "unknown argument '$1'" "the only one is --no-lab" ;;
esac

command -v cargo >/dev/null || fail "there is no cargo" "install Rust 1.88 or later"
cargo fmt --version >/dev/null 2>&1 || fail "there is no rustfmt" "rustup component add rustfmt"
cargo clippy --version >/dev/null 2>&1 || fail "there is no clippy" "rustup component add clippy"
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
    fail "there is no C compiler, which linking and one dependency (ring) need" "apt-get install gcc libc6-dev, or xcode-select --install"

say "bash -n scripts/*.sh"
for script in scripts/*.sh; do
    bash -n "$script"
done
run cargo fmt --check
run cargo fmt --check --manifest-path scripts/bench_peers/Cargo.toml
run cargo clippy --locked --all-targets -- -D warnings
run cargo clippy --locked --benches --features internals -- -D warnings
run cargo test --locked
say "cargo doc (private items too, warnings are errors)"
RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --document-private-items
run cargo build --locked --release

say "lab: hosts as network namespaces"
bin="${CARGO_TARGET_DIR:-target}/release/meshd"
if [ "$lab" = no ]; then
    echo "lab: skipped: --no-lab"
elif [ "$(id -u)" != 0 ] && [ "${CI-}" = true ] && sudo -n true 2>/dev/null; then
    sudo -n bash scripts/lab.sh --bin "$bin" # a machine of CI's own
else
    bash scripts/lab.sh --bin "$bin" # says so if it cannot run here
fi

say "all passed"
