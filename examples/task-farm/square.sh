#!/bin/sh
# One task: a number on stdin, its square on stdout. The environment is the worker's own.
read -r number
sleep 0.1 # work
echo "worker $MESHD_INSTANCE: $number * $number = $((number * number))"
