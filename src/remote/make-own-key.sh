forge_make() {
  set -eu
  umask 077
  ssh=$forge_root/etc/ssh
  own=$ssh/forge_own_ed25519_key
  if [ -e "$ssh/forge_own_installed" ]; then
    cat "$ssh/ssh_host_ed25519_key.pub"
    return
  fi
  if [ ! -s "$own" ] || [ ! -s "$own.pub" ]; then
    rm -f "$own" "$own.pub" "$own.new" "$own.new.pub"
    ssh-keygen -q -t ed25519 -N '' -C '' -f "$own.new" </dev/null
    mv -f "$own.new.pub" "$own.pub"
    mv -f "$own.new" "$own"
    sync
  fi
  cat "$own.pub"
}
forge_make
