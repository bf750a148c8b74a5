# 1 GiB through `forge scp` and through scp itself, one after the other over the same link: this host's own, on which
# nothing but the processors slows either down. SSH_MIB says how much.
# shellcheck shell=bash disable=SC2154

size=${SSH_MIB:-1024}
home=$(mktemp -d "$scratch/XXXX")
sshd=$(PATH=$PATH:/usr/sbin command -v sshd) || die 'sshd is missing: `.ci/setup test` installs it'
# In memory where there is room for the file and two copies.
files=$scratch/files
if [ "$(df --output=avail -m /dev/shm 2>/dev/null | tail -n 1)" -gt $((size * 3 + 512)) ]; then
    files=$(mktemp -d /dev/shm/forge-bench.XXXXXX)
    folders+=("$files")
fi
mkdir -p "$files"

# A machine of the store's own that is a real SSH server on this host: a record that leads there.
at=$scratch/sshd
mkdir -m 0700 "$at"
port=$(awk 'BEGIN { srand(); print 20000 + int(rand() * 10000) }')
machine=$home/machines/one
mkdir -m 0700 "$home/machines" "$machine"
ssh-keygen -q -t ed25519 -N '' -C '' -f "$at/host"
ssh-keygen -q -t ed25519 -N '' -C '' -f "$machine/id_ed25519"
printf '%s\n' "HostKey $at/host" "AuthorizedKeysFile $machine/id_ed25519.pub" 'ListenAddress 127.0.0.1' "Port $port" \
    'PidFile none' 'StrictModes no' 'UsePAM no' 'PasswordAuthentication no' 'PermitRootLogin prohibit-password' \
    'Subsystem sftp internal-sftp' >"$at/sshd_config"
[ "$(id -u)" -ne 0 ] || mkdir -p /run/sshd
"$sshd" -D -e -f "$at/sshd_config" 2>"$at/log" &
server=$!
guests+=("$server")
end="127.0.0.1:$port"
printf '{"format": 2, "id": "%s"}\n' "$(</proc/sys/kernel/random/uuid)" >"$home/store.json"
cat >"$machine/machine.json" <<RECORD
{"format": 2, "name": "one", "claim": "$(</proc/sys/kernel/random/uuid)", "created": "2026-01-01T00:00:00Z", "driver": "qemu",
 "config": {}, "origins": {}, "image": "", "stage": "ready", "member": null, "tls": null,
 "placement": {"loopback": null, "nic": null, "leased": true, "outer_mac": "52:54:00:00:00:01", "ssh": null, "engine": null},
 "ssh": {"user": "$(id -un)", "first_host_key": null, "own_host_key": "$(cut -d' ' -f1,2 "$at/host.pub")"},
 "instance": {"endpoints": {"ssh": "$end", "engine": "$end", "cluster": null, "data": null, "public": null},
  "artefacts": [], "hardware": {}}}
RECORD
tries=0
until FORGE_HOME=$home "$FORGE" ssh one true 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || die "no connection to the SSH server: $(tail -n 3 "$at/log")"
    sleep 0.1
done

head -c "${size}M" /dev/urandom >"$files/file"
FORGE_HOME=$home "$FORGE" ssh-config one >"$at/ssh-config"

# copy NAME COMMAND…: the seconds of a copy, into the times of that name; what comes is what went.
declare -A took
copy() {
    local name=$1 start seconds
    shift
    rm -f "$files/copy"
    start=$(now)
    "$@" || die "no copy by: $*"
    seconds=$(since "$start")
    cmp -s "$files/file" "$files/copy" || die "another file came by: $*"
    took[$name]+="$seconds "
    say "$name: $seconds s"
}

export FORGE_HOME=$home
for ((round = 0; round < rounds; round++)); do
    copy 'scp to' scp -q -F "$at/ssh-config" "$files/file" "one:$files/copy"
    copy 'forge to' "$FORGE" scp -q "$files/file" "one:$files/copy"
    copy 'alone to' "$FORGE" --native-ssh scp -q "$files/file" "one:$files/copy"
    copy 'scp from' scp -q -F "$at/ssh-config" "one:$files/file" "$files/copy"
    copy 'forge from' "$FORGE" scp -q "one:$files/file" "$files/copy"
    copy 'alone from' "$FORGE" --native-ssh scp -q "one:$files/file" "$files/copy"
done
unset FORGE_HOME
for way in to from; do
    # shellcheck disable=SC2086 # numbers
    {
        plain=$(median ${took[scp $way]})
        note "scp of $size MiB $way a machine, s" "$plain"
        result "forge scp ÷ scp, $way a machine" "$(ratio "$(median ${took[forge $way]})" "$plain")" 2
        result "forge scp without OpenSSH ÷ scp, $way a machine" "$(ratio "$(median ${took[alone $way]})" "$plain")" 2
    }
done
rm -rf "$machine" "$files"
kill "$server"
wait "$server" || :
guests=()
