#!/usr/bin/env bash
# A mesh of some daemons on this machine, for trying things out. Ends, and cleans up, at Ctrl-C.
#
#   scripts/mesh.sh [N]        N daemons, 3 if not said; MESHD_BIN names another program than target/release/meshd
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
count="${1:-3}"
case "$count" in
'' | *[!0-9]* | 0) echo "usage: scripts/mesh.sh [N]" >&2; exit 2 ;;
esac
if [ -z "${MESHD_BIN-}" ]; then
    (cd "$root" && cargo build --quiet --locked --release --bin meshd)
    MESHD_BIN="${CARGO_TARGET_DIR:-$root/target}/release/meshd"
fi

place="$(mktemp -d "${TMPDIR:-/tmp}/mesh.XXXXXX")"
daemons=()
clean_up() {
    trap - EXIT INT TERM
    for pid in ${daemons[@]+"${daemons[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$place"
}
trap clean_up EXIT
trap 'exit 0' INT TERM

unset MESHD_HOME MESHD_MESH
export MESHD_RUNTIME_DIR="$place/run" # apart from all other daemons of this machine
"$MESHD_BIN" --home "$place/1" key new >/dev/null 2>&1
for number in $(seq "$count"); do
    home="$place/$number"
    mkdir -p -m 700 "$home" "$home/default"
    [ -e "$home/default/key" ] || install -m 600 "$place/1/default/key" "$home/default/key"
    "$MESHD_BIN" --home "$home" run --name "peer-$number" --no-mdns --listen 127.0.0.1:0 >"$home/ready" 2>"$home/log" &
    daemons+=($!)
done
for number in $(seq "$count"); do
    until grep -q '^ready' "$place/$number/ready" 2>/dev/null; do
        kill -0 "${daemons[$((number - 1))]}" 2>/dev/null || { cat "$place/$number/log" >&2; exit 1; }
        sleep 0.05
    done
done

echo "$count daemons run. In other terminals:"
echo
echo "  $MESHD_BIN --home $place/1 peers"
echo "  $MESHD_BIN --home $place/1 listen 'greetings/*'"
echo "  $MESHD_BIN --home $place/$count send greetings/all hello"
echo
echo "Logs: $place/*/log. Ctrl-C ends all and removes $place."
wait
