#!/usr/bin/env bash
# What programs for TARGET are linked against so that they run with glibc 2.28 (Debian 10, RHEL 8) and everything later: the names and versions of
# the symbols that it had, as zig brings them for every version there was. Debian's cross compilers know only the glibc of their own release.
#   cross/glibc.sh TARGET
# Prints the folder. Needs Python 3 with venv; zig comes as a package of Python's, in the version that requirements.txt names.
set -euo pipefail
cd "$(dirname "$0")/.."

floor=2.28
case "${1:-}" in
    x86_64-unknown-linux-gnu) name=x86_64-linux-gnu ;;
    aarch64-unknown-linux-gnu) name=aarch64-linux-gnu ;;
    armv7-unknown-linux-gnueabihf) name=arm-linux-gnueabihf ;;
    riscv64gc-unknown-linux-gnu) name=riscv64-linux-gnu ;;
    *)
        echo "cross/glibc.sh: there is no C library for '${1:-}'" >&2
        exit 2
        ;;
esac
work="$PWD/target/cross"
libraries="$work/glibc-$floor-$name"
if [ -e "$libraries/libc.so" ]; then
    echo "$libraries"
    exit
fi

python="$work/zig/bin/python"
if ! "$python" -c 'import ziglang' 2>/dev/null; then
    python3 -m venv "$work/zig"
    "$python" -m pip install --quiet --disable-pip-version-check -r cross/requirements.txt
fi
# zig makes what it links against on the way: a program of nothing leaves all of it in the cache.
made="$libraries.making"
rm -rf "$made"
mkdir -p "$made/cache"
echo 'int main(void) { return 0; }' >"$made/nothing.c"
ZIG_GLOBAL_CACHE_DIR="$made/cache" ZIG_LOCAL_CACHE_DIR="$made/cache" \
    "$python" -m ziglang cc -target "$name.$floor" -O2 -pie "$made/nothing.c" -o "$made/nothing"
find "$made/cache" \( -name 'lib*.so.*' -o -name libc_nonshared.a -o -name Scrt1.o \) -exec mv {} "$made/" \;
rm -rf "$made/cache" "$made/nothing" "$made/nothing.c"
for library in "$made"/lib*.so.*; do
    ln -s "$(basename "$library")" "${library%.so.*}.so"
done
if [ "$name" = arm-linux-gnueabihf ]; then
    # How 32-bit ARM finds what belongs to a thread is linked into every program; zig leaves it out, Debian's archive has it.
    (cd "$made" && ar x "$("$name-gcc" -print-file-name=libc_nonshared.a)" aeabi_read_tp.oS && ar q libc_nonshared.a aeabi_read_tp.oS && rm aeabi_read_tp.oS)
fi
rm "$made/libc.so"
echo 'GROUP ( libc.so.6 libc_nonshared.a AS_NEEDED ( libld.so.2 ) )' >"$made/libc.so"
mv "$made" "$libraries"
echo "$libraries"
