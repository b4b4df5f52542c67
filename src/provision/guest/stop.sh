# Ends what is left of a script, politely, then by force, and removes its folder. Called as
# sh -c STOP forge FOLDER. Prints how many processes it found.
folder=$1
session=none
[ ! -e "$folder/pid" ] || read -r _ session <"$folder/pid"
scope=/sys/fs/cgroup/system.slice/forge-${folder##*/}.scope/cgroup.procs
# Processes of the script's session, and those of its scope that have left the session.
members() {
    for process in /proc/[0-9]*; do
        IFS= read -r stat 2>/dev/null <"$process/stat" || continue
        # shellcheck disable=SC2086
        set -- ${stat##*) }
        if [ "$4" = "$session" ] && [ "$1" != Z ]; then
            echo "${process#/proc/}"
        fi
    done
    [ ! -e "$scope" ] || cat "$scope"
}
found=$(members | sort -u)
# shellcheck disable=SC2086
echo $found | wc -w
for signal in TERM KILL; do
    tries=0
    while found=$(members) && [ -n "$found" ] && [ "$tries" -lt 30 ]; do
        # shellcheck disable=SC2086
        [ "$tries" -gt 0 ] || kill -s "$signal" $found 2>/dev/null
        tries=$((tries + 1))
        sleep 0.1
    done
done
rm -rf -- "$folder"
rmdir -- "${folder%/*}" 2>/dev/null
exit 0
