# Starts a script detached from the guest agent. Called as
#   sh -c START forge FOLDER RUNNER PUSH INTERPRETER…
# with two lines of base64 (the environment, as shell text, and settings for PUSH, if it is to run)
# and then the script on standard input; an empty script means that its parts lie in FOLDER already.
# Calling it again changes nothing: the answer to the first call may have been lost.
set -eu
umask 077
folder=$1 runner=$2 push=$3
shift 3
mkdir -p "$folder"
input=$(mktemp -d "$folder/input.XXXXXX")
IFS= read -r environment
printf '%s' "$environment" | base64 -d >"$input/env"
IFS= read -r settings
printf '%s' "$settings" | base64 -d >"$input/push"
cat >"$input/script"
mkdir "$folder/claim" 2>/dev/null || exit 0
if [ ! -s "$input/script" ] && [ -e "$folder/part-000000" ]; then
    cat "$folder"/part-* >"$input/script"
    rm -f "$folder"/part-*
fi
chmod 700 "$input/script"
mv "$input/env" "$input/script" "$input/push" "$folder/"
: >"$folder/log"
# A scope of its own keeps the script alive when the guest agent's service restarts, as it does
# while its own package is upgraded. Without systemd a session of its own has to do.
# shellcheck disable=SC2016
setsid sh -c '
    folder=$1
    unit=forge-${folder##*/}.scope
    if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
        systemd-run --quiet --collect --scope --description=forge --unit="$unit" sh -c "$2" "$@"
    fi
    [ -e "$folder/pid" ] || sh -c "$2" "$@"
' forge "$folder" "$runner" "$@" </dev/null >>"$folder/log" 2>&1 &
# It belongs to no script: it ends by itself once the script has.
if [ -s "$folder/push" ] && command -v curl >/dev/null; then
    setsid sh -c "$push" forge "$folder" </dev/null >/dev/null 2>&1 &
fi
