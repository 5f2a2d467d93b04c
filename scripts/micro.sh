#!/usr/bin/env bash
# What the core costs as a mesh grows, and whether a sender is slower in a crowd: tables for docs/DECISIONS.md. Nothing else should
# run meanwhile.
#
#   scripts/micro.sh           all of it
#   scripts/micro.sh route/    what has this in its name, without the crowd
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo '| medians at each size | small | middle | large | growth |'
echo '|---|---|---|---|---|'
cargo bench --quiet --locked --bench core --features internals -- --noplot --output-format bencher "$@" | awk '
/ns\/iter/ {
    name = $0; sub(/^test /, "", name); sub(/ \.\.\. bench:.*/, "", name)
    time = $0; sub(/.*bench: */, "", time); sub(/ ns\/iter.*/, "", time); gsub(/,/, "", time); time += 0
    size = name; sub(/.*\//, "", size); sub(/\/[^\/]*$/, "", name); sub(/\//, ": ", name)
    if (!(name in sizes)) order[++rows] = name
    sizes[name] = sizes[name] (name in sizes && sizes[name] != "" ? ", " : "") size
    cells[name] = cells[name] " " shown(time) " |"
    if (!(name in first)) first[name] = time
    last[name] = time
}
function shown(time) { return time < 10000 ? time " ns" : time < 10000000 ? int(time / 1000 + 0.5) " us" : int(time / 1000000 + 0.5) " ms" }
END { for (row = 1; row <= rows; row++) { name = order[row]; printf "| %s: %s |%s %.1f |\n", name, sizes[name], cells[name], last[name] / (first[name] > 0 ? first[name] : 1) } }'

if [ $# = 0 ]; then
    echo
    cargo bench --quiet --locked --bench crowd --features internals
fi
