#!/usr/bin/env bash
# Fails unless every symbol that PROGRAM takes from the C library is one that glibc 2.28 has; prints its size and its hash.
#   cross/check.sh PROGRAM
set -euo pipefail

floor=2.28
program="${1:?usage: cross/check.sh PROGRAM}"
needed="$(readelf --version-info "$program" | grep -o 'GLIBC_[0-9.]*' | sort --unique --version-sort | tail -1)"
if [ "$(printf '%s\n' "$needed" "GLIBC_$floor" | sort --version-sort | tail -1)" != "GLIBC_$floor" ]; then
    echo "$program needs $needed, devices have GLIBC_$floor: something in it was linked against a newer C library" >&2
    exit 1
fi
bytes="$(stat --format %s "$program")"
echo "$program: $((bytes / 1024)) KiB, needs $needed, sha256 $(sha256sum "$program" | cut -d ' ' -f 1)"
