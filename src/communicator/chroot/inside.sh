# The first process inside a root. Called as sh -c INSIDE forge WAIT. In a user namespace of their own the
# guest's processes are root over their files alone, and what is mounted read-only stays so.
[ -d /run/lock ] || mkdir -m 1777 /run/lock
exec unshare --user --mount -- /bin/sh -c "$1"
