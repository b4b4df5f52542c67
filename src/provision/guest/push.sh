# Sends to forge what a script prints, while it does. Called as sh -c PUSH forge FOLDER; FOLDER/push
# tells curl where to. What does not get there is not lost: it is in the log, which forge reads, too.
folder=$1
tries=0
# Most scripts have ended after a second, and are not worth it.
until sleep 1 && [ -e "$folder/pid" ] || [ "$tries" -ge 30 ]; do
    tries=$((tries + 1))
done
[ ! -e "$folder/code" ] && read -r pid _ <"$folder/pid" || exit 0
tail --follow --bytes=+1 --sleep-interval=0.2 --pid="$pid" "$folder/log" | curl --config "$folder/push"
