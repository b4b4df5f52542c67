# Becomes a command inside a root. Called as sh -c ENTER MARK PROGRAM ARGUMENT… with its environment as
# shell text in FORGE_ENV. A MARK at the beginning of standard error says that it got this far, one at the
# end that there is no such program.
echo "$0" >&2
umask 022
eval "$FORGE_ENV"
unset FORGE_ENV PWD OLDPWD
trap 'echo "$0" >&2' EXIT
exec "$@"
