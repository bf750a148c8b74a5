# A swarm made by hand: qemu, ssh and docker, nothing between. What forge is measured beside.
#
# The guests are overlays of the same image, with the same kernel line, hardware, memory and cache mode as
# forge's: these words are taken from a machine of forge's while it runs. They have a user, a key, a host
# key and an engine that starts at boot; no TLS, no packet filter, no seed.
# shellcheck shell=bash disable=SC2154

# plain_base: makes what the guests start from, once for an image.
plain_base() {
    local image claim pid key
    image=$(image_folder)
    base=$BENCH_HOME/plain-$(basename "$image")
    [ ! -e "$base/words" ] || return 0
    say "preparing the base of the plain script (once, kept in $base)"
    rm -rf "$BENCH_HOME"/plain-*
    mkdir -m 0700 "$base"
    fresh_store
    FORGE_HOME=$store "$FORGE" create --qemu-accel tcg plain >&2
    claim=$(sed -n 's/.*"claim": *"\([^"]*\)".*/\1/p' "$store/machines/plain/machine.json")
    pid=$(<"$store/drivers/qemu/$claim/vm.pid")
    FORGE_HOME=$store "$FORGE" ssh-config plain >"$store/ssh-config"
    ssh -F "$store/ssh-config" plain sudo sh -e >&2 <<'GUEST'
systemctl stop docker.service docker.socket containerd.service
systemctl stop forge-firewall.service
rm -rf /etc/docker /var/lib/docker /var/lib/containerd /etc/forge /var/lib/forge/due \
    /etc/systemd/system/docker.service.d /etc/systemd/system/forge-firewall*.service \
    /etc/systemd/system/*.wants/forge-firewall*.service /etc/modules-load.d/forge.conf /etc/sysctl.d/99-forge.conf
mkdir -p /etc/docker /var/lib/docker
# The inner interface waits for its address; nobody waits for it.
grep -l '^Address=' /etc/systemd/network/10-forge-*.network | xargs -r rm -f
printf '%s\n' '[Match]' 'PermanentMACAddress=52:54:00:77:00:01 52:54:00:77:00:02 52:54:00:77:00:03 52:54:00:77:00:04 52:54:00:77:00:05' \
    '[Link]' 'Unmanaged=yes' >/etc/systemd/network/05-inner.network
: >/etc/machine-id
echo plain >/etc/hostname
journalctl --rotate -q
rm -rf /var/log/journal/* /var/lib/systemd/random-seed
sync
GUEST
    tr '\0' '\n' <"/proc/$pid/cmdline" >"$base/words.all"
    for key in -machine -accel -cpu -smp -m -append; do
        printf '%s\n%s\n' "$key" "$(grep -A 1 -x -e "$key" "$base/words.all" | tail -n 1)"
    done >"$base/words.new"
    grep -o 'mac=[0-9a-f:]*' "$base/words.all" | head -n 1 >"$base/mac"
    FORGE_HOME=$store "$FORGE" stop plain >&2
    qemu-img convert -q -O qcow2 "$store/drivers/qemu/$claim/disk.qcow2" "$base/disk.qcow2"
    cp "$store/machines/plain/id_ed25519" "$base/key"
    chmod 0600 "$base/key"
    cp "$image/vmlinuz" "$image/initrd.img" "$base/"
    remove_all "$store"
    rm -rf "$store"
    mv "$base/words.new" "$base/words"
}

# guest NUMBER COMMAND: over ssh.
guest() {
    ssh -F /dev/null -i "$base/key" -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR -o ConnectTimeout=2 -p "$((2300 + $1))" forge@127.0.0.1 "$2" </dev/null
}

# Asked every 0.3 s, over a fresh connection until there is one, then in the guest.
await_engine() {
    until guest "$1" true 2>/dev/null; do sleep 0.3; done
    guest "$1" 'until docker info >/dev/null 2>&1; do sleep 0.3; done'
}

# plain_swarm: five guests to three managers and two workers; sets `took` and `cpu`.
plain_swarm() {
    local folder start number words token manager pids=()
    folder=$(mktemp -d "$scratch/plain.XXXX")
    start=$(now)
    mapfile -t words <"$base/words"
    for number in 1 2 3 4 5; do
        qemu-img create -q -f qcow2 -b "$base/disk.qcow2" -F qcow2 "$folder/$number.qcow2"
        qemu-system-x86_64 "${words[@]}" -kernel "$base/vmlinuz" -initrd "$base/initrd.img" \
            -nodefaults -display none -serial "file:$folder/$number.console" \
            -blockdev "driver=qcow2,node-name=disk,file.driver=file,file.filename=$folder/$number.qcow2,discard=unmap" \
            -device virtio-blk-pci,drive=disk \
            -netdev "user,id=outer,ipv6=off,hostfwd=tcp:127.0.0.1:$((2300 + number))-:22" \
            -device "virtio-net-pci,netdev=outer,romfile=,$(<"$base/mac")" \
            -netdev "socket,id=inner,mcast=230.0.0.1:$((20000 + $$ % 10000)),localaddr=127.0.0.1" \
            -device "virtio-net-pci,netdev=inner,romfile=,mac=52:54:00:77:00:0$number" \
            -device virtio-rng-pci -daemonize -pidfile "$folder/$number.pid"
        guests+=("$(<"$folder/$number.pid")")
    done
    # The name of the inner interface follows from the machine type: looked up by its address.
    find='for i in /sys/class/net/*; do case $(cat $i/address) in 52:54:00:77:*) sudo ip addr add 10.77.0.NUMBER/24 dev ${i##*/} && sudo ip link set ${i##*/} up;; esac; done; '
    await_engine 1
    guest 1 "${find//NUMBER/1} docker swarm init --advertise-addr 10.77.0.1 --data-path-addr 10.77.0.1 >/dev/null"
    manager=$(guest 1 'docker swarm join-token -q manager')
    token=$(guest 1 'docker swarm join-token -q worker')
    for number in 2 3; do
        await_engine "$number"
        guest "$number" "${find//NUMBER/$number} docker swarm join --token $manager --advertise-addr 10.77.0.$number --data-path-addr 10.77.0.$number 10.77.0.1:2377 >/dev/null"
    done
    for number in 4 5; do
        {
            await_engine "$number"
            guest "$number" "${find//NUMBER/$number} docker swarm join --token $token --advertise-addr 10.77.0.$number --data-path-addr 10.77.0.$number 10.77.0.1:2377 >/dev/null"
        } &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    # shellcheck disable=SC2016 # for the guest
    guest 1 'until [ "$(docker node ls --format "{{.Status}} {{.ManagerStatus}}" | sort | tr "\n" ,)" = "Ready ,Ready ,Ready Leader,Ready Reachable,Ready Reachable," ]; do sleep 0.3; done'
    took=$(since "$start")
    cpu=$(cpu_of "$folder"/*.pid)
    for pid in "${guests[@]}"; do
        kill "$pid"
        while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    done
    guests=()
    rm -rf "$folder"
    say "plain: $took s ($cpu s of processor time)"
}
