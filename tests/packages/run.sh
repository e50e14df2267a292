#!/usr/bin/env bash
# Installs, uses, upgrades, removes and purges this machine's packages in a throw-away Debian with systemd in charge, and lets lintian read them.
#   tests/packages/run.sh
# Needs root, mmdebstrap, systemd-nspawn, lintian, and what cross/package.sh needs; its MUSTER_BUILT counts here too.
# What is done inside stands in inside.sh. MUSTER_DEBIAN_MIRROR names another mirror than this machine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."

for program in mmdebstrap systemd-nspawn lintian; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is not installed: on Debian, apt-get install mmdebstrap systemd-container lintian" >&2
        exit 2
    fi
done
target="$(rustc --print host-tuple)" architecture="$(dpkg --print-architecture)"

echo "==> Packages, and the same once more as their next version"
work="$PWD/target/packages/try"
rm -rf "$work"
mkdir -p "$work/first" "$work/next"
rm -f target/packages/*_"$architecture".deb
cross/package.sh "$target"
mv target/packages/*_"$architecture".deb "$work/first/"
rm -f target/packages/*_"$architecture".cdx.json
MUSTER_DEB_VERSION="99-1" cross/package.sh "$target" "" muster-agent muster-controller
mv target/packages/*_"$architecture".deb "$work/next/"
rm -f target/packages/*_"$architecture".cdx.json

echo "==> lintian"
lintian --fail-on error "$work"/first/*.deb

echo "==> A Debian to try them in"
root="$work/root"
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,curl,procps,jq,zsh,fish bookworm "$root" ${MUSTER_DEBIAN_MIRROR:+"$MUSTER_DEBIAN_MIRROR"}
cp tests/packages/inside.sh "$root/root/inside.sh"
mkdir "$root/root/packages" "$root/root/digits"
cp -r "$work/first" "$work/next" "$root/root/packages/"
cp tests/fixtures/digits/* "$root/root/digits/"
cat >"$root/etc/systemd/system/inside.service" <<'UNIT'
[Unit]
Description=What is tried inside
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/bash /root/inside.sh
ExecStopPost=/bin/sh -c 'echo "$EXIT_STATUS" >/root/inside.status; systemctl --no-block poweroff'
StandardOutput=file:/root/inside.log
StandardError=inherit
TimeoutStartSec=600
UNIT
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -s /etc/systemd/system/inside.service "$root/etc/systemd/system/default.target.wants/inside.service"

echo "==> Inside"
: >"$root/root/inside.log"
tail --follow "$root/root/inside.log" &
shows=$!
trap 'kill "$shows" 2>/dev/null || true; rm -rf "$root"' EXIT
# By itself on its own network: with nothing but loopback.
timeout 900 systemd-nspawn --quiet --boot --private-network --register=no --keep-unit --console=passive --directory "$root" >"$work/boot.log" 2>&1 </dev/null || true
if [ "$(cat "$root/root/inside.status" 2>/dev/null)" != 0 ]; then
    tail -50 "$work/boot.log" >&2
    # Its last words, which the follower may not have come to.
    tail -20 "$root/root/inside.log" >&2
    echo "what was tried inside failed: see above" >&2
    exit 1
fi
