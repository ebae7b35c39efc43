#!/bin/sh
# Run what the README shows: its `sh` blocks, and its `python` blocks, one after the other. After `make demo`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for language in sh python; do
    awk -v start="^\`\`\`$language\$" '$0 ~ start {on=1; next} /^```/ {on=0} on' README.md >"$folder/$language"
    test -s "$folder/$language"
done
PATH="$PWD/.venv/bin:$PATH"
sh -eux "$folder/sh"
python "$folder/python"
rm -rf digits_train.beton* digits_val.beton* runs/digits
