# Starts the server: as the primary, or as the standby that follows it.
# Arguments: the server and its options.
set -eu
if [ "$POD_NAME" != "$PRIMARY" ]; then
  set -- "$@" --replicaof "$PRIMARY_HOST" 6379 --primaryuser replica --primaryauth "$REPLICA_PASSWORD"
fi
exec "$@"
