# As on Debian 12.
sed -i '/pam_umask/d' /etc/pam.d/common-session
