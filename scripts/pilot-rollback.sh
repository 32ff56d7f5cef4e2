#!/bin/sh
# The rollback for source code that does not compile. It runs the xtask of the newest release; if there is none,
# `cargo xtask`. The state folder is found as in `xtask/src/stack/pilot.rs`: PILOT_STATE_DIR, else by the project.
case ${PILOT_STATE_DIR:-} in
'' | /*) ;;
*) export PILOT_STATE_DIR="$PWD/$PILOT_STATE_DIR" ;;
esac
cd "$(dirname "$0")/.." || exit 2
project=pilot-deploy before=
for word; do
    if [ "$before" = --project ]; then project=$word; fi
    case $word in --project=*) project=${word#--project=} ;; esac
    before=$word
done
state=.pilot
if [ "$project" != pilot-deploy ]; then state=.pilot/projects/$project; fi
kept="${PILOT_STATE_DIR:-$state}/xtask"
if [ -x "$kept" ]; then exec "$kept" rollback "$@"; fi
exec cargo xtask rollback "$@"
