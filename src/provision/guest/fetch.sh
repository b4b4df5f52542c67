# Fetches $url to $work/archive, or exits with 75. The URL goes through standard input: whoever
# knows it may fetch it too, and every process may read argv.
: "${url:?}" "${folder:?}" "${work:?}"
mkdir -p -- "$folder"
umask 077
mkdir -p -- "$work"
if command -v curl >/dev/null; then
    printf 'url = "%s"\n' "$url" |
        curl --config - --silent --show-error --fail --retry 3 --output "$work/archive" && exit 0
elif command -v wget >/dev/null; then
    printf '%s\n' "$url" | wget --quiet --tries=3 --input-file=- --output-document="$work/archive" && exit 0
elif command -v python3 >/dev/null; then
    printf '%s\n' "$url" | python3 -c '
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.stdin.readline().strip(), timeout=60) as answer, open(sys.argv[1], "wb") as file:
    shutil.copyfileobj(answer, file)
' "$work/archive" && exit 0
else
    echo 'forge: the guest has neither curl, wget nor python3'
fi
rm -f -- "$work/archive"
exit 75
