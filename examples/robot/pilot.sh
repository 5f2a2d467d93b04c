#!/bin/sh
# Drives ahead until the wall is near.
meshd call drive ahead || exit 1
meshd listen sensors/distance --raw --count 1 >/dev/null || exit 1 # the sensor works
while :; do
    distance=$(meshd listen sensors/distance --raw --count 1 --timeout 10s) || exit 1
    [ "${distance% cm}" -gt 30 ] || break
done
echo "the wall is at $distance"
meshd call drive stop
