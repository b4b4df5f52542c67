# As on Ubuntu.
echo 'ENABLED=1' >/etc/default/motd-news
printf '[Unit]\nDescription=x\n[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n' \
    >/usr/lib/systemd/system/motd-news.timer
systemctl enable --quiet motd-news.timer
