#!/bin/sh
# One command, as the wheels get it on stdin; what they answer is the reply.
read -r command
case $command in
stop | ahead) echo "wheels: $command" ;;
*)
    echo "the wheels know ahead and stop, not '$command'" >&2
    exit 1
    ;;
esac
