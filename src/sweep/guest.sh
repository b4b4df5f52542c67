# Looks for secrets in the files of a guest, and changes nothing there. Called as
#   sh -c SWEEP forge ROOT
# with base64 on standard input: KIND, NAME and VALUE, each on a line, again and again. By its kind a value is
#   value    what no file may hold
#   hash     a wanted password's hash: no file may hold it but the guest's own passwords
#   start    what matches of the shape that comes next begin with; there may be several
#   shape    an extended regular expression, whose blanks may be line ends
# It prints, with tabs in between,
#   found NAME PATH    of a finding; never a value
#   public SHA-256     of a shape's match, without its blanks, in a file that is as its package delivers it
#   done COUNT         at the end: how many values were looked for
# Secrets go from shell to grep through pipes alone: argv is everybody's to read.
set -u
export LC_ALL=C
root=$1
newline='
'
mark=$(printf '\001')
entries=$(base64 -d)

# Passes on the values of those kinds.
of() {
    while IFS= read -r kind && IFS= read -r name && IFS= read -r value; do
        case " $* " in
        *" $kind "*) printf '%s\n' "$value" ;;
        esac
    done
}

# Sets `path` to what `tr '\n\0' '\001\n'` has made a line of.
decode() {
    path=$1
    case $path in
    *"$mark"*)
        path=$(printf '%s.' "$path" | tr '\001' '\n')
        path=${path%.}
        ;;
    esac
}

found() {
    printf 'found\t%s\t%s\n' "$name" "$(printf '%s' "${1#"$root"}" | tr '\n\001' '??')"
}

is_passwords() {
    [ "$1" = "$root/etc/shadow" ] || [ "$1" = "$root/etc/shadow-" ]
}

# Tells whether a file, or what it was compiled from, is as its package delivers it.
is_delivered() {
    file=$1
    case $file in
    */__pycache__/*.cpython-*.pyc)
        file=${1##*/__pycache__/}
        file=${1%/__pycache__/*}/${file%%.cpython-*}.py
        ;;
    esac
    [ -f "$file" ] || return 1
    sum=$(md5sum <"$file" | cut -c 1-32)
    file=${file#"$root/"}
    grep -qsxF -e "$sum  $file" -e "$sum  ${file#usr/}" -- "$root"/var/lib/dpkg/info/*.md5sums
}

look_for_value() {
    printf '%s\n' "$value" | grep -lFZ -f - -- "$@" | tr '\n\0' '\001\n' | while IFS= read -r line; do
        if [ "$kind" != hash ] || ! is_passwords "$line"; then
            found "$line"
        fi
    done
}

# With -z a NUL ends what is matched at once, and the end of a line is a blank like others.
look_for_shape() {
    grep -lzZE -e "$value" -- "$@" | tr '\n\0' '\001\n' | while IFS= read -r line; do
        decode "$line"
        matches=$(grep -zaoE -e "$value" -- "$path" | tr -d ' \t\n\v\f\r' | tr '\0' '\n')
        if is_passwords "$path"; then
            matches=$(printf '%s\n' "$matches" | unwanted)
        fi
        if [ -z "$matches" ]; then
            continue
        fi
        if is_delivered "$path"; then
            printf '%s\n' "$matches" | while IFS= read -r match; do
                printf 'public\t%s\n' "$(printf '%s' "$match" | sha256sum | cut -c 1-64)"
            done
        else
            found "$line"
        fi
    done
}

# Passes on all but the hashes of wanted passwords.
unwanted() {
    while IFS= read -r match; do
        case $newline$wanted$newline in
        *"$newline$match$newline"*) ;;
        *) printf '%s\n' "$match" ;;
        esac
    done
}

look_for_histories() {
    name='a shell history'
    for file in "$1"/.*history "$1"/.lesshst "$1"/.viminfo "$1"/.local/share/fish/fish_history; do
        if [ -f "$file" ] && [ -s "$file" ]; then
            found "$file"
        fi
    done
}

look_for_histories "$root/root"
for home in "$root"/home/*; do
    look_for_histories "$home"
done
cut -d : -f 6 "$root/etc/passwd" | sort -u | while IFS= read -r home; do
    look_for_histories "$root${home%/}"
done

wanted=$(printf '%s\n' "$entries" | of hash)

# What is not on a disk is left out, and what snaps mount: their files cannot be changed.
set --
for top in "$root"/* "$root"/.[!.]*; do
    case ${top#"$root"} in
    /dev | /proc | /run | /snap | /sys) continue ;;
    esac
    if [ -e "$top" ] && [ ! -L "$top" ]; then
        set -- "$@" "$top"
    fi
done

# One pass over everything; what follows only looks at files that hold something. Modules, firmware, kernels and
# their initramfs are compressed, and would hold nothing that is found.
lines=
if [ "$#" -gt 0 ]; then
    lines=$(printf '%s\n' "$entries" | of value hash start | grep -rlFZ --exclude='*.xz' --exclude='*.zst' \
        --exclude='initrd.img-*' --exclude='vmlinuz-*' -f - -- "$@" | tr '\n\0' '\001\n')
fi
set -f
IFS=$newline
# shellcheck disable=SC2086
set -- $lines
unset IFS
set +f
left=$#
while [ "$left" -gt 0 ]; do
    decode "$1"
    shift
    set -- "$@" "$path"
    left=$((left - 1))
done

# Mostly none of them holds a value.
with_value=
if [ "$#" -gt 0 ]; then
    with_value=$(printf '%s\n' "$entries" | of value hash | grep -lF -f - -- "$@")
fi
printf '%s\n' "$entries" | {
    count=0
    while IFS= read -r kind && IFS= read -r name && IFS= read -r value; do
        case $kind in
        value | hash) [ -z "$with_value" ] || look_for_value "$@" ;;
        shape) [ "$#" -eq 0 ] || look_for_shape "$@" ;;
        esac
        count=$((count + 1))
    done
    printf 'done\t%s\n' "$count"
}
