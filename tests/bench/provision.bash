# Provisioning three machines: with nothing to change, beside three SSH connections; from nothing, beside
# three restarts of the engine. All three at the same time, always.
# shellcheck shell=bash disable=SC2154

fresh_store
home=$store
names=(a b c)
FORGE_HOME=$home "$FORGE" create --json --qemu-accel tcg "${names[@]}" >"$home/create.log"
FORGE_HOME=$home "$FORGE" ssh-config "${names[@]}" >"$home/ssh-config"

# together COMMAND: on all three by ssh, at the same time, each over a connection of its own.
together() {
    local name pids=()
    for name in "${names[@]}"; do
        ssh -F "$home/ssh-config" -o ControlMaster=no -o ControlPath=none "$name" "$1" </dev/null >/dev/null &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

# living COMMAND: the same over connections that are open already.
living() {
    local name pids=()
    for name in "${names[@]}"; do
        ssh -F "$home/ssh-config" -o ControlPath="$home/%n.ctl" "$name" "$1" </dev/null >/dev/null &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

provision() { FORGE_HOME=$home "$FORGE" provision --json "${names[@]}" >"$home/provision.log"; }
changes() { sed -n 's/.*"changed":\([0-9]*\),"event":"summary".*/\1/p; s/.*"event":"summary","changed":\([0-9]*\).*/\1/p' "$home/provision.log"; }

# seconds COMMAND…
seconds() {
    local start
    start=$(now)
    "$@"
    since "$start"
}

# What provisioning wrote and did is taken back, as far as a running machine can: the state after the
# first contact, the engine not started yet.
undo="sudo sh -c '
systemctl stop docker.service docker.socket
systemctl stop forge-firewall.service
rm -rf /etc/docker/tls /etc/docker/daemon.json /etc/docker/forge.env /etc/forge /var/lib/forge/due \
    /etc/systemd/system/docker.service.d /etc/systemd/system/forge-firewall*.service \
    /etc/systemd/system/*.wants/forge-firewall*.service /etc/modules-load.d/forge.conf /etc/sysctl.d/99-forge.conf
rmmod ip_vs_rr ip_vs br_netfilter vxlan 2>/dev/null
systemctl daemon-reload
sync'"

sleep 10 # what boot left to do
nothing=() connections=()
for ((round = 0; round < 2 * rounds + 1; round++)); do
    connections+=("$(seconds together true)")
    nothing+=("$(seconds provision)")
    [ "$(changes)" = 0 ] || die "there was something to change: $(changes)"
done
note "three fresh SSH connections, s" "$(median "${connections[@]}")"
note "three ready machines provisioned, s" "$(median "${nothing[@]}")"
result "  ratio, nothing to change" "$(ratio "$(median "${nothing[@]}")" "$(median "${connections[@]}")")" 2

for name in "${names[@]}"; do
    ssh -F "$home/ssh-config" -o ControlMaster=yes -o ControlPath="$home/%n.ctl" -o ControlPersist=600 -f -N "$name" >/dev/null 2>&1
done
restarts=() first=()
for ((round = 0; round < rounds; round++)); do
    restarts+=("$(seconds living 'sudo systemctl reset-failed docker.service; sudo systemctl restart docker.service')")
    living "$undo" 2>/dev/null
    sleep 5
    first+=("$(seconds provision)")
    [ "$(changes)" != 0 ] || die "there was nothing to change"
done
for name in "${names[@]}"; do
    ssh -F "$home/ssh-config" -o ControlPath="$home/%n.ctl" -O exit "$name" 2>/dev/null || :
done
restart=$(median "${restarts[@]}")
note "three engine restarts, s" "$restart"
result "three machines provisioned for the first time, s (1.5 × + 3)" "$(median "${first[@]}")" \
    "$(awk -v r="$restart" 'BEGIN { printf "%.3f", 1.5 * r + 3 }')"
note "  the longest provisioning in \`create\`, others still booting, s" \
    "$(sed -n 's/.*"name":"provision".*"seconds":\([0-9.]*\).*/\1/p' "$home/create.log" | sort -g | tail -n 1)"
remove_all "$home"
