# Raspberry Pi 5: Debian 13, with the kernel of its backports. Debian 12's knows nothing of the board, Debian 13's own nothing of its network.
label=dos
release=trixie
kernel_from=trixie-backports
components="main non-free-firmware"
packages=(firmware-brcm80211 wpasupplicant)

# boot_files ROOT FOLDER CMDLINE: what lies on the boot partition besides the owner's folder; the board has its own firmware in a chip, which
# starts the kernel.
boot_files() {
    cp "$1"/usr/lib/modules/*/dtb/broadcom/bcm2712*-rpi-5*.dtb "$2/"
    cp "$1"/boot/vmlinuz-* "$2/vmlinuz"
    cat >"$2/config.txt" <<'END'
# Read by the board's firmware: raspberrypi.com documents it as config.txt.
arm_64bit=1
kernel=vmlinuz
initramfs initrd.img followkernel
# The kernel is Debian's, which the firmware does not know.
os_check=0
# The serial console on the connector between the two HDMI sockets, at 115200 Bd.
enable_uart=1
END
    printf 'console=tty0 console=ttyAMA10,115200 %s\n' "$3" >"$2/cmdline.txt"
}
