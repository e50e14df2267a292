#!/usr/bin/env bash
# Builds the agent for an ARM target with Debian's cross compilers.
#   cross/build.sh aarch64-unknown-linux-gnu | armv7-unknown-linux-gnueabihf
# The binary lands in target/<target>/release/muster-agent.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    aarch64-unknown-linux-gnu) compiler=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;;
    armv7-unknown-linux-gnueabihf) compiler=arm-linux-gnueabihf-gcc package=gcc-arm-linux-gnueabihf ;;
    *)
        echo "usage: cross/build.sh aarch64-unknown-linux-gnu|armv7-unknown-linux-gnueabihf" >&2
        exit 2
        ;;
esac
target=$1
if ! command -v "$compiler" >/dev/null; then
    echo "$compiler is not installed: on Debian, apt-get install $package" >&2
    exit 2
fi
rustup target add "$target"

variable=${target//-/_}
export "CC_${variable}=$compiler" "CARGO_TARGET_${variable^^}_LINKER=$compiler"
cargo build --locked --release --package muster-agent --target "$target"
ls -l "target/$target/release/muster-agent"
