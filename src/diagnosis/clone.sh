#!/bin/sh
# Looks at a clone whose proof does not hold, for what usually is the reason: a word and what it is about
# on each line. Changes nothing, and needs nothing that a guest may lack. $0 is the user.
[ ! -e /etc/cloud/cloud-init.disabled ] || echo 'off /etc/cloud/cloud-init.disabled is there'
! grep -qs 'cloud-init=disabled' /proc/cmdline || echo 'off the kernel argument cloud-init=disabled is set'
for label in cidata CIDATA config-2 CONFIG-2; do
    ! blkid -L "$label" >/dev/null 2>&1 || echo "drive $label"
done
[ ! -s /run/cloud-init/cloud-id ] || echo "source $(head -n 1 /run/cloud-init/cloud-id)"
for file in /etc/cloud/cloud.cfg.d/*installer*.cfg /etc/cloud/ds-identify.cfg; do
    [ ! -e "$file" ] || echo "left $file"
done
for file in /etc/netplan/*.yaml /etc/systemd/network/*.network; do
    [ ! -e "$file" ] || [ "$file" = /etc/netplan/50-cloud-init.yaml ] || echo "network $file"
done
for link in /sys/class/net/*; do
    [ "${link##*/}" = lo ] || [ ! -e "$link" ] || echo "link ${link##*/} $(cat "$link/operstate" 2>/dev/null)"
done
[ ! -s /etc/machine-id ] || echo machine-id
for file in /etc/ssh/ssh_host_*_key; do
    [ ! -s "$file" ] || echo "hostkey $file"
done
sshd=$(command -v sshd || echo /usr/sbin/sshd)
[ ! -x "$sshd" ] || "$sshd" -t 2>&1 | grep -v 'privilege separation' | head -n 1 | sed 's/^/sshd /'
# Only sshd's own ports: systemd holds them for it, until somebody connects.
ss -Hltnp 2>/dev/null | awk '/"sshd"|"systemd"/ { sub(/.*:/, "", $4); print "port " $4 }'
home=$(getent passwd "$0" | cut -d: -f6)
[ -n "$home" ] || echo "nobody $0"
! grep -qs ' forge-proof$' "$home/.ssh/authorized_keys" || echo key
echo "password $(passwd -S "$0" 2>/dev/null | cut -d' ' -f2)"
echo "root $(findmnt -no SOURCE / 2>/dev/null)"
command -v growpart >/dev/null || echo 'nogrow growpart is not installed'
grep -ls '^growpart:.*off' /etc/cloud/cloud.cfg.d/*.cfg | sed 's/$/ says growpart: off/; s/^/nogrow /'
for unit in systemd-networkd-wait-online NetworkManager-wait-online; do
    ! systemctl is-failed --quiet "$unit.service" 2>/dev/null || echo "waited $unit"
done
exit 0
