# Installs $packages with apt, and upgrades the others when $upgrade is true. Other users of apt
# are waited for at most $lock_wait seconds: on a fresh guest, its own upgrades may be running.
: "${packages=}" "${upgrade:?}" "${lock_wait:?}"
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l APT_LISTCHANGES_FRONTEND=none
: "${locks:=/var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock}"

# Prints the process that holds a lock of dpkg or apt, if one does.
lock_holder() {
    for lock in $locks; do
        [ -e "$lock" ] || continue
        inode=$(stat -c %i "$lock")
        while read -r _ _ _ _ pid file _; do
            if [ "${file##*:}" = "$inode" ]; then
                echo "$pid ($(cat "/proc/$pid/comm" 2>/dev/null || echo unknown)) holding $lock"
                return 0
            fi
        done </proc/locks
    done
}

wait_for_locks() {
    waited=0
    told=
    while holder=$(lock_holder) && [ -n "$holder" ]; do
        if [ "$waited" -ge "$lock_wait" ]; then
            echo "forge: gave up after $lock_wait s waiting for process $holder"
            exit 100
        fi
        [ "$told" = "$holder" ] || echo "forge: waiting for process $holder"
        told=$holder
        sleep 1
        waited=$((waited + 1))
    done
}

# Runs apt-get without questions; configuration files that were changed here stay.
apt() {
    wait_for_locks
    apt-get --quiet --yes -o DPkg::Lock::Timeout=60 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

update() {
    for pause in 1 5 10 20 0; do
        ! apt update --error-on=any || return 0
        [ "$pause" = 0 ] || echo "forge: the package lists could not be fetched; again in $pause s"
        sleep "$pause"
    done
    echo 'forge: the package lists could not be fetched'
    return 100
}

missing=
for package in $packages; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ] && [ "$upgrade" != true ]; then
    echo "forge: already installed: $packages"
    exit 0
fi
update
if [ "$upgrade" = true ]; then
    apt full-upgrade
fi
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086
    apt install $missing
fi
