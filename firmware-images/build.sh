#!/usr/bin/env bash
# Makes a flashable image for BOARD from Debian, with the agent in it.
#   firmware-images/build.sh BOARD --agent FILE.deb [--output FILE] [--packages FILE] [--mirror URL [--security-mirror URL]]
# BOARD is one of the files in firmware-images/boards. FILE.deb is what cross/package.sh makes; without --agent, the newest in target/packages.
# Packages come from where this machine's own come from (Debian 12), or else from --mirror or MUSTER_DEBIAN_MIRROR, and
# security updates then from --security-mirror or MUSTER_DEBIAN_SECURITY_MIRROR. Beside the image land
# the packages in it (FILE.packages) and its checksum (FILE.sha256). With --packages, Debian's are those of such a list, to the version.
# The same agent and the same packages make the same bytes, at the same commit. Whoever has subordinate ids (subuid(5)) need not be root.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "firmware-images/build.sh: $*" >&2; exit 2; }
usage="usage: firmware-images/build.sh BOARD --agent FILE.deb [--output FILE] [--packages FILE] [--mirror URL [--security-mirror URL]], with BOARD one of: $(cd firmware-images/boards && echo *.sh | sed 's/\.sh//g')"

board="" agent="" output="" listed="" mirror="${MUSTER_DEBIAN_MIRROR:-}" security="${MUSTER_DEBIAN_SECURITY_MIRROR:-}"
while [ $# -gt 0 ]; do
    case "$1" in
        --agent) agent="${2:?$usage}"; shift ;;
        --output) output="${2:?$usage}"; shift ;;
        --packages) listed="${2:?$usage}"; shift ;;
        --mirror) mirror="${2:?$usage}"; shift ;;
        --security-mirror) security="${2:?$usage}"; shift ;;
        -*) fail "$usage" ;;
        *) board="$1" ;;
    esac
    shift
done
[ -n "$board" ] && [ -f "firmware-images/boards/$board.sh" ] || fail "$usage"
release=bookworm kernel_from=""
# shellcheck disable=SC1090
. "firmware-images/boards/$board.sh"
if [ -z "$agent" ]; then
    # shellcheck disable=SC2012
    agent="$(ls -t target/packages/muster-agent_*_arm64.deb 2>/dev/null | head -n 1 || true)"
    [ -n "$agent" ] || fail "there is no agent: make its package with cross/package.sh aarch64-unknown-linux-gnu, or name one with --agent"
fi
[ -f "$agent" ] || fail "$agent is not there"
[ -z "$listed" ] || [ -f "$listed" ] || fail "$listed is not there"
output="${output:-target/images/muster-$board.img}"
mkdir -p "$(dirname "$output")"

export PATH="$PATH:/usr/sbin:/sbin"
for need in mmdebstrap:mmdebstrap mksquashfs:squashfs-tools mkfs.ext4:e2fsprogs mkfs.vfat:dosfstools mcopy:mtools sfdisk:fdisk zstd:zstd \
    qemu-aarch64-static:qemu-user-static; do
    command -v "${need%%:*}" >/dev/null || fail "${need%%:*} is not installed: on Debian, apt-get install ${need#*:}"
done
# Foreign programs run through binfmt_misc; a machine without systemd or binfmt-support has nobody who sets that up.
if [ "$(uname -m)" != aarch64 ] && [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc ||
        fail "binfmt_misc is not mounted: as root, mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register || fail "programs for aarch64 cannot be run: install binfmt-support"
fi

# Sources: one line for each suite.
if [ -z "$mirror" ]; then
    uri_of() {
        apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN)' 'Created-By: Packages' |
            awk -v suite="$1" '$2 == suite && $3 == "Debian" { uri = $1 } END { print uri }'
    }
    mirror="$(uri_of bookworm)" security="${security:-$(uri_of bookworm-security)}"
    [ -n "$mirror" ] || fail "this machine has no packages of Debian 12 in its apt: name a mirror with --mirror"
fi
sources="$(printf "deb $mirror %s $components\n" "$release" "$release-updates" $kernel_from)"
if [ -n "$security" ]; then
    sources+=$'\n'"deb $security $release-security $components"
else
    echo "firmware-images/build.sh: without --security-mirror the image lacks Debian's security updates" >&2
fi

# The time that every file carries and that the board's clock starts from.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y "$agent")}"
export SOURCE_DATE_EPOCH
work="$(mktemp -d "$(dirname "$output")/.build.XXXXXX")"
trap 'rm -rf "$work"' EXIT
work="$(cd "$work" && pwd)"
# No recommended packages. What is listed is there because something in the image uses it.
packages+=(systemd-sysv udev dbus kmod mount passwd login e2fsprogs fdisk systemd-timesyncd systemd-resolved iproute2 tzdata libc-bin
    "linux-image-arm64${kernel_from:+/$kernel_from}" initramfs-tools zstd openssh-server netbase procps)

echo "root: Debian packages"
# What comes in and goes out passes through mmdebstrap: who is not root here is another user in there.
tar -C firmware-images/root --owner=0 --group=0 --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" --sort=name -cf "$work/ours.tar" .
hooks=() apt_options=(--aptopt='Acquire::Retries "3"')
if [ -n "$listed" ]; then
    # What a snapshot says of itself ended a week after its day; which versions are taken is said by the list.
    apt_options+=(--aptopt='Acquire::Check-Valid-Until "false"')
    awk '$1 != "muster-agent" { printf "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", $1, $2 }' "$listed" >"$work/pins"
    hooks+=(--setup-hook='mkdir -p "$1/etc/apt/preferences.d"' --setup-hook="upload '$work/pins' /etc/apt/preferences.d/listed")
