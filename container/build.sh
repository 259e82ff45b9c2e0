#!/usr/bin/env bash
# Installs ftbench, its plugins and the default model into one folder: all that the image's build does.
# It runs outside an image too, and needs Python with pip.
#
#   container/build.sh SOURCE FOLDER
#
# DEVICE=cpu (the default) takes PyTorch's wheel for processors, DEVICE=cuda the one for CUDA.
# CPU_INDEX is where the former is; empty is wherever pip is set up to look.
# MODEL, a hub id or the default model, is put into the folder's cache; empty leaves base models to the first start.
set -euo pipefail

source=$(cd "$1" && pwd)
folder=$2
device=${DEVICE:-cpu}
cpu_index=${CPU_INDEX-https://download.pytorch.org/whl/cpu}
model=${MODEL-smollm2-135m-instruct}

case $device in
    cpu) index=${cpu_index:+--index-url=$cpu_index} ;;
    cuda) index= ;;
    *)
        echo "build.sh: no such device '$device'; set DEVICE to cpu or cuda" >&2
        exit 2
        ;;
esac

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PDM_CHECK_UPDATE=0
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/pdm"
"$tools/pdm/bin/pip" install --quiet "pdm[locked]"
python3 -m venv "$folder"

# PyTorch stands in no lock file: its version does, and its build is chosen here.
torch=$("$folder/bin/python" -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]["torch"])' \
    "$source/pyproject.toml")
"$folder/bin/pip" install --quiet ${index:+"$index"} "$torch"
# A copy, because pdm writes beside what it installs.
cp -r "$source" "$tools/source"
cd "$tools/source"
VIRTUAL_ENV=$folder "$tools/pdm/bin/pdm" sync --quiet --prod --no-editable --skip=:all --group serve
cd /

if [ -n "$model" ]; then
    FTBENCH_CACHE=$folder/cache HF_HUB_CACHE=$folder/cache/huggingface/hub "$folder/bin/python" -c \
        'import sys; from ftbench.models.resolve import locate_model; print(locate_model(sys.argv[1]))' "$model"
    find "$folder/cache" -name '*.lock' -delete # whoever fetches more of it makes locks of their own
fi
chmod -R a+rX "$folder" # weights are written for their owner alone, and the image's user is another
