#!/usr/bin/env bash
# Makes a virtual environment with the LiteLLM that the edge is compared with:
#   bench/peers/litellm.sh DIR && npm run bench:edge -- --litellm DIR
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet --requirement "$(dirname "$0")/litellm-requirements.txt"
