#!/bin/sh
# Parity, decode table and LoRA ratios on a GPU, into one JSON file. Needs this repository with its node_modules, a Node binary
# and, for CUDA, the folder that `npm run setup:cuda` filled; no network.
#   bench/gpu.sh [--node NODE] [--device cuda:0|cpu] [--cuda-dir DIR] [--out FILE] [--shapes 1b,7b] [--dtype f16]
#     [--goldens llama,…] [--rounds N] [--no-cuda-graphs] [--small]
# A part that fails is named in the file and leaves the others. Exit status: 0 all well, 4 parity is off, 5 a part failed.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
node=node
count=$#
while [ "$count" -gt 0 ]; do
  count=$((count - 1))
  argument=$1
  shift
  if [ "$argument" = --node ]; then
    [ "$count" -gt 0 ] || { echo "--node needs a path" >&2; exit 2; }
    node=$1
    shift
    count=$((count - 1))
  else
    set -- "$@" "$argument"
  fi
done
command -v "$node" >/dev/null 2>&1 || { echo "no Node binary: $node" >&2; exit 2; }
case $node in
  */*) node=$(CDPATH= cd -- "$(dirname -- "$node")" && pwd)/$(basename -- "$node") ;;
esac
# Paths are the caller's: relative to where this was started.
exec "$node" --import "$here/node_modules/tsx/dist/loader.mjs" "$here/bench/gpu/main.ts" "$@"
