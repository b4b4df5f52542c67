systemctl disable --quiet apt-daily.timer apt-daily-upgrade.timer
