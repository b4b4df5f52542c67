#!/bin/sh
# Gives the user its groups, its sudo rule and a password that is surely locked, and locks root.
#
# A password of `!` became an empty one on 24.04.3 (cloud-init removes it when it cannot unlock
# it), so the state is made and looked at here. Without a password sudo has none to ask for.
#
# Environment: USER_NAME; CONSOLE_PASSWORD, `yes` if the installer was given a hash;
# SUDO_NOPASSWD, `yes` if sudo must not ask for a password.
set -eu

usermod --append --groups adm,sudo "$USER_NAME"
usermod --shell /bin/bash "$USER_NAME"
if [ "$CONSOLE_PASSWORD" != yes ]; then
    usermod --password '*' "$USER_NAME"
fi
hash=$(getent shadow "$USER_NAME" | cut -d : -f 2)
# shellcheck disable=SC2016
case "$CONSOLE_PASSWORD $hash" in
    'yes $6$'* | 'no *'*) ;;
    *)
        echo "the password of $USER_NAME is not what was asked for" >&2
        exit 1
        ;;
esac

usermod --password '*' root

rule=/etc/sudoers.d/50-forge
if [ "$SUDO_NOPASSWD" = yes ]; then
    echo "$USER_NAME ALL=(ALL) NOPASSWD:ALL" >"$rule.new"
    chmod 0440 "$rule.new"
    visudo -cqf "$rule.new"
    mv "$rule.new" "$rule"
else
    rm -f "$rule" /etc/sudoers.d/90-cloud-init-users
fi
