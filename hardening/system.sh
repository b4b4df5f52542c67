#!/bin/sh
# Sees to time synchronisation, trimming, and that there is no swap: Kubernetes' kubelet wants none.
set -eu

# Another time service is as good.
if ! systemctl is-enabled --quiet chrony.service 2>/dev/null; then
    systemctl enable --now systemd-timesyncd.service
fi
systemctl enable fstrim.timer

swapoff --all
sed -i '/^[^#[:space:]]\{1,\}[[:space:]]\{1,\}[^[:space:]]\{1,\}[[:space:]]\{1,\}swap[[:space:]]/d' /etc/fstab
rm -f /swap.img /swapfile
