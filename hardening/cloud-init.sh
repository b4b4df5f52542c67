#!/bin/sh
# Tells cloud-init what clones are: their data sources, their default user, their SSH.
#
# Proxmox gives `users: [default]`, so the keys of a clone go to this default user. With
# `lock_passwd: true` cloud-init locks the user's password at every new instance, which would take
# a console password away; with false it would unlock one that is there, so the one goes with a
# console password and the other without. An instance is new whenever an address or a key changes
# in Proxmox; `ssh_deletekeys: false` keeps the host key then.
#
# Environment: USER_NAME; CONSOLE_PASSWORD and SUDO_NOPASSWD, `yes` or `no`.
set -eu

lock=true
[ "$CONSOLE_PASSWORD" != yes ] || lock=false
sudo=
[ "$SUDO_NOPASSWD" != yes ] || sudo='sudo: ["ALL=(ALL) NOPASSWD:ALL"], '

# The list of data sources must be on one line: ds-identify reads no other form.
cat >/etc/cloud/cloud.cfg.d/99-forge.cfg.new <<END
# Written by forge (hardening/cloud-init.sh).
datasource_list: [ConfigDrive, NoCloud]
system_info:
  default_user: {name: $USER_NAME, gecos: $USER_NAME, groups: [adm, sudo], shell: /bin/bash, ${sudo}lock_passwd: $lock}
ssh_pwauth: false
disable_root: true
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
apt: {preserve_sources_list: true}
END
chmod 0644 /etc/cloud/cloud.cfg.d/99-forge.cfg.new
mv /etc/cloud/cloud.cfg.d/99-forge.cfg.new /etc/cloud/cloud.cfg.d/99-forge.cfg
