#!/bin/sh
# When a disk of a node is filled over 20 %, fetches files from a share that is on it, and then deletes them there.
#
#   examples/backup.sh camera recordings '\.mp4$' ~/recordings
#
# On the node, the share has mode "both", and a service tells how full the disk is, in percent:
#   meshd serve usage --name camera --exec "df --output=pcent /srv/recordings | tr -dc 0-9"
set -eu
node=$1 share=$2 regex=$3 to=$4
usage=$(meshd call usage --to "$node")
if [ "$usage" -le "${LIMIT:-20}" ]; then
    echo "$node is at $usage %: nothing to do"
    exit
fi
nothing=$(mktemp -d)
trap 'rmdir "$nothing"' EXIT
# What would have to go for the share to be empty. From here on by these names alone: others may come meanwhile.
names=$(meshd sync "$nothing" "$node:$share" --delete --dry-run --regex "$regex" | sed -n 's/^delete //p')
[ -n "$names" ] || { echo "$node is at $usage %, and has no such files"; exit; }
these="^($(echo "$names" | sed 's/[][\.*^$+?(){}|]/\\&/g' | paste -sd '|' -))\$"
meshd sync "$node:$share" "$to" --regex "$these"
# Not reached unless all of them are here.
meshd sync "$nothing" "$node:$share" --delete --regex "$these"
echo "$node was at $usage %: fetched and deleted $(echo "$names" | wc -l | tr -d ' ') files"
