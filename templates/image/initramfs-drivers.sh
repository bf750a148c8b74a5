#!/bin/sh
# Loads the drivers of the hardware that is there: buses first, then what was found on them.
case ${1:-} in
prereqs) exit 0 ;;
esac
for _ in 1 2; do
    # shellcheck disable=SC2046 # one name a word
    modprobe -qab $(cat /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias \
        /sys/bus/vmbus/devices/*/modalias /sys/bus/xen/devices/*/modalias 2>/dev/null)
done
modprobe -qab sd_mod sr_mod isofs
exit 0
