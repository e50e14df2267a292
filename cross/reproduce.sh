#!/usr/bin/env bash
# Builds TARGET's agent twice, the second time from a copy of the last commit in another folder, and fails unless both have the same bytes.
#   cross/reproduce.sh TARGET [PROFILE]
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:?usage: cross/reproduce.sh TARGET [PROFILE]}" profile="${2:-dist}"
if [ -n "$(git status --porcelain)" ]; then
    echo "there are changes that are not committed: the copy would lack them" >&2
    exit 2
fi
copy="$(mktemp --directory)"
trap 'rm -rf "$copy"' EXIT
git clone --quiet . "$copy/elsewhere"
cross/build.sh "$target" "$profile"
"$copy/elsewhere/cross/build.sh" "$target" "$profile"
cmp "target/cross/muster-agent-$target" "$copy/elsewhere/target/cross/muster-agent-$target"
echo "both have the same bytes"
