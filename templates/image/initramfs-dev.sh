#!/bin/sh
# Hands /dev on to the system: the root file system of an image made without root has no device nodes.
case ${1:-} in
prereqs) exit 0 ;;
esac
mount -n -o move /dev "${rootmnt:?}/dev" || mount -n -t devtmpfs udev "${rootmnt:?}/dev"
