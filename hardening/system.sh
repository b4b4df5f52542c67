#!/bin/sh
# Sets a few kernel parameters, the resolver, time synchronisation, trimming, and no swap.
#
# Nothing here stands in Kubernetes' way: forwarding and reverse-path filters are left to it, and
# its kubelet wants no swap.
set -eu

cat >/etc/sysctl.d/60-forge.conf <<'END'
# Written by forge (hardening/system.sh).
kernel.dmesg_restrict = 1
kernel.kptr_restrict = 2
fs.protected_fifos = 2
fs.protected_regular = 2
fs.suid_dumpable = 0
net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.default.accept_redirects = 0
net.ipv4.conf.all.send_redirects = 0
net.ipv4.conf.default.send_redirects = 0
net.ipv4.conf.all.accept_source_route = 0
-net.ipv6.conf.all.accept_redirects = 0
-net.ipv6.conf.default.accept_redirects = 0
END
/usr/lib/systemd/systemd-sysctl /etc/sysctl.d/60-forge.conf

# The resolver answers the machine itself, not its neighbours.
mkdir -p /etc/systemd/resolved.conf.d
cat >/etc/systemd/resolved.conf.d/60-forge.conf <<'END'
# Written by forge (hardening/system.sh).
[Resolve]
LLMNR=no
MulticastDNS=no
END
if systemctl is-active --quiet systemd-resolved.service; then
    systemctl restart systemd-resolved.service
fi

# Another time service is as good.
if ! systemctl is-enabled --quiet chrony.service 2>/dev/null; then
    systemctl enable --now systemd-timesyncd.service
fi
systemctl enable fstrim.timer

swapoff --all
sed -i '/^[^#[:space:]]\{1,\}[[:space:]]\{1,\}[^[:space:]]\{1,\}[[:space:]]\{1,\}swap[[:space:]]/d' /etc/fstab
rm -f /swap.img /swapfile
