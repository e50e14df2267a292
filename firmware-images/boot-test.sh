#!/usr/bin/env bash
# Starts an image in a virtual board, by its own boot loader through UEFI, beside a real controller on this machine, and prints what was seen when:
# it enrols with a token file, takes a version, loses its power in the middle of the next, and finishes it (tests/it/image_boots.rs).
#   firmware-images/boot-test.sh [IMAGE]
# IMAGE is target/images/muster-generic-arm64.img unless another is named. Without KVM this takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

image="${1:-target/images/muster-generic-arm64.img}"
[ -f "$image" ] || { echo "$image is not there: make it with firmware-images/build.sh generic-arm64" >&2; exit 2; }
for need in qemu-system-aarch64:qemu-system-arm qemu-img:qemu-utils mcopy:mtools; do
    command -v "${need%%:*}" >/dev/null || { echo "${need%%:*} is not installed: on Debian, apt-get install ${need#*:}" >&2; exit 2; }
done
[ -f /usr/share/qemu-efi-aarch64/QEMU_EFI.fd ] || { echo "there is no UEFI firmware: on Debian, apt-get install qemu-efi-aarch64" >&2; exit 2; }
cargo build --locked --workspace --bins
MUSTER_IMAGE="$(realpath "$image")" cargo test --locked --workspace --test it image_boots -- --ignored --nocapture
