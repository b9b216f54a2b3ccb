#!/usr/bin/env bash
# A build compiles for the GPUs that are there: what is read from nvidia-smi. Called by tools/test in an empty folder.
set -uo pipefail
export LC_ALL=C

script=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/engine/device/cuda/architectures.cmake
failures=0
check() { # WANTED ANSWER EXIT_CODE
    printf '#!/bin/sh\nprintf "%s"\nexit %s\n' "$2" "$3" >smi
    chmod +x smi
    local got
    got=$(cmake -DJEM_NVIDIA_SMI="$PWD/smi" -P "$script" 2>&1)
    [[ $got == "architectures: $1" ]] && return
    printf 'FAILED: "%s" in place of "%s" where nvidia-smi says %s\n' "$got" "$1" "$2"
    failures=$((failures + 1))
}
check '90' '9.0\n' 0
check '86' '8.6\n8.6\n' 0
check '80;120' '8.0\n12.0\n' 0
check '75' '6.1\n7.5\n' 0
check '' '6.1\n' 0
check '' '' 0
check '' 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver 5.1' 9
[[ $(cmake -P "$script" 2>&1) == 'architectures: ' ]] || { echo 'FAILED: without nvidia-smi'; failures=$((failures + 1)); }
exit $((failures > 0))
