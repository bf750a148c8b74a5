#!/bin/sh
# First boot of a machine: reads the NoCloud seed that forge wrote, in place of cloud-init, whose start
# costs an emulated machine more than the whole boot. A seed that forge did not write (its user-data
# lacks the second line `# forge-seed 1`) and any other source are left to cloud-init.
# Every fork counts here: what the shell can do itself, it does itself.
set -eu
PATH=/usr/sbin:/usr/bin
umask 022

say() { echo "forge-seed: $*"; }

# No other boot reads a seed, and cloud-init is found disabled by whoever starts it by hand.
finish() {
    : >/etc/cloud/cloud-init.disabled
    : >/var/lib/forge/seeded
    say "$*"
    exit 0
}

leave_to_cloud_init() {
    rm -f /etc/cloud/cloud-init.disabled
    if /usr/lib/cloud-init/ds-identify; then
        say "not a seed of forge: cloud-init takes over"
        systemctl start --no-block cloud-init.target
    else
        say "no seed"
    fi
    exit 0
}

# blkid answers from the devices themselves; udev has not looked at them yet. A drive whose driver is
# not loaded yet shows when udev has.
find_seed() {
    seed=$(blkid -l -o device -t LABEL=cidata -c /dev/null) ||
        seed=$(blkid -l -o device -t LABEL=CIDATA -c /dev/null)
}
if ! find_seed; then
    systemctl start systemd-udev-trigger.service || true
    udevadm settle --timeout=20 || true
    find_seed || leave_to_cloud_init
fi
at=/run/forge-seed
[ -d $at ] || mkdir -m 0700 $at
mount -o ro,nosuid,nodev,noexec "$seed" $at || leave_to_cloud_init
[ -r $at/user-data ] && [ -r $at/meta-data ] || leave_to_cloud_init

{ read -r first && read -r second; } <$at/user-data || second=
if [ "$first" != '#cloud-config' ] || [ "$second" != '# forge-seed 1' ]; then
    umount $at
    leave_to_cloud_init
fi

name= user= authorized= private= public= section=
while IFS= read -r line; do
    key=${line#"${line%%[! ]*}"}
    case $section:$line in
    private:'    '*)
        private="$private$key
"
        continue
        ;;
    authorized:'      - '*)
        authorized="$authorized${key#- }
"
        continue
        ;;
    esac
    section=
    case $key in
    'hostname: '*) name=${key#hostname: } ;;
    '- name: '*) user=${key#- name: } ;;
    'ssh_authorized_keys:') section=authorized ;;
    'ed25519_private: |') section=private ;;
    'ed25519_public: '*) public=${key#ed25519_public: } ;;
    esac
done <$at/user-data

case $name in
'' | *[!a-zA-Z0-9.-]*) say "the seed has no usable host name" && exit 1 ;;
esac
echo "$name" >/etc/hostname
echo "$name" >/proc/sys/kernel/hostname
echo "127.0.0.1 localhost
127.0.1.1 $name
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters" >/etc/hosts

case $user in
'' | *[!a-z0-9_-]*) say "the seed has no usable user" && exit 1 ;;
esac
if [ ! -e "/home/$user/.ssh/authorized_keys" ]; then
    useradd --create-home --shell /bin/bash --groups adm,sudo,docker "$user"
    install -d -m 0700 -o "$user" -g "$user" "/home/$user/.ssh"
    install -m 0600 -o "$user" -g "$user" /dev/null "/home/$user/.ssh/authorized_keys"
    echo "$user ALL=(ALL) NOPASSWD:ALL" >"/etc/sudoers.d/90-$user"
fi
printf %s "$authorized" >"/home/$user/.ssh/authorized_keys"

umask 077
printf %s "$private" >/etc/ssh/ssh_host_ed25519_key
umask 022
echo "$public" >/etc/ssh/ssh_host_ed25519_key.pub

# One file for each interface, found by its hardware address: names differ between machine types.
count=0 mac= body=
interface() {
    [ -n "$mac" ] || return 0
    count=$((count + 1))
    echo "[Match]
PermanentMACAddress=$mac

[Network]
$body" >/etc/systemd/network/10-forge-$count.network
    mac= body=
}
if [ -r $at/network-config ]; then
    while read -r key value; do
        case $key in
        macaddress:)
            interface
            value=${value#\"}
            mac=${value%\"}
            ;;
        dhcp4:) [ "$value" = true ] && body="${body}DHCP=ipv4
" ;;
        -) body="${body}Address=$value
" ;;
        esac
    done <$at/network-config
    interface
fi
umount $at

# Only a disk larger than the image's has something to grow; the shell can see that by itself.
while read -r _ _ number _ point _; do
    [ "$point" = / ] && device=$number
done </proc/self/mountinfo
read -r start <"/sys/dev/block/$device/start"
read -r length <"/sys/dev/block/$device/size"
read -r all <"/sys/dev/block/$device/../size"
jobs=
[ $((all - start - length)) -le 65536 ] || jobs=forge-grow.service

# The engine is configured over the first connection and started then: starting it now as well would
# cost a start. Its job of this boot is taken back, with the wait for the network that only it asks for;
# later boots start both.
systemctl stop --no-block docker.service docker.socket systemd-networkd-wait-online.service
[ -z "$jobs" ] || systemctl start --no-block $jobs
finish "this is $name"
