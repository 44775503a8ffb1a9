# Makes the server's list of users: names and rights from the template, passwords (as hashes) from the Secret.
# Arguments: the template, the folder with one file a user, the list to write.
set -eu
umask 077
{
  echo "user default reset"
  echo "user probe reset on nopass +ping"
  while read -r name rights; do
    case "$name" in "" | "#"*) continue ;; esac
    hash=$(tr -d '\n' <"$2/$name" | sha256sum | cut -d ' ' -f 1)
    echo "user $name reset on #$hash $rights"
  done <"$1"
} >"$3.new"
mv "$3.new" "$3"
