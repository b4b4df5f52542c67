useradd forgotten
usermod --password '' forgotten
useradd unshadowed
# shellcheck disable=SC2016
sed -i 's,^unshadowed:x:,unshadowed:$6$salt$hash:,' /etc/passwd
