#!/usr/bin/env bash
# What build.sh does in the new root, which has our own files already, and the packing. mmdebstrap calls it with the root's folder; what it makes
# lies in the folder made there.
set -euo pipefail
root="$1"
cd "$root"
made="$root/made"
mkdir "$made"
rm "$root/customise.sh"
in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

mkdir -p "$root/data" "$root/boot/firmware" "$root/etc/muster-agent" "$root/root/.ssh" "$root/var/log/journal"
chmod 0700 "$root/root/.ssh"

in_root dpkg --install /agent.deb
rm "$root/agent.deb"
dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat '${Package} ${Version} ${Architecture}\n' | LC_ALL=C sort >"$made/packages"

# Nobody logs in: root has no password, SSH starts only for keys on the boot partition (muster-settings.service).
in_root systemctl disable --quiet ssh.service ssh.socket 2>/dev/null || true
rm -f "$root"/etc/ssh/ssh_host_*
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
printf 'PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nHostKey /data/ssh/ssh_host_ed25519_key\nHostKey /data/ssh/ssh_host_ecdsa_key\n' \
    >"$root/etc/ssh/sshd_config.d/muster.conf"
in_root systemctl enable --quiet systemd-networkd.service systemd-resolved.service systemd-timesyncd.service muster-settings.service \
    muster-token-erase.path muster-agent.service
# The root is new at every start; these would mend what is not broken, or wait for what need not be there.
in_root systemctl mask --quiet systemd-networkd-wait-online.service systemd-firstboot.service systemd-machine-id-commit.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
echo muster >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 muster\n::1 localhost\n' >"$root/etc/hosts"
# The clock of a board without a battery starts here rather than in 1970, until the network tells the time.
touch -d "@$SOURCE_DATE_EPOCH" "$root/usr/lib/clock-epoch"

kernel="$(cd "$root/lib/modules" && echo *)"
in_root mkinitramfs -o /boot/initrd.img "$kernel"
mv "$root/boot/initrd.img" "$made/initrd.img"
tar -C "$root" --transform 's,^,boot-sources/,' -cf "$made/boot-sources.tar" \
    $(cd "$root" && ls -d boot/vmlinuz-* usr/lib/systemd/boot/efi usr/lib/raspi-firmware usr/lib/linux-image-*/broadcom \
        usr/lib/modules/*/dtb/broadcom 2>/dev/null)

# What differs from build to build, names this machine, or lies on the boot partition anyway.
: >"$root/etc/machine-id"
ln -sf /etc/machine-id "$root/var/lib/dbus/machine-id"
rm -rf "$root"/boot/vmlinuz-* "$root"/boot/System.map-* "$root"/usr/lib/linux-image-* "$root"/usr/lib/modules/*/{dtb,vmlinuz} "$root"/usr/lib/raspi-firmware \
    "$root"/var/cache/* "$root"/var/log/* "$root"/var/lib/systemd/* "$root"/var/lib/dpkg/*-old \
    "$root"/etc/*- "$root"/var/lib/initramfs-tools "$root"/usr/lib/systemd/boot "$root"/var/lib/muster-agent/*
mkdir -p "$root/var/log/journal"
env --unset SOURCE_DATE_EPOCH mksquashfs "$root" "$made/root.squashfs" -mkfs-time "$SOURCE_DATE_EPOCH" -all-time "$SOURCE_DATE_EPOCH" -quiet -no-progress -comp zstd -Xcompression-level 15 -b 262144 \
    -p 'proc d 555 0 0' -p 'sys d 555 0 0' -wildcards -e proc sys 'dev/*' 'run/*' 'tmp/*' 'etc/apt/*' 'var/lib/apt/*' made
