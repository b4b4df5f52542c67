# shellcheck disable=SC2016
usermod --password '$6$salt$hash' odin
