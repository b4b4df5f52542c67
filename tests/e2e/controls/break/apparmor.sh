systemctl disable --quiet apparmor.service
mkdir -p /etc/apparmor.d/force-complain
ln -s ../lsb_release /etc/apparmor.d/force-complain/lsb_release
