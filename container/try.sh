#!/usr/bin/env bash
# Goes through the image's steps without an engine, in a clean folder and an empty environment: build, a trained run, and
# a chat answer from it, served as the image serves it: by a user who may write nothing but /tmp. Minutes; needs what
# build.sh needs, and curl.
#
#   container/try.sh [FOLDER]      keeps FOLDER; without one, a temporary folder is removed at the end
#
# The other user wants root, and setpriv; for anyone else the server is the same user, and the files' rights are looked at.
# PIP_… variables are passed on: they say where packages come from. CPU_INDEX as in build.sh.
set -euo pipefail
umask 022

source=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    place=$(cd "$1" && pwd)
    server=
    trap 'kill $server 2>/dev/null || true' EXIT
else
    place=$(mktemp -d)
    chmod 755 "$place" # others are to read what is in it
    server=
    trap 'kill $server 2>/dev/null || true; rm -rf "$place"' EXIT
fi
port=$((20000 + RANDOM % 20000))
mapfile -t pip < <(env | grep -E '^PIP_' || true)
clean=(env -i "${pip[@]}" PATH="$place/opt/bin:/usr/local/bin:/usr/bin:/bin" HOME="$place/home"
    FTBENCH_CACHE="$place/opt/cache" FTBENCH_RUNS="$place/runs" HF_HUB_OFFLINE=1)
# As the Dockerfile has it, with $place/tmp for /tmp.
served=("${clean[@]}" FTBENCH_BAKED="$place/opt/cache" FTBENCH_CACHE="$place/tmp/ftbench"
    HF_HOME="$place/tmp/ftbench/huggingface" TMPDIR="$place/tmp" PYTHONDONTWRITEBYTECODE=1)
other=()
[ "$(id -u)" != 0 ] || other=(setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs)
"${other[@]}" test -x "$place" || { echo "another user cannot enter $place; choose another FOLDER"; exit 1; }

mkdir -p "$place/home" "$place/source" "$place/tmp"
chmod 1777 "$place/tmp"
# What .dockerignore lets through.
(cd "$source" && tar --exclude=tests --exclude=__pycache__ --exclude=.venv -cf - \
    LICENSE README.md container pdm.lock plugins pyproject.toml src) | tar -xf - -C "$place/source"

if [ ! -x "$place/opt/bin/ftbench" ]; then
    echo "== build"
    "${clean[@]}" CPU_INDEX="${CPU_INDEX-}" "$place/source/container/build.sh" "$place/source" "$place/opt"
fi
if ! "${other[@]}" "$place/opt/bin/python" -c ''; then
    echo "another user cannot run this machine's Python: the server is the same user, and only the files' rights are looked at"
    other=()
fi
cd "$place/home"
echo "== a trained run, that others may read"
"${clean[@]}" ftbench run --algo lora --out "$place/runs" --tokens 100 --set max_length=64 --set checkpoints=0 \
    --set attack_prompts=0 --set evaluation_prompts=8 --set max_new_tokens=16
closed=$(find "$place/runs" -name '.*' -prune -o ! -perm -o=r -print)
[ -z "$closed" ] || { echo "closed to others: $closed"; exit 1; }

echo "== no key, no server"
if "${served[@]}" sh "$place/source/container/entrypoint.sh"; then
    echo "it started without a key"
    exit 1
fi

echo "== a chat answer"
"${served[@]}" FTBENCH_API_KEY=of-this-trial FTBENCH_PORT=$port "${other[@]}" \
    sh "$place/source/container/entrypoint.sh" "$place"/runs/lora-* &
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
