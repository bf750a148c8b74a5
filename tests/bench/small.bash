# What costs time on every command: the start of the program, and a long list.
# shellcheck shell=bash disable=SC2154

times=()
for _ in {1..21}; do
    start=$(now)
    "$FORGE" --version >/dev/null
    times+=("$(since "$start")")
done
result "forge --version, ms" "$(awk -v t="$(median "${times[@]}")" 'BEGIN { printf "%.1f", t * 1000 }')" 10

# A hundred machines as a store holds them, made from one: everything but the disk.
fresh_store
home=$store
FORGE_HOME=$home "$FORGE" create --qemu-accel tcg one >&2
FORGE_HOME=$home "$FORGE" kill one >&2
claim=$(sed -n 's/.*"claim": *"\([^"]*\)".*/\1/p' "$home/machines/one/machine.json")
for number in {1..99}; do
    name=$(printf 'more-%02d' "$number")
    other=$(printf '%s%02d' "${claim%??}" "$number")
    [ "$other" != "$claim" ] || other=${claim%??}ff
    for pair in "machines/one machines/$name" "drivers/qemu/$claim drivers/qemu/$other"; do
        from=$home/${pair% *} to=$home/${pair#* }
        mkdir -m 0700 "$to"
        find "$from" -maxdepth 1 -type f ! -name '*.qcow2' ! -name '*.iso' -exec cp -p {} "$to/" \;
        sed -i "s/$claim/$other/g; s/\"name\": *\"one\"/\"name\": \"$name\"/" "$to"/*.json
    done
done
listed=$(FORGE_HOME=$home "$FORGE" ls -q | wc -l)
[ "$listed" = 100 ] || die "forge ls shows $listed machines, not 100"
times=()
for _ in {1..21}; do
    start=$(now)
    FORGE_HOME=$home "$FORGE" ls >/dev/null
    times+=("$(since "$start")")
done
result "forge ls with 100 stored machines, ms" "$(awk -v t="$(median "${times[@]}")" 'BEGIN { printf "%.1f", t * 1000 }')" 50
# A thousand names, for which no record is read.
for number in {1..900}; do
    mkdir -m 0700 "$home/machines/name-$number"
    cp -p "$home/machines/one/machine.json" "$home/machines/name-$number/"
done
listed=$(FORGE_HOME=$home "$FORGE" ls -q | wc -l)
[ "$listed" = 1000 ] || die "forge ls -q shows $listed machines, not 1000"
times=()
for _ in {1..21}; do
    start=$(now)
    FORGE_HOME=$home "$FORGE" ls -q >/dev/null
    times+=("$(since "$start")")
done
result "forge ls -q with 1000 stored machines, ms" "$(awk -v t="$(median "${times[@]}")" 'BEGIN { printf "%.1f", t * 1000 }')" 30
rm -rf "$home"/machines/more-* "$home"/machines/name-*
for number in {1..99}; do
    rm -rf "$home/drivers/qemu/$(printf '%s%02d' "${claim%??}" "$number")"
done
rm -rf "$home/drivers/qemu/${claim%??}ff"
remove_all "$home"
