#!/bin/sh
# Sees to time synchronisation, trimming, and that there is no swap: Kubernetes' kubelet wants none.
set -eu

# Another time service is as good.
if ! systemctl is-enabled --quiet chrony.service 2>/dev/null; then
    systemctl enable systemd-timesyncd.service
    # In a folder that is to become a system, nothing runs yet.
    [ ! -d /run/systemd/system ] || systemctl start systemd-timesyncd.service
fi
systemctl enable fstrim.timer

[ ! -d /run/systemd/system ] || swapoff --all
sed -i '/^[^#[:space:]]\{1,\}[[:space:]]\{1,\}[^[:space:]]\{1,\}[[:space:]]\{1,\}swap[[:space:]]/d' /etc/fstab
rm -f /swap.img /swapfile
