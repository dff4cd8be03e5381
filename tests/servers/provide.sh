#!/bin/sh
# Make sure that the tests can have a RabbitMQ and a Redis. In this order:
#   1. both programs are installed: nothing to do;
#   2. Debian or Ubuntu, as root or with sudo that asks for no password: install what is missing, never start it;
#   3. the servers are elsewhere, by URL (BROKER_FL_TEST_AMQP_URL, BROKER_FL_TEST_REDIS_URL) or because a Docker engine
#      answers: most tests can use these; say that those which kill and restart a server will be skipped;
#   4. otherwise say what to install, and end with status 1.
set -eu

# Servers live in sbin, which is not on everybody's path; rabbitmq-server of Debian also in its own folder.
PATH="$PATH:${SERVER_FOLDERS-/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/sbin:/usr/lib/rabbitmq/bin}"
export PATH

has() { command -v "$1" >/dev/null 2>&1; }

docker_answers() { has docker && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

missing_programs() {
    missing=""
    has rabbitmq-server || missing="$missing rabbitmq-server"
    has redis-server || missing="$missing redis-server"
}

as_root=""
if [ "$(id -u)" != 0 ]; then as_root="sudo -n"; fi

may_install() { has apt-get && { [ -z "$as_root" ] || { has sudo && sudo -n true 2>/dev/null; }; }; }

# Debian starts a service as soon as its package is installed, on every interface and with a guest account.
# policy-rc.d is its documented way to say no. One that is there already (as in containers) is kept as it is.
policy=/usr/sbin/policy-rc.d
added_policy=""
cleanup() { if [ -n "$added_policy" ]; then $as_root rm -f "$policy"; fi; }
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

forbid_starts() {
    if [ -e "$policy" ]; then return 0; fi
    added_policy=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null && $as_root chmod 755 "$policy"
}

# Callers look at its status, so that `set -e` does not hold in here.
# shellcheck disable=SC2086  # words on purpose
install_missing() {
    echo "Installing$missing (they are not started: each test run has private nodes)."
    forbid_starts || return 1
    apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120"
    $apt update >/dev/null || echo "apt-get update failed: trying with the package lists that are here." >&2
    $apt install -y --no-install-recommends $missing >/dev/null || return 1
    # Nor shall they start at the next boot: only what this script installed is touched.
    units="$(echo "$missing" | sed 's/openssh-server/ssh/')"
    if has systemctl; then
        for unit in $units; do $as_root systemctl disable "$unit" >/dev/null 2>&1 || true; done
    fi
}

# Single tests want these, and are skipped without them: sshd for `broker-fl fleet`, promtool for the alert rules,
# tinyproxy for brokers behind an HTTP proxy, HAProxy for a Redis with replicas, libfaketime for clocks that are set.
install_extras() {
    missing=""
    has sshd || missing="$missing openssh-server"
    has promtool || missing="$missing prometheus"
    has tinyproxy || missing="$missing tinyproxy"
    has haproxy || missing="$missing haproxy"
    set -- /usr/lib/*/faketime/libfaketime.so.1
    [ -e "$1" ] || missing="$missing libfaketime"
    if [ -n "$missing" ] && may_install; then
        install_missing || echo "Could not install$missing: the tests that need them will be skipped." >&2
    fi
}

install_extras
missing_programs
[ -n "$missing" ] || exit 0
if may_install; then
    install_missing || echo "Could not install$missing." >&2
    missing_programs
    [ -n "$missing" ] || exit 0
fi

nowhere=""
for program in $missing; do
    case "$program" in
        rabbitmq-server) url="${BROKER_FL_TEST_AMQP_URL:-}" ;;
        *) url="${BROKER_FL_TEST_REDIS_URL:-}" ;;
    esac
    [ -n "$url" ] || nowhere="$nowhere $program"
done
if [ -z "$nowhere" ] || docker_answers; then
    echo "Not installed here:$missing. Tests that kill, freeze or restart a server of their own, 'broker-fl up' and" >&2
    echo "the benchmarks will be skipped (with CI=true, those that need their own server fail)." >&2
    exit 0
fi

echo "The tests need a RabbitMQ and a Redis; not found here:$nowhere." >&2
echo "Install them, or give their URLs (BROKER_FL_TEST_AMQP_URL, BROKER_FL_TEST_REDIS_URL), or start Docker:" >&2
echo "  Debian, Ubuntu:  sudo apt-get install --no-install-recommends$nowhere" >&2
echo "  Fedora:          sudo dnf install$(echo "$nowhere" | sed 's/redis-server/redis/')" >&2
echo "  macOS:           brew install$(echo "$nowhere" | sed 's/-server//g')" >&2
exit 1
