#!/bin/sh
# Sets the locale, the keyboard and the time zone, now and not at some later boot.
#
# The installer leaves these to the first boot's cloud-init, and ignores the locale altogether on
# the minimized source.
#
# Environment: LOCALE (fr_FR.UTF-8), KEYBOARD (fr), KEYBOARD_VARIANT (latin9, may be empty),
# TIMEZONE (Europe/Paris).
set -eu

# Prints a locale's name as `locale -a` does: fr_FR.utf8.
plain() {
    echo "${1%%.*}.$(echo "${1#*.}" | tr -d - | tr '[:upper:]' '[:lower:]')"
}

# Generating one takes long under emulation.
if ! locale -a | grep -qxF "$(plain "$LOCALE")"; then
    line="$LOCALE ${LOCALE#*.}"
    sed -i "s/^# *$line\$/$line/" /etc/locale.gen
    grep -qxF "$line" /etc/locale.gen || echo "$line" >>/etc/locale.gen
    locale-gen
fi
locale -a | grep -qxF "$(plain "$LOCALE")"
update-locale "LANG=$LOCALE"

settings=/etc/default/keyboard
touch "$settings"
# Replaces or adds a setting.
set_keyboard() {
    sed -i "/^$1=/d" "$settings"
    echo "$1=\"$2\"" >>"$settings"
}
set_keyboard XKBLAYOUT "$KEYBOARD"
set_keyboard XKBVARIANT "$KEYBOARD_VARIANT"
# What the console and the initial RAM disk load; the running console may well be a serial line.
if command -v setupcon >/dev/null; then
    setupcon --save-only
fi

if [ ! -e "/usr/share/zoneinfo/$TIMEZONE" ]; then
    echo "the time zone $TIMEZONE is not in /usr/share/zoneinfo" >&2
    exit 1
fi
ln -sfn "/usr/share/zoneinfo/$TIMEZONE" /etc/localtime
# Debian 13 has no such file any more.
if [ -e /etc/timezone ]; then
    echo "$TIMEZONE" >/etc/timezone
fi
