# Sourced by the benchmarks: a folder of their own, clocks, medians, the table of results.
# shellcheck shell=bash

unset FORGE_HOME MACHINE_STORAGE_PATH DOCKER_HOST DOCKER_CERT_PATH DOCKER_TLS_VERIFY
results=

say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# The folder of this run: every store of it lies in it, and what runs in those is ended with it.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/forge-bench.XXXXXX")
guests=()
folders=()
sweep() {
    local home pid
    for pid in "${guests[@]}"; do
        kill -KILL "$pid" 2>/dev/null || :
    done
    guests=()
    for home in "$scratch"/*/store.json; do
        [ -e "$home" ] || continue
        remove_all "${home%/store.json}"
    done
    rm -rf "$scratch" "${folders[@]}"
}
trap sweep EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Removes the machines and clusters of a store.
remove_all() {
    local folder
    for folder in "$1"/clusters/*/; do
        [ ! -d "$folder" ] || FORGE_HOME=$1 "$FORGE" cluster down -y "$(basename "$folder")" >/dev/null 2>&1 || :
    done
    for folder in "$1"/machines/*/; do
        [ ! -d "$folder" ] || FORGE_HOME=$1 "$FORGE" rm -f -y "$(basename "$folder")" >/dev/null 2>&1 || :
    done
}

now() { printf '%s\n' "$EPOCHREALTIME"; }

# since START: the seconds that have passed.
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", b - a }'; }

# median NUMBER…
median() {
    printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2; else exit 1 }'
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f\n", a / b }'; }

# result WHAT VALUE BAR: one line of the table; BAR is the most that is allowed.
result() {
    local verdict
    verdict=$(awk -v v="$2" -v b="$3" 'BEGIN { print v + 0 <= b + 0 ? "" : "  missed" }')
    results+=$(printf '%-62s %10s %10s%s' "$1" "$2" "<= $3" "$verdict")$'\n'
    printf '%-62s %10s %10s%s\n' "$1" "$2" "<= $3" "$verdict"
}

# note WHAT VALUE: a line without a bar.
note() {
    results+=$(printf '%-62s %10s' "$1" "$2")$'\n'
    printf '%-62s %10s\n' "$1" "$2"
}

# The image, made once and kept.
image_is_there() {
    [ -x "$FORGE" ] || die "there is no program \`$FORGE\`: run \`make build\`, or name one in FORGE"
    mkdir -p "$BENCH_HOME"
    if [ ! -e "$(image_folder)/image.json" ]; then
        say "building the base image (once, kept in $BENCH_HOME)"
        FORGE_HOME=$BENCH_HOME/store "$FORGE" image build >&2
    fi
    [ -e "$(image_folder)/image.json" ] || die "no image was built"
}

# The folder of the newest image.
image_folder() {
    local each newest=
    for each in "$BENCH_HOME"/store/images/forge-debian-12-*/; do
        [ -z "$newest" ] || [ "$each" -nt "$newest" ] || continue
        newest=${each%/}
    done
    printf '%s\n' "$newest"
}

# fresh_store: a new store with the image in it; its path is in `store`. Links cost no time; across file
# systems it is a copy.
fresh_store() {
    store=$(mktemp -d "$scratch/XXXX")
    chmod 0700 "$store"
    mkdir -m 0700 "$store/images"
    cp -al "$(image_folder)" "$store/images/" 2>/dev/null || cp -a "$(image_folder)" "$store/images/"
}

# cpu_of PIDFILE…: the processor time that these guests have used, in seconds. Under emulation it is what a
# boot costs, whatever else the host does.
cpu_of() {
    local file
    for file in "$@"; do
        sed 's/.*) //' "/proc/$(<"$file")/stat"
    done | awk -v tick="$(getconf CLK_TCK)" '{ sum += $12 + $13 } END { printf "%.0f\n", sum / tick }'
}
