#!/bin/sh
# Grows the root partition and its file system to the end of the disk. Nothing to grow: does nothing.
set -eu
PATH=/usr/sbin:/usr/bin

device=
while read -r _ _ number _ point _; do
    [ "$point" = / ] && device=$number
done </proc/self/mountinfo
part=$(readlink -f "/sys/dev/block/$device")
disk=${part%/*}
read -r index <"$part/partition"
# The table is rewritten in place: the other partitions keep their numbers, places and ids, and the
# backup table moves to the new end.
echo ', +' | sfdisk --quiet --no-reread --no-tell-kernel --force -N "$index" "/dev/${disk##*/}"
partx --update --nr "$index" "/dev/${disk##*/}"
exec resize2fs "/dev/${part##*/}"
