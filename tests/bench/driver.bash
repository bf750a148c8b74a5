# What each driver adds to a `create`: the seconds inside its calls, from the spans of `--json`.
# shellcheck shell=bash disable=SC2154

# overhead DRIVER BAR WRAPPER… : five creates in a store of their own, run by the wrapper.
overhead() {
    local driver=$1 bar=$2 home times
    shift 2
    fresh_store
    home=$store
    case $driver in
        qemu) set -- "$@" "$here/overhead" qemu --qemu-accel tcg ;;
        libvirt) set -- "$@" "$here/overhead" libvirt --libvirt-accel qemu ;;
        *) set -- "$@" "$here/overhead" "$driver" ;;
    esac
    times=$(FORGE_HOME=$home "$@") || die "no machine of the driver \`$driver\` was made"
    # shellcheck disable=SC2086 # numbers
    result "driver $driver, seconds in its calls of one create" "$(median $times)" "$bar"
    remove_all "$home"
}

overhead qemu 2
if [ "$(id -u)" -eq 0 ]; then
    lab=$here/../lab
    overhead libvirt 2 "$lab/with-libvirt"
    overhead virtualbox 3 "$lab/with-virtualbox"
else
    say 'the drivers libvirt and virtualbox: not measured, name spaces for their daemons need root'
fi
