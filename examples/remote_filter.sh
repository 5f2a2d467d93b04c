#!/bin/sh
# A file is worked on by a program at another node: data goes in by its stdin, what becomes of it comes back by its stdout. The
# program is sent along; the other node needs a python3 and, in its config.toml:
#
#     [exec]
#     allow = ["python3"]
#
# Then: examples/remote_filter.sh NODE [FILE]
set -eu
node=${1:?usage: remote_filter.sh NODE [FILE]}
filter=$(mktemp)
trap 'rm -f "$filter"' EXIT

cat > "$filter" <<'PYTHON'
import sys, zlib

# What would be too much for a small machine: here, counting words. It reads as it comes, so that size does not matter.
words, seen = 0, 0
for line in sys.stdin.buffer:
    words += len(line.split())
    seen = zlib.crc32(line, seen)
    sys.stdout.buffer.write(line.upper())
print(f"{words} words, checksum {seen:08x}", file=sys.stderr)
PYTHON

if [ $# -gt 1 ]; then exec < "$2"; fi
meshd exec --on "$node" --script "$filter" --with python3
