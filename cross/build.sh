#!/usr/bin/env bash
# Builds the agent as packages ship it.
#   cross/build.sh x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu | armv7-unknown-linux-gnueabihf
# The binary lands in target/<target>/dist/muster-agent.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-}"
variable=${target//-/_}
case "$target" in
    x86_64-unknown-linux-gnu) compiler=cc package=gcc ;;
    aarch64-unknown-linux-gnu) compiler=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;;
    armv7-unknown-linux-gnueabihf) compiler=arm-linux-gnueabihf-gcc package=gcc-arm-linux-gnueabihf ;;
    *)
        echo "usage: cross/build.sh x86_64-unknown-linux-gnu|aarch64-unknown-linux-gnu|armv7-unknown-linux-gnueabihf" >&2
        exit 2
        ;;
esac
if ! command -v "$compiler" >/dev/null; then
    echo "$compiler is not installed: on Debian, apt-get install $package" >&2
    exit 2
fi
rustup target add "$target"

# The agent is linked in the order in which it starts: a board keeps a fifth less of it in memory.
export "CC_${variable}=$compiler" MUSTER_LINKER="$compiler"
export "CARGO_TARGET_${variable^^}_LINKER=$PWD/cross/start-order/ordered-gcc"
cargo build --locked --profile dist --package muster-agent --target "$target"
ls -l "target/$target/dist/muster-agent"
