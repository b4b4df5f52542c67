echo x >/var/log/auth.log
chmod 0644 /var/log/auth.log
echo x >/var/log/service.log
chmod 0666 /var/log/service.log
