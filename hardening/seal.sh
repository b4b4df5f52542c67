#!/bin/sh
# Removes the guest's identity and the traces of its making, and proves that they are gone.
#
# It runs last in the build's guest, which is powered off right afterwards and must not boot again:
# the next boot is a clone's first. What would write again until then is stopped first, logs go
# last. The running guest agent and forge's own folder in /run are left alone.
#
# Environment: USER_NAME; AUTHORIZED_KEYS, the public keys to keep for that user, one a line;
# FORGE_ABSENT, more paths that must be gone, as shell patterns, one a line; FORGE_TRIM, `yes` to
# give free blocks back.
set -eu
export LC_ALL=C

# --- What would write again -------------------------------------------------------------------

# systemd-random-seed and -update-utmp write when they are stopped, so that has to be behind us.
# Masked, for this boot only, no other unit brings them back.
units='apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service
    unattended-upgrades.service man-db.timer logrotate.timer dpkg-db-backup.timer
    systemd-tmpfiles-clean.timer update-notifier-download.timer update-notifier-motd.timer
    motd-news.timer fwupd-refresh.timer fwupd.service snapd.socket snapd.service cron.service
    syslog.socket rsyslog.service systemd-random-seed.service systemd-update-utmp.service'
if [ -d /run/systemd/system ]; then
    # Not every system has all of them.
    # shellcheck disable=SC2086
    systemctl stop $units 2>/dev/null || true
    # shellcheck disable=SC2086
    systemctl mask --quiet --runtime $units 2>/dev/null || true
    # From here on the journal is in memory, and is not brought back to the disk at power-off.
    journalctl --relinquish-var 2>/dev/null || true
fi

# --- cloud-init and the installer -------------------------------------------------------------

# The installer's own hook in clean.d removes most of what it left, but cloud-init returns before
# its hooks when its state is missing.
if command -v cloud-init >/dev/null; then
    mkdir -p /var/lib/cloud
    # 23.4 and later know --configs; what it would remove is in the list below as well.
    cloud-init clean --logs --seed --configs all || cloud-init clean --logs --seed
fi
rm -f /etc/cloud/clean.d/99-installer
rm -f /etc/cloud/cloud-init.disabled /etc/cloud/ds-identify.cfg
rm -f /etc/cloud/cloud.cfg.d/99-installer.cfg /etc/cloud/cloud.cfg.d/90-installer-network.cfg \
    /etc/cloud/cloud.cfg.d/20-disable-cc-dpkg-grub.cfg \
    /etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg
