#!/bin/sh
# One learner of a scaled service: its id is the host's name, and its part of the example's data follows from its number.
set -eu
id="${BROKER_FL_ID:-site-$(hostname | tr -c 'A-Za-z0-9_\n-' '-')}"
parts="${BROKER_FL_PARTS:-10}"

# Compose's own name service knows this container as <project>-learner-<number>; anywhere else the id decides.
number="$(getent hosts "$(hostname -i 2>/dev/null | cut -d' ' -f1)" 2>/dev/null |
    sed -n 's/.*-learner-\([0-9][0-9]*\)\..*/\1/p' | head -n 1 || true)"
[ -n "$number" ] || number=$((0x$(printf '%s' "$id" | sha256sum | cut -c1-6) + 1))

exec broker-fl learner "$BROKER_FL_APP" --id "$id" --part "$(((number - 1) % parts))/$parts"
