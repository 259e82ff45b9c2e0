#!/usr/bin/env bash
# Goes through the image's steps without an engine, in a clean folder and an empty environment: build, a run, and a
# served chat answer. Minutes; needs what build.sh needs, and curl.
#
#   container/try.sh [FOLDER]      keeps FOLDER; without one, a temporary folder is removed at the end
#
# PIP_… variables are passed on: they say where packages come from. CPU_INDEX as in build.sh.
set -euo pipefail

source=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    place=$(cd "$1" && pwd)
    server=
    trap 'kill $server 2>/dev/null || true' EXIT
else
    place=$(mktemp -d)
    server=
    trap 'kill $server 2>/dev/null || true; rm -rf "$place"' EXIT
fi
port=$((20000 + RANDOM % 20000))
mapfile -t pip < <(env | grep -E '^PIP_' || true)
clean=(env -i "${pip[@]}" PATH="$place/opt/bin:/usr/local/bin:/usr/bin:/bin" HOME="$place/home"
    FTBENCH_CACHE="$place/opt/cache" FTBENCH_RUNS="$place/runs" HF_HUB_OFFLINE=1)

mkdir -p "$place/home" "$place/source"
# What .dockerignore lets through.
(cd "$source" && tar --exclude=tests --exclude=__pycache__ --exclude=.venv -cf - \
    LICENSE README.md container pdm.lock plugins pyproject.toml src) | tar -xf - -C "$place/source"

if [ ! -x "$place/opt/bin/ftbench" ]; then
    echo "== build"
    "${clean[@]}" CPU_INDEX="${CPU_INDEX-}" "$place/source/container/build.sh" "$place/source" "$place/opt"
fi
cd "$place/home"
echo "== a run"
"${clean[@]}" ftbench run --algo base --out "$place/runs" --set attack_prompts=0 --set evaluation_prompts=8 --set max_new_tokens=16

echo "== no key, no server"
if "${clean[@]}" sh "$place/source/container/entrypoint.sh"; then
    echo "it started without a key"
    exit 1
fi

echo "== a chat answer"
"${clean[@]}" FTBENCH_API_KEY=of-this-trial FTBENCH_PORT=$port sh "$place/source/container/entrypoint.sh" &
server=$!
for _ in $(seq 300); do
    kill -0 "$server" || { echo "the server ended"; exit 1; }
    curl --silent --fail "http://127.0.0.1:$port/healthz" >/dev/null && break
    sleep 1
done
model=$(curl --silent --fail --header "Authorization: Bearer of-this-trial" "http://127.0.0.1:$port/v1/models" |
    "$place/opt/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])')
asked='{"model": "'$model'", "messages": [{"role": "user", "content": "What is tea?"}], "temperature": 0, "max_tokens": 16}'
refused=$(curl --silent --output /dev/null --write-out '%{http_code}' --json "$asked" \
    "http://127.0.0.1:$port/v1/chat/completions")
[ "$refused" = 401 ] || { echo "without the key: $refused and not 401"; exit 1; }
curl --silent --fail --header "Authorization: Bearer of-this-trial" --json "$asked" \
    "http://127.0.0.1:$port/v1/chat/completions" |
    "$place/opt/bin/python" -c 'import json, sys; said = json.load(sys.stdin)["choices"][0]["message"]["content"]
assert said.strip(); print("answer:", said)'
echo "== told to end, it ends"
kill "$server"
wait "$server" || { echo "it ended with $?"; exit 1; }
server=
