forge_nl='
'
forge_frame() { printf '\n@%s %s\n' "$forge_nonce" "$1"; }
output() {
  forge_rest=$2
  while :; do
    forge_frame "out $1 ${forge_rest%%"$forge_nl"*}"
    case $forge_rest in
      *"$forge_nl"*) forge_rest=${forge_rest#*"$forge_nl"} ;;
      *) return 0 ;;
    esac
  done
}
# What the step waits for is told at once.
waits() { forge_frame "wait $1"; }
# What would fail again and again: a step is not tried again.
fail() { printf '%s\n' "$1"; return 99; }
running() { [ -L "$forge_run/systemd/units/invocation:$1" ]; }
by_systemd() { [ -d "$forge_run/systemd/system" ]; }
service_running() {
  if by_systemd; then running "$1.service"; else rc-service -q "$1" status >/dev/null 2>&1; fi
}
# It went down, or did not start, by itself: nobody stopped it.
service_failed() {
  if by_systemd; then
    systemctl is-failed -q "$1.service"
  else
    case $(rc-service "$1" status 2>&1) in *crashed*) ;; *) return 1 ;; esac
  fi
}
service_enabled() {
  if by_systemd; then
    [ -L "/etc/systemd/system/multi-user.target.wants/$1.service" ]
  else
    [ -e "/etc/runlevels/default/$1" ] || [ -L "/etc/runlevels/default/$1" ]
  fi
}
service_enable() {
  if by_systemd; then
    systemctl enable -q "$1.service"
    systemctl enable -q "$1.socket" 2>/dev/null || :
  else
    rc-update -q add "$1" default
  fi
}
# Nobody starts it until the shell of this step ends, however it does. What a kill leaves, the next restart takes away:
# the note lies where masks of this kind do, so that both are gone after a reboot.
service_hold() {
  by_systemd || return 0
  forge_held=$1
  trap 'service_free "$forge_held"' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  : >"$forge_run/forge.$1.held"
  systemctl mask --runtime -q "$1.service" "$1.socket"
}
service_free() {
  by_systemd || return 0
  systemctl unmask --runtime -q "$1.service" "$1.socket"
  rm -f "$forge_run/forge.$1.held"
}
service_restart() {
  if by_systemd; then
    [ ! -e "$forge_run/forge.$1.held" ] || service_free "$1"
    if service_running "$1"; then
      timeout 300 systemctl restart "$1.service" && return
      [ $? != 124 ] || return
    fi
    # After several starts in a row systemd refuses further ones.
    systemctl reset-failed "$1.service" "$1.socket" 2>/dev/null || :
    timeout 300 systemctl restart "$1.service"
  else
    timeout 300 rc-service "$1" restart
  fi
}
service_reload() {
  if by_systemd; then
    systemctl reload "$1.service"
  else
    kill -HUP "$(cat "$forge_run/$1.pid")"
  fi
}
# Its last lines: so many, of so many letters each.
service_log() {
  if by_systemd; then
    journalctl -u "$1.service" -n "${2:-25}" --no-pager -o cat | cut -c "1-${3:-300}" || :
  else
    tail -n "${2:-25}" "/var/log/$1.log" | cut -c "1-${3:-300}" || :
  fi
}
# Runs a program: what it says comes through, and stays in `forge_heard`. One whose end nobody saw has failed.
heard() {
  forge_file=$(mktemp) || return
  { "$@" 2>&1 && echo 0 >"$forge_file.rc" || echo $? >"$forge_file.rc"; } | tee "$forge_file"
  forge_heard=$(cat "$forge_file")
  forge_rc=$(cat "$forge_file.rc") || forge_rc=1
  rm -f "$forge_file" "$forge_file.rc"
  return "$forge_rc"
}
# It could not look everywhere: what it does not know of may be there all the same. apt and apk are content with that, the
# others sometimes.
heard_of_network() {
  case $forge_heard in
    *'Failed to fetch'* | *'Temporary failure'* | *'Some index files failed'*) ;;
    *'Failed to download'* | *'Ignoring repositories'* | *'Curl error'* | *'ould not resolve'*) ;;
    *'Could not retrieve mirrorlist'* | *'Cannot find a valid baseurl'*) ;;
    *'Skipping repository'* | *'have not been refreshed'*) ;;
    *'WARNING: '*://* | *'temporary error'* | *'try again later'*) ;;
    *) return 1 ;;
  esac
}
# apt-get, once nobody else holds a lock of its or of dpkg's: a first boot, unattended upgrades. Its own setting for that
# knows the lock of dpkg's alone, and older ones have none.
apt_get() {
  read -r apt_until apt_rest </proc/uptime
  apt_until=$((${apt_until%%.*} + 300))
  until heard apt-get -q "$@"; do
    read -r apt_now apt_rest </proc/uptime
    case $forge_heard in *'Could not get lock '*) ;; *) return 1 ;; esac
    [ "${apt_now%%.*}" -lt "$apt_until" ] || return 1
    apt_held="${forge_heard#*Could not get lock }"
    waits "another program holds the lock ${apt_held%%"$forge_nl"*}"
    sleep 2
  done
}
# Whether it has live-restore, its state in a swarm, how many containers run and pause; then what else is asked for. Some
# versions of the client say nothing of that, and are content, where nobody answers.
engine_state() {
  forge_info=$(timeout 20 docker -H unix:///var/run/docker.sock info -f \
    "{{.LiveRestoreEnabled}} {{.Swarm.LocalNodeState}} {{.ContainersRunning}}{{.ContainersPaused}}${1-}" 2>/dev/null) || return
  case ${forge_info%%"$forge_nl"*} in *'  '*) return 1 ;; esac
  printf '%s\n' "$forge_info"
}
# The same, once an engine that has just started answers; one that hangs is not asked again.
engine_says() {
  forge_tries=0
  until forge_said=$(engine_state "${1-}"); do
    [ $? = 1 ] || return 1
    forge_tries=$((forge_tries + 1))
    [ "$forge_tries" -lt 10 ] || return 1
    sleep 1
  done
  printf '%s\n' "$forge_said"
}
# The engine reads its file again: true once its live-restore is `$1`.
engine_takes_over() {
  service_reload docker || return 1
  forge_tries=0
  while forge_said=$(engine_state) || forge_said=; [ "${forge_said%% *}" != "$1" ]; do
    forge_tries=$((forge_tries + 1))
    [ "$forge_tries" -lt 20 ] || return 1
    sleep 0.5
  done
}
engine_restart() {
  service_restart docker || return 1
  if by_systemd; then return 0; fi
  # OpenRC counts a service as started before it answers, and a reload that comes before that would end it.
  read -r forge_until forge_rest </proc/uptime
  forge_until=$((${forge_until%%.*} + 120))
  while ! engine_state >/dev/null; do
    read -r forge_time forge_rest </proc/uptime
    [ "${forge_time%%.*}" -lt "$forge_until" ] || return 1
    sleep 0.5
  done
}
# A file that is there keeps its mode and its owner.
replace_file() {
  if [ -e "$1" ]; then cp -p "$1" "$1.new"; else : >"$1.new" && chmod 0644 "$1.new"; fi &&
    printf '%s' "$2" >"$1.new" && mv -f "$1.new" "$1"
}
# Whose a host is by the note there; an empty note is nobody's, and whoever comes has it.
claimed_by() {
  forge_claim=
  { IFS= read -r forge_claim </var/lib/forge/before/done; } 2>/dev/null || :
  printf '%s\n' "$forge_claim"
}
# The name of the copy of a file below /etc.
kept_as() { printf 'etc_%s' "${1##*/etc/}" | tr / _; }
forge_units=
unit() {
  [ -n "$forge_units" ] || forge_read_units
  case $forge_units in *" $1.$2=$3 "*) return 0 ;; esac
  return 1
}
forge_read_units() {
  forge_units=' '
  [ -n "$forge_unit_names" ] || return 0
  forge_rest=$(systemctl show -p Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload $forge_unit_names 2>/dev/null) || return 0
  forge_rest=$forge_rest$forge_nl$forge_nl
  while [ -n "$forge_rest" ]; do
    forge_block=${forge_rest%%"$forge_nl$forge_nl"*}
    forge_rest=${forge_rest#*"$forge_nl$forge_nl"}
    forge_id=$forge_nl$forge_block$forge_nl
    forge_id=${forge_id##*"${forge_nl}Id="}
    forge_id=${forge_id%%"$forge_nl"*}
    forge_block=$forge_block$forge_nl
    while [ -n "$forge_block" ]; do
      forge_units="$forge_units$forge_id.${forge_block%%"$forge_nl"*} "
      forge_block=${forge_block#*"$forge_nl"}
    done
  done
}
forge_seen=' '
seen() {
  case $forge_seen in *" $1 "*) return 0 ;; esac
  forge_name=$1
  shift
  forge_value=$("$@" 2>/dev/null) || return
  eval "$forge_name=\$forge_value"
  forge_seen="$forge_seen$forge_name "
}
