chmod 0640 /etc/ssh/ssh_host_ed25519_key
