#!/bin/sh
# Make sure that the tests can have a RabbitMQ and a Redis. In this order, each server for itself:
#   1. its URL is given (BROKER_FL_TEST_AMQP_URL, BROKER_FL_TEST_REDIS_URL): nothing to do;
#   2. a Docker engine answers: testcontainers starts it;
#   3. its program is installed: the tests start a private node of it;
#   4. Debian or Ubuntu, as root or with sudo that asks for no password: install it, never start it;
#   5. otherwise say what to install, and end with status 1.
set -eu

# Servers live in sbin, which is not on everybody's path; rabbitmq-server of Debian also in its own folder.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/sbin:/usr/lib/rabbitmq/bin"
export PATH

has() { command -v "$1" >/dev/null 2>&1; }

docker_answers() { has docker && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

missing=""
[ -n "${BROKER_FL_TEST_AMQP_URL:-}" ] || has rabbitmq-server || missing="$missing rabbitmq-server"
[ -n "${BROKER_FL_TEST_REDIS_URL:-}" ] || has redis-server || missing="$missing redis-server"
[ -n "$missing" ] || exit 0
if docker_answers; then exit 0; fi

as_root=""
if [ "$(id -u)" != 0 ]; then as_root="sudo -n"; fi

may_install() { has apt-get && { [ -z "$as_root" ] || { has sudo && sudo -n true 2>/dev/null; }; }; }

if ! may_install; then
    echo "The tests need a RabbitMQ and a Redis; not found here:$missing." >&2
    echo "Give their URLs (BROKER_FL_TEST_AMQP_URL, BROKER_FL_TEST_REDIS_URL), or start Docker, or install them:" >&2
    echo "  Debian, Ubuntu:  sudo apt-get install --no-install-recommends$missing" >&2
    echo "  Fedora:          sudo dnf install$(echo "$missing" | sed 's/redis-server/redis/')" >&2
    echo "  macOS:           brew install$(echo "$missing" | sed 's/-server//g')" >&2
    exit 1
fi

# Debian starts a service as soon as its package is installed, on every interface and with a guest account.
# policy-rc.d is its documented way to say no. One that is there already (as in containers) is kept as it is.
policy=/usr/sbin/policy-rc.d
added_policy=""
cleanup() { if [ -n "$added_policy" ]; then $as_root rm -f "$policy"; fi; }
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
    added_policy=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

echo "Installing$missing (they are not started: each test run has private nodes)."
export DEBIAN_FRONTEND=noninteractive
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120"
$apt update >/dev/null || echo "apt-get update failed: trying with the package lists that are here." >&2
# shellcheck disable=SC2086  # words on purpose
$apt install -y --no-install-recommends $missing >/dev/null

# Nor shall they start at the next boot: only what this script installed is touched.
if has systemctl; then
    # shellcheck disable=SC2086
    $as_root systemctl disable $missing >/dev/null 2>&1 || true
fi
for program in $missing; do
    has "$program" || { echo "$program was installed, but is not found on $PATH" >&2; exit 1; }
done
