#!/usr/bin/env bash
# The report's pages in a headless Chromium: no request, no console error, readable at 1280 and 400 pixels, light and dark. Skipped where none is installed.
set -uo pipefail
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=${1:-${JEM_ENGINE:-true}}
. "$root/tests/checks.sh"
if sanitized; then
    echo 'nothing of it is compiled: another build runs it'
    exit 77
fi
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    { echo 'SKIPPED: there is no Chromium (apt-get install --no-install-recommends chromium)' && exit 77; }
/usr/bin/python3 -c 'import matplotlib' 2>/dev/null || { echo 'SKIPPED: matplotlib is not installed' && exit 77; }

# what must not pass, so that a check that sees nothing is seen
cat >bad.html <<'END'
<!doctype html><body style="background: #fff"><div style="width: 2000px"><img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>
END
! "$root/tests/browse.py" "$browser" "$PWD/bad.html" >troubles || { echo 'FAILED: a bad page passes' >&2 && exit 1; }
for part in 'asks for http' 'console: an error' 'pixels wide' 'broken images' 'no picture' 'dark: it is not dark'; do
    grep -q "$part" troubles || { printf 'FAILED: no word about a bad page: %s\n' "$part" >&2 && cat troubles >&2 && exit 1; }
done

"$root/tests/made_run.py" jem --seed 1 && "$root/tests/made_run.py" jem-2 --seed 2 && "$root/tests/made_run.py" softmax --seed 1 --config recipe=softmax || exit 1
"$root/tools/report" jem && "$root/tools/report" jem jem-2 softmax --out all || exit 1
"$root/tests/browse.py" "$browser" jem/report/index.html all/index.html
