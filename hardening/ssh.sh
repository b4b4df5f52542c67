#!/bin/sh
# Hardens the SSH server: its port, keys only, no root, strong algorithms, one ed25519 host key.
#
# The drop-in sorts before cloud-init's 50-cloud-init.conf, and the first value wins, so a clone
# cannot turn passwords on. On 24.04 systemd listens for sshd, on the ports that a generator reads
# from this very configuration: so it is proven good before it is put in place, then the generators
# run again, then the socket starts anew. Restarting ssh.service alone would leave port 22.
#
# Environment: SSH_PORT.
set -eu

# Prints those of the algorithms that this OpenSSH knows, with commas between.
known() {
    kind=$1
    shift
    list=
    for algorithm; do
        if ssh -Q "$kind" | grep -qxF "$algorithm"; then
            list=${list:+$list,}$algorithm
        fi
    done
    echo "$list"
}

kex=$(known kex mlkem768x25519-sha256 sntrup761x25519-sha512@openssh.com curve25519-sha256 \
    curve25519-sha256@libssh.org diffie-hellman-group18-sha512 \
    diffie-hellman-group-exchange-sha256 diffie-hellman-group16-sha512)
ciphers=$(known cipher chacha20-poly1305@openssh.com aes256-gcm@openssh.com aes256-ctr aes192-ctr \
    aes128-gcm@openssh.com aes128-ctr)
macs=$(known mac hmac-sha2-512-etm@openssh.com hmac-sha2-256-etm@openssh.com \
    umac-128-etm@openssh.com)

key=/etc/ssh/ssh_host_ed25519_key
[ -s "$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$key"
[ -d /run/sshd ] || mkdir -m 0755 /run/sshd

# sshd must read the new settings alone before they are put where it and the generator find them.
new=$(mktemp)
trap 'rm -f "$new"' EXIT
cat >"$new" <<END
# Written by forge (hardening/ssh.sh).
Port $SSH_PORT
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthenticationMethods publickey
AllowGroups sudo
HostKey $key
KexAlgorithms $kex
Ciphers $ciphers
MACs $macs
RequiredRSASize 3072
MaxAuthTries 3
MaxSessions 2
LoginGraceTime 30
MaxStartups 10:30:60
X11Forwarding no
AllowAgentForwarding no
PermitUserEnvironment no
ClientAliveInterval 300
ClientAliveCountMax 2
LogLevel VERBOSE
END
sshd -t -f "$new"
mkdir -p /etc/ssh/sshd_config.d
install -m 0644 "$new" /etc/ssh/sshd_config.d/00-forge.conf
# Taken together with the rest, a Port in sshd_config itself would be one more.
sshd -t
ports=$(sshd -T | sed -n 's/^port //p' | tr '\n' ' ')
if [ "$ports" != "$SSH_PORT " ]; then
    echo "sshd would listen on ${ports}instead of $SSH_PORT alone" >&2
    exit 1
fi

# Group exchange picks from these; the short ones are too weak.
if [ -e /etc/ssh/moduli ]; then
    awk '/^#/ || $5 >= 3071' /etc/ssh/moduli >/etc/ssh/moduli.new
    grep -qv '^#' /etc/ssh/moduli.new
    chmod 0644 /etc/ssh/moduli.new
    mv /etc/ssh/moduli.new /etc/ssh/moduli
fi

# Sealing removes the host key, and only cloud-init makes a new one; a clone without cloud-init
# would have no SSH at all.
cat >/etc/systemd/system/forge-host-key.service <<END
[Unit]
Description=Make the SSH host key when there is none
ConditionPathExists=!$key
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Before=ssh.socket ssh.service cloud-init-local.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f $key

[Install]
WantedBy=sysinit.target
END
systemctl enable --quiet forge-host-key.service

# Has sshd listen itself, and no socket for it.
leave_socket() {
    systemctl disable --quiet ssh.socket
    # Disabled alone, a preset could bring it back.
    systemctl mask --quiet ssh.socket
    systemctl enable --quiet ssh.service
}

# In a folder that is to become a system nobody can say what a socket is going to listen on.
if [ ! -d /run/systemd/system ]; then
    if systemctl is-enabled --quiet ssh.socket; then
        leave_socket
    fi
    exit 0
fi

systemctl daemon-reload
# Debian has the socket as well, but nothing that tells it sshd's port.
listens=$(systemctl show --property=Listen --value ssh.socket 2>/dev/null || true)
case $listens in
    *":$SSH_PORT (Stream)"*) socket=good ;;
    *) socket=bad ;;
esac
if systemctl is-enabled --quiet ssh.socket && [ "$socket" = bad ]; then
    echo "ssh.socket would listen on ${listens:-nothing}: ssh.service listens itself"
    systemctl stop ssh.socket
    leave_socket
fi
if systemctl is-enabled --quiet ssh.socket; then
    # A socket whose service runs already refuses to start.
    systemctl stop ssh.socket ssh.service
    systemctl start ssh.socket
else
    systemctl restart ssh.service
fi
