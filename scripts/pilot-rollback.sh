#!/bin/sh
# The rollback for a tree that does not compile: the xtask that made the running release, else cargo's.
cd "$(dirname "$0")/.." || exit 2
kept="${PILOT_STATE_DIR:-.pilot}/xtask"
if [ -x "$kept" ]; then exec "$kept" rollback "$@"; fi
exec cargo xtask rollback "$@"
