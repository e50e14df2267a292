#!/usr/bin/env bash
# Builds the agent, or another program, as packages ship it: for glibc 2.28 and later.
#   cross/build.sh TARGET [PROFILE] [muster-agent|muster-controller|muster]
# The profile is dist unless another is named. The binary lands in target/cross/PROGRAM-TARGET. fixed_work, which cross/count.sh counts, is built as
# the agent is.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-}" profile="${2:-dist}" program="${3:-muster-agent}"
case "$target" in
    x86_64-unknown-linux-gnu) compiler=cc package=gcc ;;
    aarch64-unknown-linux-gnu) compiler=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;;
    armv7-unknown-linux-gnueabihf) compiler=arm-linux-gnueabihf-gcc package=gcc-arm-linux-gnueabihf ;;
    riscv64gc-unknown-linux-gnu) compiler=riscv64-linux-gnu-gcc package=gcc-riscv64-linux-gnu ;;
    *)
        echo "usage: cross/build.sh TARGET [PROFILE] [PROGRAM], with TARGET one of" \
            "x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf riscv64gc-unknown-linux-gnu" >&2
        exit 2
        ;;
esac
if ! command -v "$compiler" >/dev/null; then
    echo "$compiler is not installed: on Debian, apt-get install $package" >&2
    exit 2
fi
rustup target add "$target"

variable=${target//-/_}
MUSTER_GLIBC="$(cross/glibc.sh "$target")"
# The agent is linked in the order in which it starts: a board keeps a fifth less of it in memory.
export MUSTER_GLIBC MUSTER_LINKER="$compiler" "CC_${variable}=$compiler"
export "CARGO_TARGET_${variable^^}_LINKER=$PWD/cross/start-order/ordered-gcc"
# Neither where it was built nor when stands in the binary, and of libraries only their names. What the agent holds its clock against is the time of the
# last commit; a copy without a history has none.
MUSTER_SOURCES_OF_S="$(git log -1 --format=%ct 2>/dev/null || echo 0)"
export MUSTER_SOURCES_OF_S
cargo fetch --quiet --locked --target "$target"
remapped=("$PWD=muster")
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    remapped+=("${sources%/}=")
done
RUSTFLAGS="" CFLAGS=""
# Thumb-2 is what Debian's own programs for such boards are: a quarter smaller than ARM's instructions of four bytes each.
[ "$target" != armv7-unknown-linux-gnueabihf ] || RUSTFLAGS="-C target-feature=+thumb-mode"
# In code made for size a function marked inline is else inlined where it is up to six times as large as another; without that, the agent for x86-64 is 0.6 MB smaller,
# for 1.3 % more instructions in an inference of the digits model.
# Names of the later form say for which types a function was compiled: start-order/places.txt tells these apart.
[ "$profile" != dist ] || RUSTFLAGS+=" -C llvm-args=-inlinehint-threshold=75 -C symbol-mangling-version=v0"
for pair in "${remapped[@]}"; do
    RUSTFLAGS+=" --remap-path-prefix=$pair" CFLAGS+=" -ffile-prefix-map=$pair"
done
export RUSTFLAGS SOURCE_DATE_EPOCH=0 "CFLAGS_${variable}=$CFLAGS"
unset CFLAGS
what=(--package "$program")
# With the agent's own features, and so from what the agent is built of.
[ "$program" != fixed_work ] || what=(--package muster-agent --package muster-inference --features muster-inference/fixed-work)
# This machine's own target has a folder to itself: its linker is the one of build scripts too, and with another linker cargo builds everything anew.
folder=target
[ "$target" != "$(rustc --print host-tuple)" ] || folder=target/own
cargo build --locked --profile "$profile" "${what[@]}" --bin "$program" --target "$target" --target-dir "$folder"

# Cargo has the profile dev in another folder than its name says.
built="$folder/$target/${profile/#dev/debug}/$program"
cross/check.sh "$built"
ln -f "$built" "target/cross/$program-$target"
