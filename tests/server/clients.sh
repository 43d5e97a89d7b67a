#!/usr/bin/env bash
# Gets the clients that the server is tested with into a folder: the packages openai of Python and of npm, and
# schemathesis.
#
#     tests/server/clients.sh DIR
set -euo pipefail
folder=${1:?expected a folder}
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$folder"
[[ -x $folder/bin/python ]] || python3 -m venv "$folder"
"$folder/bin/pip" install -q -r "$here/requirements.txt"
npm install --silent --no-audit --no-fund --prefix "$folder" openai@6
