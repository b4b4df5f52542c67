chmod 0755 /home/odin
sed -i '/^HOME_MODE/d' /etc/login.defs
