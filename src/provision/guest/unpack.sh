# Unpacks an archive in a folder. Called as sh -c UNPACK forge FOLDER WORK SHA256; the archive is
# on standard input when WORK is `-`, else in WORK/archive or in WORK/part-*. WORK is removed at
# the end and only then, so that calling it again after a lost answer works.
set -eu
folder=$1 work=$2 sha256=$3
mkdir -p -- "$folder"
unpack() {
    # Folders that are there keep their modes, and links to folders stay links.
    tar --extract --preserve-permissions --same-owner --no-overwrite-dir --keep-directory-symlink \
        --directory="$folder" --file=-
}
if [ "$work" = - ]; then
    unpack
    exit 0
fi
# Without it, the call before this one did all.
[ -d "$work" ] || exit 0
[ -e "$work/archive" ] || cat "$work"/part-* >"$work/archive"
if ! echo "$sha256  $work/archive" | sha256sum --check --status -; then
    echo "what arrived is not what was sent: expected sha256 $sha256, got" \
        "$(sha256sum <"$work/archive" | cut -d ' ' -f 1)" >&2
    exit 1
fi
unpack <"$work/archive"
rm -rf -- "$work"
