# Prints how a script is doing and what it has printed. Called as
#   sh -c POLL forge FOLDER OFFSET LIMIT
# The first line is STATE CODE LINE COUNT, the second COUNT bytes of output as base64: not every
# communicator brings all bytes through. It is asked whether the runner lives before its exit code
# is read, and that before the output is measured: so an exit code is never missed, and what comes
# with it is all.
folder=$1 offset=$2 limit=$3
code=- line=- state=running size=0
if [ ! -d "$folder" ]; then
    echo 'missing - - 0'
    exit 0
fi
if [ -e "$folder/pid" ]; then
    read -r pid _ <"$folder/pid"
    kill -0 "$pid" 2>/dev/null || state=lost
fi
if [ -e "$folder/code" ]; then
    state=ended
    read -r code <"$folder/code"
    [ ! -s "$folder/line" ] || read -r line <"$folder/line"
fi
[ ! -e "$folder/log" ] || size=$(stat -c %s "$folder/log")
count=$((size - offset))
[ "$count" -le "$limit" ] || count=$limit
echo "$state $code $line $count"
[ "$count" -eq 0 ] || tail -c "+$((offset + 1))" "$folder/log" | head -c "$count" | base64 -w 0
