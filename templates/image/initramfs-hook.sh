#!/bin/sh
# Every disk that QEMU, libvirt and VirtualBox offer: virtio, SCSI, IDE (and NVMe, which is built in).
PREREQ="udev"
case ${1:-} in
prereqs)
    echo "$PREREQ"
    exit 0
    ;;
esac
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_mmio virtio_blk virtio_scsi sd_mod sr_mod isofs ata_piix ata_generic ahci \
    BusLogic hv_storvsc xen-blkfront
# The root disk is found without udev: devtmpfs names it, the script of the same name loads its driver.
rm -f "$DESTDIR"/scripts/init-top/udev "$DESTDIR"/scripts/init-bottom/udev
rm -rf "$DESTDIR"/usr/lib/udev "$DESTDIR"/lib/udev "$DESTDIR"/usr/lib/systemd/systemd-udevd \
    "$DESTDIR"/lib/systemd/systemd-udevd "$DESTDIR"/usr/bin/udevadm "$DESTDIR"/bin/udevadm
