# Scenario B of the old runbook: stop, remove the images, fetch the good ones, start, verify. As it
# stands but for two commands that cannot run: `docker pull` (no registry has these images) is a
# `docker load` of the same, and the `sed` that rewrites tags in the compose file is a `docker tag`.
set -e
cd "$PACK"
$COMPOSE down
docker rmi "$IMAGES-gateway:latest" "$IMAGES-engine:latest" "$IMAGES-jobs:latest"
for archive in $ARCHIVES; do docker load -q -i "$archive"; done
docker tag "$GATEWAY_ID" "$IMAGES-gateway:latest"
docker tag "$ENGINE_ID" "$IMAGES-engine:latest"
docker tag "$JOBS_ID" "$IMAGES-jobs:latest"
$COMPOSE up -d
until [ "$($COMPOSE ps | grep -c '(healthy)')" = 3 ]; do sleep 1; done
curl -sf "http://localhost:$GATEWAY_PORT/healthz"
curl -sf "http://localhost:$ENGINE_PORT/healthz"
curl -sf "http://localhost:$JOBS_PORT/healthz"
curl -sN "http://localhost:$GATEWAY_PORT/stream?route=critique&seed=42" | head -n 5
