# Adopting a Debian host that has an engine, beside a restart of that engine there.
# shellcheck shell=bash disable=SC2154

fresh_store
home=$store
FORGE_HOME=$home "$FORGE" create --json --qemu-accel tcg host >"$home/create.log"
there() { FORGE_HOME=$home "$FORGE" ssh host -- "$1"; }

# What forge made of its machine goes: a plain host with Debian's engine, to which nobody is logged in.
there "sudo sh -c '
nft delete table inet forge 2>/dev/null
rm -rf /etc/systemd/system/docker.service.d /etc/docker/forge.env /etc/docker/tls /etc/docker/daemon.json /var/lib/forge
systemctl daemon-reload
systemctl restart docker'"
print=$(there 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' | awk '{ print $2 }')
FORGE_HOME=$home "$FORGE" ssh-config host >"$home/ssh-config"
address=$(awk '$1 == "HostName" { print $2 }' "$home/ssh-config")
port=$(awk '$1 == "Port" { print $2 }' "$home/ssh-config")

restart() {
    there "sudo sh -c '
start=\$(date +%s%N)
systemctl restart docker
end=\$(date +%s%N)
echo \$(((end - start) / 1000000))'" | awk '{ printf "%.3f\n", $1 / 1000 }'
}

# adopted: the seconds of one `create` from a store of its own; the host is left again.
adopted() {
    local guest start
    guest=$(mktemp -d "$scratch/XXXX")
    start=$(now)
    FORGE_HOME=$guest "$FORGE" create --json --driver generic --generic-ip-address "$address" \
        --generic-ssh-port "$port" --generic-ssh-user forge --generic-ssh-key "$home/machines/host/id_ed25519" \
        --generic-ssh-config none --generic-host-key "$print" n1 >"$home/adopt.log" || die "$(<"$home/adopt.log")"
    since "$start"
    FORGE_HOME=$guest "$FORGE" rm -y n1 >"$home/leave.log" 2>&1 || die "$(<"$home/leave.log")"
}

sleep 10 # what boot left to do
restarts=() adoptions=()
for ((round = 0; round < rounds; round++)); do
    restarts+=("$(restart)")
    adoptions+=("$(adopted)")
done
remove_all "$home"
restarted=$(median "${restarts[@]}")
note 'systemctl restart docker, seconds' "$restarted"
took=$(median "${adoptions[@]}")
note 'create --driver generic, seconds' "$took"
result 'adopt: create / (1.5 x restart of the engine + 2 s)' \
    "$(ratio "$took" "$(awk -v r="$restarted" 'BEGIN { print 1.5 * r + 2 }')")" 1.0
