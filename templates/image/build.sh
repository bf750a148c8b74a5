#!/bin/sh
# Makes disk.raw, vmlinuz and initrd.img in the current folder. Runs as root of a mount and PID
# namespace of its own (and of a user namespace, when the caller is not root): whatever is mounted here
# is gone when this script ends, however it ends.
#
# In:  overlay/ (files of the image), packages (one a line), suite, mirrors (lines for apt while it
#      is made), sources.list (those of the image), size (bytes of the disk), uuid (of the root partition)
set -eu
umask 022
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
# What is left of a build that was killed goes with this folder.
mkdir -p tmp
export TMPDIR="$PWD/tmp"

say() { echo "$*" >progress; }
die() { echo "$*" >&2; exit 1; }

[ $$ = 1 ] || die "to be run in a PID namespace of its own"

# Whoever waits for this build reads what it prints. When nobody does any more (forge was killed), the
# build ends within a second, so that the next one need not wait for it.
(
    trap '' PIPE
    while sleep 1; do
        echo 2>/dev/null || kill -KILL -1
    done
) &

suite=$(cat suite)
size=$(cat size)
uuid=$(cat uuid)
root=$PWD/root

mount -t proc proc /proc

say "package lists"
mmdebstrap --mode=root --format=directory --variant=minbase --architectures=amd64 \
    --include="$(tr '\n' ',' <packages)" \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Languages "none"' \
    --aptopt='Acquire::Retries "5"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/lib/binfmt.d/python*' \
    --dpkgopt='force-unsafe-io' \
    --extract-hook='echo unpacking the base >progress' \
    --essential-hook='echo installing packages >progress; cp -r --preserve=mode overlay/. "$1"/' \
    --customize-hook='echo settings >progress; cp sources.list "$1"/etc/apt/; chroot "$1" sh -eu -s <customize.sh' \
    "$suite" "$root" mirrors >&2

say "root file system"
chroot "$root" dpkg-query --show >manifest
cp -L "$root/vmlinuz" vmlinuz
cp -L "$root/initrd.img" initrd.img

# 1 MiB in front, BIOS boot 1 MiB, ESP 62 MiB, then the root file system up to the backup table.
esp=$((2 << 20))
start=$((64 << 20))
end=$(((size >> 20) - 1 << 20))
rm -f disk.raw
truncate -s "$size" disk.raw
sfdisk --quiet disk.raw <<TABLE
label: gpt
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=bios
start=$((esp / 512)), size=$(((start - esp) / 512)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start=$((start / 512)), size=$(((end - start) / 512)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root, uuid=$uuid
TABLE
# The disk is sparse and reads as zeros: nothing is left for the first boot to initialise.
mke2fs -q -F -t ext4 -L forge-root -U "$uuid" -m 1 \
    -E "offset=$start,root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,resize=268435456" \
    -d "$root" disk.raw "$(((end - start) / 1024))k" >&2

say bootloader
# Firmware of both kinds finds GRUB, and GRUB finds the root file system by its label.
cat >early.cfg <<'CFG'
search --no-floppy --set=root --label forge-root
set prefix=($root)/boot/grub
configfile ($root)/boot/grub/grub.cfg
CFG
modules='part_gpt ext2 search search_label configfile normal linux echo test serial terminal'
grub-mkimage -O x86_64-efi -p /boot/grub -c early.cfg -o bootx64.efi $modules
grub-mkimage -O i386-pc -p /boot/grub -c early.cfg -o core.img biosdisk $modules
[ "$(stat -c %s core.img)" -le 1048576 ] || die "core.img does not fit its partition"
# GRUB 2.06, util/setup.c: the start of core.img at 0x5c of boot.img (8 bytes, little endian), two NOPs
# at 0x66 (a drive number handed over by the firmware counts), and in the first sector of core.img, at
# 0x1f4, where its second sector lies. 2048 is 0x800.
cp /usr/lib/grub/i386-pc/boot.img boot.img
printf '\000\010\000\000\000\000\000\000' | dd of=boot.img bs=1 seek=92 conv=notrunc status=none
printf '\220\220' | dd of=boot.img bs=1 seek=102 conv=notrunc status=none
printf '\001\010\000\000\000\000\000\000' | dd of=core.img bs=1 seek=500 conv=notrunc status=none
dd if=boot.img of=disk.raw bs=1 count=440 conv=notrunc status=none
dd if=core.img of=disk.raw bs=512 seek=2048 conv=notrunc status=none
mformat -i disk.raw@@$esp -F -c 1 -h 64 -s 32 -T $(((start - esp) / 512)) -H $((esp / 512)) -v FORGE-ESP ::
mmd -i disk.raw@@$esp ::/EFI ::/EFI/BOOT
mcopy -i disk.raw@@$esp bootx64.efi ::/EFI/BOOT/BOOTX64.EFI

say disk
qemu-img convert -q -f raw -O qcow2 -o cluster_size=65536,lazy_refcounts=off,compat=1.1 disk.raw disk.qcow2
rm -rf --one-file-system "$root" disk.raw
