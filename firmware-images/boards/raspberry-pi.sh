# Raspberry Pi 3, 4 and Zero 2 in 64 bits, with Debian's kernel and the firmware of raspi-firmware.
# MBR: the boot ROM of a Pi 3 knows no GPT.
label=dos
components="main non-free-firmware"
packages=(raspi-firmware firmware-brcm80211 wpasupplicant)

# boot_files ROOT FOLDER CMDLINE: what lies on the boot partition besides the owner's folder; the board's firmware starts the kernel.
boot_files() {
    cp -r "$1"/usr/lib/raspi-firmware/. "$2/"
    cp "$1"/usr/lib/linux-image-*/broadcom/bcm2*-rpi-*.dtb "$2/"
    cp "$1"/boot/vmlinuz-* "$2/vmlinuz"
    cat >"$2/config.txt" <<'END'
# Read by the board's firmware: raspberrypi.com documents it as config.txt.
arm_64bit=1
kernel=vmlinuz
initramfs initrd.img followkernel
# The serial console on the pins 8 and 10, at 115200 Bd.
enable_uart=1
upstream_kernel=1
END
    printf 'console=tty0 console=ttyS1,115200 %s\n' "$3" >"$2/cmdline.txt"
}
