# Starts one of several servers that share the blocks: takes its part of the slots and meets the first one. It may do so at
# every start; what it took stays in nodes.conf, by which the others know it again under a new address.
# Arguments: the server and its options.
set -eu
"$@" &
server=$!
trap 'kill -TERM "$server"' TERM INT
cli() { VALKEYCLI_AUTH=$JOIN_PASSWORD REDISCLI_AUTH=$JOIN_PASSWORD valkey-cli -s "$SOCKET" --user join "$@"; }
until [ "$(cli ping 2>/dev/null)" = PONG ]; do
  kill -0 "$server"
  sleep 0.2
done
place=${POD_NAME##*-}
if ! cli cluster nodes | grep -q "myself.* connected [0-9]"; then
  cli cluster addslotsrange "$((place * 16384 / SERVERS))" "$(((place + 1) * 16384 / SERVERS - 1))"
fi
if [ "$place" != 0 ]; then
  until first=$(getent ahostsv4 "$FIRST" | head -n 1 | cut -d ' ' -f 1) && [ -n "$first" ]; do sleep 1; done
  cli cluster meet "$first" 6379
fi
wait "$server" || wait "$server" # once for the signal, once for the server's end
