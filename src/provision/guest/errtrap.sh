# Read by bash through BASH_ENV: notes the line of the script whose failure ends it.
unset BASH_ENV
set -E
forge_failed() {
    local code=$? depth
    [[ $- == *e* ]] || return 0
    for ((depth = 1; depth < ${#BASH_SOURCE[@]}; depth++)); do
        if [[ ${BASH_SOURCE[depth]} == "$0" ]]; then
            echo "$code:${BASH_LINENO[depth - 1]}" >"${0%/*}/line"
            return 0
        fi
    done
}
trap forge_failed ERR
