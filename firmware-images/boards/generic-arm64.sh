# Any 64-bit ARM machine that boots by UEFI, the QEMU machine "virt" among them.
label=gpt
components=main
packages=(systemd-boot-efi)

# boot_files ROOT FOLDER CMDLINE: what lies on the boot partition besides the owner's folder; systemd-boot starts the kernel.
boot_files() {
    mkdir -p "$2/EFI/BOOT" "$2/loader/entries"
    cp "$1/usr/lib/systemd/boot/efi/systemd-bootaa64.efi" "$2/EFI/BOOT/BOOTAA64.EFI"
    cp "$1"/boot/vmlinuz-* "$2/vmlinuz"
    printf 'timeout 0\ndefault muster.conf\n' >"$2/loader/loader.conf"
    printf 'title Muster\nlinux /vmlinuz\ninitrd /initrd.img\noptions %s\n' "$3" >"$2/loader/entries/muster.conf"
}
