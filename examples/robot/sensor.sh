#!/bin/sh
# Measures the distance to the wall, ten times a second.
distance=100
while :; do
    distance=$((distance - 10))
    [ "$distance" -gt 0 ] || distance=100
    echo "$distance cm"
    sleep 0.1
done | meshd send sensors/distance --lines --all --no-wait
