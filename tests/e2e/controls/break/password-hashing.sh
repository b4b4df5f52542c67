# As on Ubuntu, and worse.
sed -i 's/^ENCRYPT_METHOD.*/ENCRYPT_METHOD SHA512/' /etc/login.defs
sed -i 's/ yescrypt$/ md5/' /etc/pam.d/common-password
