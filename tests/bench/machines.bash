# Lists of many machines, half of which are silent: made as docker-machine had them, on a network of their own, and imported.
# shellcheck shell=bash disable=SC2154

cargo build --quiet --locked --release --manifest-path "$here/../../Cargo.toml" -p forge-lab --bin old-machines >&2
engines=${CARGO_TARGET_DIR:-$here/../../target}/release/old-machines
times=$("$here/../lab/with-blackholes" "$here/silent" "$engines" "$scratch" "$rounds") || die 'no list of many machines was made'
while read -r what took bar; do
    result "forge ${what//_/ }" "$took" "$bar"
done <<<"$times"