fi
hooks+=(--customize-hook="tar-in '$work/ours.tar' /" --customize-hook="upload '$agent' /agent.deb"
    --customize-hook='upload firmware-images/customise.sh /customise.sh' --customize-hook='bash "$1/customise.sh" "$1"')
for made in packages initrd.img boot-sources.tar root.squashfs; do
    hooks+=(--customize-hook="download /made/$made '$work/$made'")
done
INITRD=No mmdebstrap --quiet --arch=arm64 --variant=essential --format=null \
    --include="$(IFS=,; echo "${packages[*]}")" \
    "${apt_options[@]}" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='path-exclude=/usr/share/bug/*' \
    --dpkgopt='path-exclude=*/lib/modules/*/kernel/sound/*' --dpkgopt='path-exclude=*/lib/modules/*/kernel/drivers/gpu/drm/amd/*' \
    --dpkgopt='path-exclude=*/lib/modules/*/kernel/drivers/gpu/drm/nouveau/*' --dpkgopt='path-exclude=*/lib/modules/*/kernel/drivers/gpu/drm/radeon/*' \
    --dpkgopt='path-exclude=*/lib/modules/*/kernel/drivers/infiniband/*' --dpkgopt='path-exclude=*/lib/modules/*/kernel/drivers/isdn/*' \
    "${hooks[@]}" "$release" /dev/null - <<<"$sources"
if [ -n "$listed" ] && ! differences="$(diff <(grep -v '^muster-agent ' "$listed") <(grep -v '^muster-agent ' "$work/packages"))"; then
    fail "the mirrors do not have what $listed says (<) but other versions (>): name some that still have it, as snapshot.debian.org does
$differences"
fi

# Identifiers follow from what is in the image: the same image has the same, another has others.
seed="$(cat "$work/root.squashfs" "$work/initrd.img" | sha256sum)"
uuid() { local hex; hex="$(printf '%s %s' "$seed" "$1" | sha256sum)"; echo "${hex:0:8}-${hex:8:4}-4${hex:13:3}-8${hex:17:3}-${hex:20:12}"; }
disk_id="0x$(uuid disk | cut -c1-8)"
if [ "$label" = gpt ]; then
    root_id="$(uuid root)" data_id="$(uuid data)"
else
    root_id="${disk_id#0x}-02" data_id="${disk_id#0x}-03"
fi

echo "boot partition"
cmdline="root=PARTUUID=$root_id rootfstype=squashfs ro muster.data=PARTUUID=$data_id panic=10 systemd.gpt_auto=no systemd.getty_auto=no quiet"
mkdir -p "$work/boot/muster/network"
cp "$work/initrd.img" "$work/boot/initrd.img"
tar -C "$work" -xf "$work/boot-sources.tar"
boot_files "$work/boot-sources" "$work/boot" "$cmdline"
cp firmware-images/boot-partition/* "$work/boot/muster/"
find "$work/boot" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
boot_mib=128 data_mib=128
truncate -s "${boot_mib}M" "$work/boot.fat"
mkfs.vfat --invariant -F 32 -n MUSTER -i "$(uuid boot | cut -c1-8)" "$work/boot.fat" >/dev/null

mcopy -i "$work/boot.fat" -spmQ "$work"/boot/* ::/

echo "data partition"
mkdir -p "$work/data"
truncate -s "${data_mib}M" "$work/data.ext4"
# Room in the tables of the file system for growing to a terabyte, and a write of the journal every minute at most unless a program asks.
E2FSPROGS_FAKE_TIME="$SOURCE_DATE_EPOCH" mkfs.ext4 -q -L muster-data -U "$(uuid data-fs)" -b 4096 -i 16384 -m 1 \
    -E "hash_seed=$(uuid hash),resize=268435456,lazy_itable_init=0,root_owner=0:0" -d "$work/data" "$work/data.ext4"

echo "image"
mib() { echo $((($(stat -c %s "$1") + 1048575) / 1048576)); }
root_mib="$(mib "$work/root.squashfs")"
image="$work/image"
truncate -s "$((1 + boot_mib + root_mib + data_mib + 1))M" "$image"
if [ "$label" = gpt ]; then
    types=(C12A7328-F81F-11D2-BA4B-00A0C93EC93B 0FC63DAF-8483-4772-8E79-3D69D8477DE4 0FC63DAF-8483-4772-8E79-3D69D8477DE4)
    extra=(", name=boot, uuid=$(uuid boot)" ", name=root, uuid=$root_id" ", name=data, uuid=$data_id")
    head="label-id: $(uuid disk)"
else
    types=(c 83 83) extra=(", bootable" "" "")
    head="label-id: $disk_id"
fi
sfdisk --quiet "$image" <<END
label: $label
$head
start=1MiB, size=${boot_mib}MiB, type=${types[0]}${extra[0]}
size=${root_mib}MiB, type=${types[1]}${extra[1]}
size=${data_mib}MiB, type=${types[2]}${extra[2]}
END
place() { dd if="$1" of="$image" bs=1M seek="$2" conv=notrunc,sparse status=none; }
place "$work/boot.fat" 1
place "$work/root.squashfs" "$((1 + boot_mib))"
place "$work/data.ext4" "$((1 + boot_mib + root_mib))"

mv "$image" "$output"
cp "$work/packages" "$output.packages"
(cd "$(dirname "$output")" && sha256sum "$(basename "$output")" >"$(basename "$output").sha256")
packed="$(zstd -q -T0 -10 -c "$output" | wc -c)"
echo "$output: $(mib "$output") MiB, $((packed / 1048576)) MiB as zstd packs it, root $root_mib MiB, $(wc -l <"$output.packages") packages, $(cut -d' ' -f1 "$output.sha256")"
