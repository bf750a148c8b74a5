# Overwrites files where they lie, so that no freed block holds what was in them, and removes them.
forge_wipe() {
  for file in "$@"; do
    [ -f "$file" ] || continue
    size=$(wc -c <"$file")
    [ "$size" -eq 0 ] || dd if=/dev/zero of="$file" bs="$size" count=1 conv=notrunc,fsync 2>/dev/null
    rm -f "$file"
  done
}
forge_install() {
  set -eu
  umask 077
  root=$forge_root
  ssh=$root/etc/ssh
  own=$ssh/forge_own_ed25519_key
  key=$ssh/ssh_host_ed25519_key
  first=$ssh/forge_first_key
  # Where cloud-init read the seed, it ends first: its last stages read what is removed here, and count as
  # failed without it. result.json is its last word (cloudinit.readthedocs.io, reference/cli, status).
  waited=0
  while [ -z "$root" ] && [ -e /run/cloud-init/status.json ] && [ ! -e /run/cloud-init/result.json ] && [ "$waited" -lt 120 ]; do
    sleep 1
    waited=$((waited + 1))
  done
  # Before anything is removed: no later boot may run cloud-init again, which would bring the first key back.
  if [ -d "$root/etc/cloud" ] && [ ! -e "$root/etc/cloud/cloud-init.disabled" ]; then
    : >"$root/etc/cloud/cloud-init.disabled"
  fi
  if [ ! -e "$ssh/forge_own_installed" ]; then
    if [ -s "$own" ]; then
      # The pending pair stays until both halves are in place: a cut between the lines is repaired by the next run.
      cp "$own.pub" "$key.pub.new"
      chmod 644 "$key.pub.new"
      cp "$own" "$key.new"
      chmod 600 "$key.new"
      # The first key keeps a name until it is overwritten. A run that was cut off has named it already.
      [ ! -e "$key" ] || [ -e "$first" ] || ln "$key" "$first"
      mv -f "$key.pub.new" "$key.pub"
      mv -f "$key.new" "$key"
      sync
    else
      echo "there is no pending host key" >&2
      return 1
    fi
    : >"$ssh/forge_own_installed"
    sync
  fi
  forge_wipe "$first"
  rm -f "$own" "$own.pub" "$own.new" "$own.new.pub" "$key.new" "$key.pub.new" "$key-cert.pub"
  for other in rsa ecdsa dsa; do
    rm -f "$ssh/ssh_host_${other}_key" "$ssh/ssh_host_${other}_key.pub" "$ssh/ssh_host_${other}_key-cert.pub"
  done
  # What first boot kept of the seed. Globs that match nothing stay as they are and remove nothing.
  forge_wipe "$root"/var/lib/cloud/instances/*/user-data* "$root"/var/lib/cloud/instances/*/cloud-config* \
    "$root"/var/lib/cloud/instances/*/obj.pkl
  rm -rf "$root"/var/lib/cloud/instance/user-data* "$root"/var/lib/cloud/instances/*/user-data* \
    "$root"/var/lib/cloud/instance/vendor-data* "$root"/var/lib/cloud/instances/*/vendor-data* \
    "$root"/var/lib/cloud/instance/cloud-config* "$root"/var/lib/cloud/instances/*/cloud-config* \
    "$root"/var/lib/cloud/instance/obj.pkl "$root"/var/lib/cloud/instances/*/obj.pkl \
    "$root"/var/lib/cloud/instance/combined-cloud-config* "$root"/var/lib/cloud/instances/*/combined-cloud-config* \
    "$root"/var/lib/cloud/seed "$root"/run/cloud-init/combined-cloud-config* "$root"/run/cloud-init/instance-data* \
    "$root"/run/cloud-init/cloud-config* "$root"/run/cloud-init/seed "$root"/run/forge-seed
  sync
  # sshd reads its keys when it starts and again on SIGHUP; sessions are processes of their own and stay.
  # Checked first: a server that cannot start again would lock everybody out.
  if [ -z "$root" ]; then
    sshd=$(command -v sshd || echo /usr/sbin/sshd)
    if [ -d /run/systemd/system ]; then
      mkdir -p /run/sshd
      "$sshd" -t
      systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service 2>/dev/null ||
        systemctl is-active -q ssh.socket sshd.socket
    elif [ -s /run/sshd.pid ]; then
      "$sshd" -t
      kill -HUP "$(cat /run/sshd.pid)"
    fi
  fi
}
forge_install
