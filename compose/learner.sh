#!/bin/sh
# One learner of a scaled service. Its id, and with it the part of the example's data that it owns, follows from its number.
set -eu

# Compose's own name service knows this container as <project>-learner-<number>; anywhere else the host's name has to do.
number="$(getent hosts "$(hostname -i 2>/dev/null | cut -d' ' -f1)" 2>/dev/null |
    sed -n 's/.*-learner-\([0-9][0-9]*\)\..*/\1/p' | head -n 1 || true)"
id="${BROKER_FL_ID:-site-${number:-$(hostname | tr -c 'A-Za-z0-9_\n-' '-')}}"

printf '%s' "$id" >"${TMPDIR:-/tmp}/learner-id" # for the health check
exec broker-fl learner "$BROKER_FL_APP" --id "$id"
