chmod 0666 /etc/passwd
chmod 0644 /etc/shadow
: >/etc/security/opasswd
chmod 0644 /etc/security/opasswd
