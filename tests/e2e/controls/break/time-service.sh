systemctl disable --quiet systemd-timesyncd.service
