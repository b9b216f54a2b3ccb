# For scripts of tests/cli, to be read in: runs $program, says what went wrong, and counts it in failures.
# shellcheck shell=bash disable=SC2154
failures=0
fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    [[ ! -s ${2:-} ]] || sed 's/^/    /' "$2" | head -n 8
}
run() { # CODE ARGUMENTS...
    local wanted=$1 code=0
    shift
    timeout 60 "$program" "$@" >out 2>err </dev/null || code=$?
    [[ $code == "$wanted" ]] && return
    fail "exit code $code in place of $wanted: jem_engine $*" err
    return 1
}
# Whether sanitizers are in the program: they take memory of their own, and make everything slow.
sanitized() { [[ $("$program" info --json 2>/dev/null | tail -n 1) == *-fsanitize* ]]; }
# within_memory KIB COMMAND...: with so much address space. Sanitizers take terabytes of it: under them there is no limit.
within_memory() {
    local code=0 most
    most=$(ulimit -S -v)
    sanitized || ulimit -S -v "$1"
    shift
    "$@" || code=$?
    ulimit -S -v "$most"
    return "$code"
}
