#!/bin/sh
# Keeps directories on many nodes like one here, again and again as it changes.
#
#   examples/hot_sync.sh site web:www mirror:backup/site
#
# A name is all nodes that have it: `web:www` is www on each. They share it with, in config.toml:
#   [[share]]
#   name = "www"
#   path = "/srv/www"
#   mode = "both"
set -eu
dir=$1
shift
said=$(mktemp)
trap 'rm -f "$said"' EXIT
trap exit INT TERM
while :; do
    # Where nothing changed, this is a look at the files. A node that was away gets everything when it is back.
    meshd sync "$dir" "$@" --delete --verbose 2>"$said" || cat "$said" >&2
    sleep "${EVERY:-1}"
done