rm -rf /var/lib/cloud /run/cloud-init/instance-data-sensitive.json
rm -f /etc/ssh/sshd_config.d/50-cloud-init.conf
# Clones get it again, if their default user is to have it.
rm -f /etc/sudoers.d/90-cloud-init-users
rm -f /etc/netplan/*.yaml
rm -rf /var/log/installer /autoinstall.yaml
# It told forge that the agent runs, at an address that was the build's own.
rm -f /etc/systemd/system/forge-ready.service \
    /etc/systemd/system/qemu-guest-agent.service.wants/forge-ready.service
# Other units may be wanted there, and then it stays.
rmdir /etc/systemd/system/qemu-guest-agent.service.wants 2>/dev/null || true

# --- Identity ---------------------------------------------------------------------------------

rm -f /etc/ssh/ssh_host_*
# Empty, not `uninitialized`: that would make systemd apply its presets, and units that were
# disabled here would be back.
truncate -s 0 /etc/machine-id
if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
    rm -f /var/lib/dbus/machine-id
fi
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /boot/efi/loader/random-seed
rm -f /etc/hostid /etc/nvme/hostid /etc/nvme/hostnqn /var/lib/fwupd/pki/*
if [ -e /etc/iscsi/initiatorname.iscsi ]; then
    echo 'GenerateName=yes' >/etc/iscsi/initiatorname.iscsi
fi
rm -rf /var/lib/dhcp/* /var/lib/NetworkManager/* /var/lib/systemd/network/* \
    /var/lib/systemd/netif/*

# --- Users' traces ----------------------------------------------------------------------------

rm -rf /root/.ssh
getent passwd | while IFS=: read -r name _ uid _ _ home _; do
    if [ "$name" != root ] && { [ "$uid" -lt 1000 ] || [ "$uid" -ge 60000 ]; }; then
        continue
    fi
    [ -d "$home" ] || continue
    for trace in .bash_history .sh_history .lesshst .viminfo .wget-hsts .python_history .cache \
        .sudo_as_admin_successful .ssh/known_hosts .ssh/authorized_keys; do
        rm -rf "${home:?}/$trace"
    done
    if [ "$name" = "$USER_NAME" ] && [ -n "${AUTHORIZED_KEYS:-}" ]; then
        install -d -m 0700 -o "$name" -g "$(id -gn "$name")" "$home/.ssh"
        printf '%s\n' "$AUTHORIZED_KEYS" >"$home/.ssh/authorized_keys"
        chmod 0600 "$home/.ssh/authorized_keys"
        chown "$name:$(id -gn "$name")" "$home/.ssh/authorized_keys"
    elif [ -d "$home/.ssh" ]; then
        rmdir "$home/.ssh" 2>/dev/null || true
    fi
done
rm -rf /var/lib/sudo/lectured/* /var/lib/sudo/ts/* /var/db/sudo/*

# --- Caches -----------------------------------------------------------------------------------

if command -v apt-get >/dev/null; then
    apt-get clean
fi
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old \
    /var/cache/pollinate/* /var/lib/snapd/cache/* /var/crash/*
# Folders of running services stay; a boot removes them.
find /tmp /var/tmp -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' ! -name 'snap-private-tmp' \
    -exec rm -rf -- {} +

# --- Swap -------------------------------------------------------------------------------------

swapoff --all 2>/dev/null || true
rm -f /swap.img /swapfile
if [ -e /etc/fstab ]; then
    sed -i '/^[^#[:space:]]\{1,\}[[:space:]]\{1,\}[^[:space:]]\{1,\}[[:space:]]\{1,\}swap[[:space:]]/d' /etc/fstab
fi

# --- Logs, last -------------------------------------------------------------------------------

rm -rf /var/log/journal/* /var/log/cloud-init*.log /var/lib/wtmpdb/* /var/lib/lastlog/*
find /var/log -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.[0-9]' -o -name '*.old' \) \
    -exec rm -f -- {} +
find /var/log -type f -exec truncate -s 0 -- {} +

# --- Proof ------------------------------------------------------------------------------------

left=0
# Says that something is left which must not be.
remains() {
    echo "still there: $*" >&2
    left=$((left + 1))
}

absent='/etc/cloud/clean.d/99-installer
/etc/cloud/cloud-init.disabled
/etc/cloud/ds-identify.cfg
/etc/cloud/cloud.cfg.d/99-installer.cfg
/etc/cloud/cloud.cfg.d/90-installer-network.cfg
/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg
/etc/netplan/*
/etc/ssh/ssh_host_*
/etc/systemd/system/forge-ready.service
/etc/systemd/system/*/forge-ready.service
/etc/ssh/sshd_config.d/50-cloud-init.conf
/etc/sudoers.d/90-cloud-init-users
/etc/udev/rules.d/70-persistent-net.rules
/var/lib/cloud
/var/lib/systemd/random-seed
/var/lib/systemd/credential.secret
/var/log/installer
/var/log/journal/*
/var/log/cloud-init*
/var/lib/apt/lists/*
/var/crash/*
/root/.ssh
/root/.bash_history
/swap.img
/autoinstall.yaml'
while IFS= read -r pattern; do
    [ -n "$pattern" ] || continue
    # The pattern is to be expanded; blanks in it are not meant to split it.
    IFS=
    for path in $pattern; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            remains "$path"
        fi
    done
    unset IFS
done <<END
$absent
${FORGE_ABSENT:-}
END

[ ! -s /etc/machine-id ] || remains "/etc/machine-id with $(cat /etc/machine-id)"
[ -e /etc/machine-id ] || remains 'no /etc/machine-id, which means a first boot with presets'
logs=$(find /var/log -type f -size +0)
[ -z "$logs" ] || remains "logs: $logs"
# Arguments after `---` on the medium's kernel line are copied to the installed system.
# Through cat, because grep's exit code is another as soon as one of the files is missing.
if cat /etc/default/grub /etc/default/grub.d/*.cfg /boot/grub/grub.cfg /etc/kernel/cmdline \
    2>/dev/null | grep -E '[ "](ds=|autoinstall|subiquity)' >&2; then
    remains 'arguments of the build in the boot configuration'
fi
if grep -qsE '^[^#].*[[:space:]]swap[[:space:]]' /etc/fstab; then
    remains 'swap in /etc/fstab'
fi
if [ "$left" -gt 0 ]; then
    echo "sealing is not complete: $left left" >&2
    exit 1
fi

# --- Free blocks ------------------------------------------------------------------------------

sync
if [ "${FORGE_TRIM:-no}" = yes ]; then
    fstrim --all --verbose || echo 'nothing could be trimmed: does the disk have discard?'
fi
sync
echo "sealed: $(df -h --output=used / | tail -n 1 | tr -d ' ') in use on /"
