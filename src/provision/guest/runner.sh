# Runs a script and writes down how it ended. Called as sh -c RUNNER FOLDER RUNNER INTERPRETER…
folder=$0
shift
cd /
umask 022
# The numbers after the command's name, which may itself hold blanks and brackets.
IFS= read -r stat </proc/$$/stat
# shellcheck disable=SC2086
session=$(set -- ${stat##*) } && echo "$4")
echo "$$ $session" >"$folder/pid.new"
mv "$folder/pid.new" "$folder/pid"
# shellcheck disable=SC2016
env -i PATH="$PATH" HOME=/root LC_ALL=C.UTF-8 sh -c '. "$0/env" && exec "$@" "$0/script"' "$folder" "$@"
echo "$?" >"$folder/code.new"
mv "$folder/code.new" "$folder/code"
