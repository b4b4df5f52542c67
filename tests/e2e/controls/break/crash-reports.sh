# As on Ubuntu.
echo 'enabled=1' >/etc/default/apport
for unit in apport.service apport-autoreport.path whoopsie.path; do
    printf '[Unit]\nDescription=%s\n[Install]\nWantedBy=multi-user.target\n' "$unit" >"/usr/lib/systemd/system/$unit"
    systemctl enable --quiet "$unit"
done
