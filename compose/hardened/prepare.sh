#!/bin/sh
# Make what hardened/compose.yaml needs, in a folder: an authority, certificates for the two servers, passwords.
#
#   sh compose/hardened/prepare.sh compose/hardened/secrets [FEDERATION]     # default: demo, as in compose.yaml
#
# Nothing that is there already is replaced. The authority's key (FOLDER/../authority/ca-key.pem) belongs off this machine.
set -eu
folder="${1:?give the folder for secrets}"
federation="${2:-demo}"
case "$federation" in
    *[!A-Za-z0-9_-]*) echo "a federation's name has letters, digits, - and _ only: $federation" >&2 && exit 2 ;;
esac
umask 077
mkdir -p "$folder"
authority="$(dirname "$folder")/authority"

password() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

[ -e "$authority/ca.pem" ] || broker-fl ca init --folder "$authority" >/dev/null
for server in rabbitmq redis; do
    [ -e "$authority/server-$server.pem" ] || broker-fl ca server --folder "$authority" "$server" localhost 127.0.0.1 >/dev/null
    cp "$authority/server-$server.pem" "$authority/server-$server-key.pem" "$folder/"
done
cp "$authority/ca.pem" "$folder/"

if [ ! -e "$folder/rabbitmq-admin.conf" ]; then
    printf 'default_user = admin\ndefault_pass = %s\ndefault_user_tags.administrator = true\n' "$(password)" >"$folder/rabbitmq-admin.conf"
fi
if [ ! -e "$folder/redis-users.acl" ]; then
    secret="$(password)"
    # The keys of this federation and of no other, and what its controller does with them (docs/security.md): no EVAL, no KEYS, nothing that others could be harmed with.
    may="+info +time +evalsha +script|load +get +set +exists +persist +unlink +del"
    may="$may +hset +hget +hgetall +hkeys +hincrby +hdel +xadd +xrange +xrevrange"
    printf 'user default off\nuser controller on >%s resetchannels ~bfl:{%s}:* %s\n' "$secret" "$federation" "$may" \
        >"$folder/redis-users.acl"
    printf 'store = "rediss://controller:%s@redis:6379/0"\nstore_tls_ca = "/run/secrets/ca.pem"\n' "$secret" >"$folder/controller.toml"
fi
# Compose mounts secrets with the owner they have here. These are the accounts of the images.
if [ "$(id -u)" = 0 ]; then
    chown 100:101 "$folder"/server-rabbitmq* "$folder/rabbitmq-admin.conf"
    chown 999:1000 "$folder"/server-redis* "$folder/redis-users.acl"
    chown 10001:10001 "$folder/controller.toml"
fi
chmod 644 "$folder/ca.pem" "$folder"/server-*.pem
chmod 600 "$folder"/server-*-key.pem
chmod 711 "$folder"
