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
fail() { printf '%s\n' "$1"; return 1; }
running() { [ -L "/run/systemd/units/invocation:$1" ]; }
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
