# Scenario A of the old runbook: stop, restore the env file, start, verify. Its commands as they stand;
# `docker-compose` is $COMPOSE (this project's files), the ports are the project's.
set -e
cd "$PACK"
$COMPOSE down
cp .env.poc.backup .env.poc
$COMPOSE up -d
until [ "$($COMPOSE ps | grep -c '(healthy)')" = 3 ]; do sleep 1; done
curl -sf "http://localhost:$GATEWAY_PORT/healthz"
curl -sf "http://localhost:$ENGINE_PORT/healthz"
curl -sf "http://localhost:$JOBS_PORT/healthz"
curl -sN "http://localhost:$GATEWAY_PORT/stream?route=critique&seed=42" | head -n 5
