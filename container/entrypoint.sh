#!/bin/sh
# Serves runs on every address of the container. Without arguments: all runs in $FTBENCH_RUNS; else those given.
set -eu

if [ -z "${FTBENCH_API_KEY:-}" ]; then
    echo "ftbench: a server that others reach needs a key; set FTBENCH_API_KEY" >&2
    exit 2
fi
if [ $# -eq 0 ]; then
    for result in "${FTBENCH_RUNS:-/runs}"/*/result.json; do
        if [ -e "$result" ]; then
            set -- "$@" "${result%/result.json}"
        fi
    done
fi
if [ $# -eq 0 ]; then
    echo "ftbench: no runs in ${FTBENCH_RUNS:-/runs}; mount a folder of runs there, or bake one in" >&2
    exit 2
fi
# Base models that the image brings are linked into a cache that can be written, for those that it does not bring.
if [ -d "${FTBENCH_BAKED:-}" ]; then
    mkdir -p "$FTBENCH_CACHE"
    cp -Rsf "$FTBENCH_BAKED/." "$FTBENCH_CACHE"
fi
exec ftbench serve --host 0.0.0.0 --port "${FTBENCH_PORT:-8000}" "$@"
