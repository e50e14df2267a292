#!/usr/bin/env bash
# Builds TARGET's agent and lets it do the main job under qemu-user: it enrols with a real controller of this machine, downloads, checks, answers as
# this machine's agent does within 1e-4, commits, and goes back from a bundle that is worse.
#   cross/run.sh TARGET [PROFILE]
# The profile is dist, as packages have it, unless another is named: dev builds much faster.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-}" profile="${2:-dist}"
# A core that boards have: for the one that qemu takes by itself, which has every extension there is, tract takes its slowest way.
case "$target" in
    aarch64-unknown-linux-gnu) emulator=(qemu-aarch64-static -cpu cortex-a53 -L /usr/aarch64-linux-gnu) ;;
    armv7-unknown-linux-gnueabihf) emulator=(qemu-arm-static -cpu cortex-a7 -L /usr/arm-linux-gnueabihf) ;;
    riscv64gc-unknown-linux-gnu) emulator=(qemu-riscv64-static -cpu rv64 -L /usr/riscv64-linux-gnu) ;;
    *) emulator=() ;;
esac
if [ "${#emulator[@]}" -gt 0 ] && ! command -v "${emulator[0]}" >/dev/null; then
    echo "${emulator[0]} is not installed: on Debian, apt-get install qemu-user-static" >&2
    exit 2
fi
cross/build.sh "$target" "$profile"
agent="$PWD/target/cross/agent-$target"
printf '#!/bin/sh\nexec %s %q "$@"\n' "${emulator[*]}" "$PWD/target/cross/muster-agent-$target" >"$agent"
chmod +x "$agent"
"$agent" --version
cargo build --locked --workspace --bins
MUSTER_BOARD_AGENT="$agent" cargo test --locked --workspace --test it boards -- --ignored --nocapture
