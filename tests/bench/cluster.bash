# Five nodes from nothing, beside a plain script; then the same words again; and the memory it takes.
# shellcheck shell=bash disable=SC2154

# shellcheck source=tests/bench/plain-swarm.bash
. "$here/plain-swarm.bash"

# forge_up: a cluster in a fresh store; sets `took`, `cpu`, `again` and `peak`.
forge_up() {
    local start pid line
    fresh_store
    start=$(now)
    FORGE_HOME=$store "$FORGE" cluster up bench --managers 3 --workers 2 --qemu-accel tcg --json >"$scratch/up.log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        line=$(grep VmHWM "/proc/$pid/status" 2>/dev/null) && [ -n "$line" ] && peak=$(awk '{ printf "%.0f", $2 / 1024 }' <<<"$line")
        sleep 0.2
    done
    wait "$pid" || { tail -n 20 "$scratch/up.log" >&2; die "cluster up failed"; }
    took=$(since "$start")
    cpu=$(cpu_of "$store"/drivers/qemu/*/vm.pid)
    sleep 5
    start=$(now)
    FORGE_HOME=$store "$FORGE" cluster up bench --managers 3 --workers 2 --qemu-accel tcg --json >"$scratch/up.log"
    again=$(since "$start")
    grep '"event":"summary"' "$scratch/up.log" | grep -q '"changed":0[,}]' || die "the second up changed something"
    remove_all "$store"
    rm -rf "$store"
    say "forge: $took s ($cpu s of processor time), again $again s, peak $peak MB"
}

plain_base
ours=() plains=() agains=() peaks=() our_cpu=() plain_cpu=()
for ((round = 0; round < rounds; round++)); do
    for who in forge plain plain forge; do
        if [ "$who" = forge ]; then
            forge_up
            ours+=("$took") our_cpu+=("$cpu") agains+=("$again") peaks+=("$peak")
        else
            plain_swarm
            plains+=("$took") plain_cpu+=("$cpu")
        fi
    done
done
note "plain script, 3 managers and 2 workers, s" "$(median "${plains[@]}")"
note "forge cluster up --managers 3 --workers 2, s" "$(median "${ours[@]}")"
note "  processor time of the guests, plain and forge, s" "$(median "${plain_cpu[@]}") $(median "${our_cpu[@]}")"
result "  ratio" "$(ratio "$(median "${ours[@]}")" "$(median "${plains[@]}")")" 1.10
result "the same words again, nothing changed, s" "$(median "${agains[@]}")" 15
result "peak memory of cluster up, MB" "$(median "${peaks[@]}")" 100
