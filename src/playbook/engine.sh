forge_child() {
  forge_flush
  timeout -k 5 "$1" sh /proc/self/fd/3 3<<FORGE_CHILD
exec 3<&-
forge_nonce=$forge_nonce
forge_run=$forge_run
forge_state=$forge_state
forge_unit_names='$forge_unit_names'
$forge_library
$forge_secrets
$2
$3
FORGE_CHILD
}
forge_end() {
  forge_flush
  printf '\n@%s end %s %s\n' "$forge_nonce" "$forge_step" "$1"
  forge_step=
}
# A step that printed nothing may be reported together with the next: every write is a packet, and a packet
# costs the machine as much as a step.
forge_quietly() {
  forge_pending="$forge_pending$forge_nl@$forge_nonce end $forge_step $1$forge_nl"
  forge_step=
}
forge_flush() {
  [ -z "$forge_pending" ] || printf '%s' "$forge_pending"
  forge_pending=
}
forge_fail() {
  forge_end "failed $1"
  exit 1
}
forge_leave() {
  forge_rc=$?
  trap - EXIT
  [ -z "$forge_step" ] || forge_end "failed exit $forge_rc"
  forge_flush
  [ -z "$forge_changed" ] || sync
  forge_frame "done"
  exit "$forge_rc"
}
forge_inline() {
  forge_flush
  eval "$1"
}
forge_begin() {
  forge_step=$1
  forge_when= forge_touches= forge_own= forge_check= forge_check_deadline= forge_apply=
  forge_deadline=60 forge_every= forge_for=0 forge_why= forge_as_found= forge_former=
}
forge_skipped() {
  [ -n "$forge_when" ] || return 1
  if forge_inline "$forge_when"; then return 1; fi
  forge_end skipped
}
forge_holds() {
  if [ -n "$forge_own" ]; then
    case $forge_noted in *" $forge_own "*) return 1 ;; esac
    [ ! -e "$forge_state/$forge_own" ] || return 1
  fi
  forge_checked
}
forge_checked() {
  [ -n "$forge_check" ] || return 0
  if [ -n "$forge_check_deadline" ]; then
    forge_child "$forge_check_deadline" : "$forge_check"
  else
    forge_inline "$forge_check"
  fi
}
forge_note() {
  forge_changed=1
  [ -n "$forge_touches" ] || return 0
  if [ -z "$forge_dry" ]; then
    [ -d "$forge_state" ] || mkdir -p "$forge_state" || forge_fail "exit $?"
  fi
  for forge_due in $forge_touches; do
    forge_noted="$forge_noted$forge_due "
    [ -n "$forge_dry" ] || : >"$forge_state/$forge_due" || forge_fail "exit $?"
  done
}
forge_pretend() {
  forge_note
  forge_changed= forge_would=1
  forge_end would-change
}
forge_uptime() {
  forge_time=0
  read -r forge_time forge_rest </proc/uptime
  forge_time=${forge_time%%.*}
}
forge_until() {
  forge_uptime
  forge_stop=$((forge_time + forge_for))
  while :; do
    "$1"
    case $? in 0) return 0 ;; 99) return 1 ;; esac
    [ -n "$forge_every" ] || return 1
    forge_uptime
    [ "$forge_time" -lt "$forge_stop" ] || return 1
    sleep "$forge_every"
    forge_units= forge_seen=' '
    forge_frame try
  done
}
forge_isolated() {
  forge_child "$forge_deadline" 'set -eu' "$1"
  forge_rc=$?
  forge_why="exit $forge_rc"
  return "$forge_rc"
}
forge_try_apply() {
  forge_units= forge_sums= forge_seen=' '
  forge_isolated "$forge_apply" || return
  forge_why=check
  forge_checked
}
forge_try_check() {
  forge_why=check
  forge_checked
}
forge_try_read() { forge_isolated "$forge_apply"; }
forge_assert() {
  if forge_skipped; then return; fi
  if forge_until forge_try_check; then forge_end ok; return; fi
  if [ -n "$forge_would" ]; then forge_end skipped; return; fi
  forge_fail "$forge_why"
}
forge_query() {
  if forge_skipped; then return; fi
  forge_until forge_try_read || forge_fail "$forge_why"
  forge_end ok
}
forge_shell() {
  if forge_skipped; then return; fi
  if forge_holds; then forge_end ok; return; fi
  if [ -n "$forge_dry" ]; then forge_pretend; return; fi
  forge_note
  forge_frame try
  forge_until forge_try_apply || forge_fail "$forge_why"
  if [ -n "$forge_own" ] && [ -e "$forge_state/$forge_own" ]; then
    rm -f "$forge_state/$forge_own" || forge_fail "exit $?"
  fi
  forge_end changed
}
forge_snapshot() {
  forge_sums=$forge_nl forge_stats=$forge_nl
  [ -z "$forge_files" ] || forge_sums="$forge_nl$(sha256sum $forge_files 2>/dev/null)$forge_nl"
  [ -z "$forge_paths" ] || forge_stats="$forge_nl$(stat -c '%a %U:%G %n' $forge_paths 2>/dev/null)$forge_nl"
}
forge_as_wished() {
  [ -n "$forge_sums" ] || forge_snapshot
  if [ -n "$forge_sum" ]; then
    case $forge_sums in *"$forge_nl$forge_sum  $forge_path$forge_nl"*) ;; *) return 1 ;; esac
  fi
  case $forge_stats in
    *"$forge_nl$forge_mode $forge_owner $forge_path$forge_nl"*) return 0 ;;
    *" $forge_path$forge_nl"*) [ -n "$forge_as_found" ] ;;
    *) return 1 ;;
  esac
}
forge_ensure() {
  if forge_skipped; then return; fi
  if forge_as_wished; then forge_quietly ok; return; fi
  if [ -n "$forge_dry" ]; then forge_pretend; return; fi
  forge_flush
  forge_note
  if [ -n "$forge_sum" ]; then forge_write; else forge_mkdir; fi || forge_fail "exit $?"
  forge_end changed
}
# What was there before the first change is kept until somebody takes it away.
forge_put_aside() {
  [ -n "$forge_former" ] || return 0
  if [ -e "$forge_former" ] || [ -e "$forge_former.none" ]; then return 0; fi
  [ -d "${forge_former%/*}" ] || mkdir -p -m 700 "${forge_former%/*}" || return
  if [ -e "$forge_path" ]; then
    cp -p "$forge_path" "$forge_former.new" && mv -f "$forge_former.new" "$forge_former"
  else
    : >"$forge_former.none"
  fi
}
forge_mkdir() {
  mkdir -p "$forge_path" && chown "$forge_owner" "$forge_path" && chmod "$forge_mode" "$forge_path"
}
forge_write() {
  forge_folder=${forge_path%/*}
  [ -d "$forge_folder" ] || mkdir -p "$forge_folder" || return
  forge_new=$forge_folder/.forge.${forge_path##*/}
  if [ -e "$forge_new" ] || [ -L "$forge_new" ]; then rm -f "$forge_new" || return; fi
  if [ -d "$forge_path" ]; then printf '%s is a folder\n' "$forge_path"; return 1; fi
  forge_put_aside || return
  if [ -n "$forge_as_found" ] && [ -e "$forge_path" ]; then
    forge_chmod=1
    forge_mode=$(stat -c %a "$forge_path") && forge_owner=$(stat -c %u:%g "$forge_path") || return
  fi
  umask "$forge_umask"
  printf '%s' "$forge_content" >"$forge_new"
  forge_rc=$?
  umask 022
  [ "$forge_rc" = 0 ] || { rm -f "$forge_new"; return "$forge_rc"; }
  [ "$forge_owner" = root:root ] || chown "$forge_owner" "$forge_new" || return
  [ -z "$forge_chmod" ] || chmod "$forge_mode" "$forge_new" || return
  mv -f "$forge_new" "$forge_path"
}
