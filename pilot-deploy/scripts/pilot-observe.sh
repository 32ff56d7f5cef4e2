#!/bin/sh
cd "$(dirname "$0")/../.." && exec cargo xtask observe "$@"
