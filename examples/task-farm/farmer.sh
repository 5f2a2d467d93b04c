#!/bin/sh
# Hands out ten tasks, as many at a time as somebody takes, and fails if one does.
tasks=
for number in 1 2 3 4 5 6 7 8 9 10; do
    meshd call square "$number" --idempotent --timeout 30s &
    tasks="$tasks $!"
done
for task in $tasks; do
    wait "$task" || exit 1
done
echo "all tasks are done"
