#!/bin/sh
# Waits until the installed system has finished its first boot.
#
# The guest agent answers before cloud-init has made the user (subiquity of 24.04.3 leaves that to
# the first boot), and apt's timers start upgrades that hold the package manager's lock.
#
# Environment: USER_NAME, the user that the installer was asked for.
set -eu

if command -v cloud-init >/dev/null; then
    status=0
    cloud-init status --wait >/dev/null || status=$?
    # 2: done, with something to remark, such as a deprecated key.
    case $status in
        0 | 2) echo "cloud-init: $(cloud-init status | head -n 1)" ;;
        *)
            cloud-init status --long || true
            exit "$status"
            ;;
    esac
fi

if ! getent passwd "$USER_NAME" >/dev/null; then
    echo "the installer and its first boot have not made the user $USER_NAME" >&2
    exit 1
fi

# They are only stopped: clones have them again.
for unit in apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service \
    unattended-upgrades.service; do
    systemctl stop "$unit" 2>/dev/null || true
done
