#!/usr/bin/env bash
# Runs the commands of README.md's quick start as they stand there, from `git clone` to an alert that fires and clears.
#   deploy/try.sh           in a new folder, from a clone of $REPOSITORY (without it: of this checkout)
#   deploy/try.sh --here    in the current folder, which has been cloned and installed
# Takes about seven minutes: the alert's own. Ends what it started, also where a command fails.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
first=1
if [ "${1:-}" = --here ]; then
    first=2
else
    export REPOSITORY="${REPOSITORY:-$here/..}"
    folder="$(mktemp -d)"
    cd "$folder"
fi

# The shell blocks of the quick start, from the first wanted one on.
commands="$(awk -v first="$first" '
    /^<!-- quick-start:begin -->$/ { inside = 1 }
    /^<!-- quick-start:end -->$/ { inside = 0 }
    /^```$/ { block = 0 }
    inside && block >= first { print }
    inside && /^```sh$/ { block = ++blocks }
' "$here/README.md")"
[ -n "$commands" ] || { echo "README.md has no quick start" >&2; exit 1; }

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
set -x
eval "$commands"
set +x
echo "scraped, alerted, cleared"
