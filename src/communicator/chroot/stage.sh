# Mounts a root where nobody else sees it, and becomes what waits there. Called as
#   sh -c STAGE forge WAY ROOT WRITES WORK INSIDE WAIT
# in a mount namespace of its own; by the way `unshare` as the first process of a PID namespace, too. WORK is
# an empty folder. All that is mounted here ends with the last process that sees it.
set -eu
way=$1 root=$2 writes=$3 work=$4 inside=$5 wait=$6
mount -n -t tmpfs -o mode=0700 forge "$work"
mkdir "$work/root"
if [ "$writes" = kept ]; then
    mount -n --bind "$root" "$work/root"
else
    mkdir "$work/lower" "$work/upper" "$work/index"
    # By a name without colons and commas, which part overlay's options.
    mount -n --bind "$root" "$work/lower"
    mount -n -t overlay -o "lowerdir=$work/lower,upperdir=$work/upper,workdir=$work/index" forge "$work/root"
fi
# Device files that somebody has put into the root open nothing.
mount -n -o remount,bind,nodev "$work/root"

if [ "$way" = systemd-nspawn ]; then
    # It notes there what runs, and would leave that behind when it is killed.
    mkdir -p /run/systemd/nspawn
    mount -n -t tmpfs -o mode=0755 forge /run/systemd/nspawn
    exec systemd-nspawn --quiet --directory="$work/root" --machine="forge-$$" --hostname=localhost --register=no \
        --keep-unit --settings=no --link-journal=no --resolv-conf=off --timezone=off --pipe \
        -- /bin/sh -c "$inside" forge "$wait"
fi

echo localhost >/proc/sys/kernel/hostname
cd "$work/root"
mount -n -t proc -o nosuid,nodev,noexec proc proc
# What is there besides processes is the kernel's own.
failed=$(find proc -mindepth 1 -maxdepth 1 ! -name '[0-9]*' \( -type d -o -type f -perm /222 \) \
    ! -exec mount -n -o bind,ro,nosuid,nodev,noexec {} {} \; -print)
[ -z "$failed" ]
mount -n -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -n -t tmpfs -o nosuid,noexec,mode=0755 forge dev
for device in full null random tty urandom zero; do
    [ -e "/dev/$device" ] || continue
    : >"dev/$device"
    mount -n --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -n -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -n -t tmpfs -o nosuid,nodev,mode=1777 forge dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -n -t tmpfs -o nosuid,nodev,mode=0755 forge run
mount -n -t tmpfs -o nosuid,nodev,mode=1777 forge tmp
# What lay at / before lies below it now, where no path leads.
mount -n --move . /
exec chroot . /bin/sh -c "$inside" forge "$wait"
