"""Broker URLs and TLS files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import AccessDenied, BrokerUnavailable, SettingError
from broker_fl.security import Security
from broker_fl.security.proxy import parse_proxy
from broker_fl.transports.rabbitmq.address import parse_address
from broker_fl.transports.rabbitmq.addresses import parse_addresses

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(user=words, password=words, vhost=words, port=st.integers(1, 65535))
def test_any_user_password_and_vhost_come_through(user: str, password: str, vhost: str, port: int) -> None:
    user_, password_, vhost_ = (quote(text, safe="") for text in (user, password, vhost))
    address = parse_address(f"amqps://{user_}:{password_}@broker.example:{port}/{vhost_}")
    assert (address.user, address.password, address.vhost, address.port) == (user, password, vhost, port)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://localhost", ("localhost", 5672, "guest", "/")),
        ("amqp://localhost/", ("localhost", 5672, "guest", "/")),
        ("amqps://u:p@host/%2F", ("host", 5671, "u", "/")),
        ("amqp://u:p@[::1]:7/v", ("::1", 7, "u", "v")),
    ],
)
def test_what_is_left_out_has_the_usual_value(url: str, expected: tuple[str, int, str, str]) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.user, address.vhost) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "http://u:p4ss@host",
        "amqp://",
        "amqp://u:p4ss@",
        "amqp://u:p4ss@host:port/v",
        "amqp://u:p4ss@host:0/v",
        "amqp://u:p4ss@host:70000",
        "amqp://u:p4/ss@host",
        "amqp://u:p4#ss@host",
        "amqp://u:p4ss@host/a/b",
        "amqp://u:p4ss@host/v?p4ss=1",
        "amqp://u:p4ss@[host",
    ],
)
def test_a_malformed_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(SettingError, match="percent-encoded") as caught:
        parse_address(url)
    assert "p4" not in str(caught.value)


def test_no_text_of_an_address_holds_the_password() -> None:
    address = parse_address("amqp://u:p4ss@localhost/v")
    assert "p4ss" not in f"{address} {address!r}"
    assert str(address) == "amqp://u@localhost:5672 (virtual host 'v')"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (Security(ca_file="/missing/ca.pem"), "/missing/ca.pem"),
        (Security(cert_file="/missing/cert.pem"), "/missing/cert.pem"),
        (Security(key_file="/missing/key.pem"), "certificate"),
    ],
)
def test_a_tls_file_that_cannot_be_used_is_named(files: Security, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        parse_address("amqps://host", files)


def test_a_tls_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(SettingError, match=r"ca\.pem"):
        parse_address("amqps://host", Security(ca_file=path))


def test_tls_files_need_an_amqps_url() -> None:
    with pytest.raises(SettingError, match="amqps"):
        parse_address("amqp://localhost", Security(ca_file="ca.pem"))


def test_certificates_are_verified_by_default() -> None:
    context = parse_address("amqps://host").tls
    assert context is not None
    assert context.check_hostname


@pytest.mark.parametrize("host", ["broker.example", "10.0.0.1", "localhost.example", "[fe80::1]"])
def test_nobody_goes_to_another_machine_in_plain_text_unless_told_to(host: str) -> None:
    url = f"amqp://u:p4ss@{host}/v"
    with pytest.raises(SettingError, match=r"amqps.*--insecure-plaintext") as caught:
        parse_address(url)
    assert "p4ss" not in str(caught.value)
    assert parse_address(url, Security(insecure_plaintext=True)).tls is None


def test_behind_a_proxy_elsewhere_localhost_is_another_machine() -> None:
    proxy = "http://proxy.example:3128"
    with pytest.raises(SettingError, match="--insecure-plaintext"):
        parse_address("amqp://u:p@localhost/v", Security(proxy=proxy))
    assert parse_address("amqp://localhost/v", Security(proxy=proxy, insecure_plaintext=True)).tls is None
    assert parse_address("amqp://localhost/v", Security(proxy="http://127.0.0.1:3128")).tls is None


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_within_the_machine_plain_text_is_allowed(host: str) -> None:
    assert parse_address(f"amqp://{host}").tls is None


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("url", "given", "environment", "expected"),
    [
        ("amqps://far:443", None, {"HTTPS_PROXY": "http://u:p4ss@gate:3128"}, "http://u@gate:3128"),
        ("amqps://far:443", None, {"https_proxy": "gate:3128"}, "http://gate:3128"),
        ("amqps://far", None, {"HTTPS_PROXY": "http://gate", "NO_PROXY": "near,far"}, None),
        ("amqps://a.far", None, {"HTTPS_PROXY": "http://gate", "NO_PROXY": ".far"}, None),
        ("amqps://far", None, {"HTTPS_PROXY": "http://gate", "NO_PROXY": "*"}, None),
        ("amqps://far", None, {"HTTP_PROXY": "http://gate"}, None),
        ("amqps://localhost", None, {"HTTPS_PROXY": "http://gate"}, None),
        ("amqp://localhost", None, {"HTTPS_PROXY": "http://gate"}, None),
        ("amqps://far", "none", {"HTTPS_PROXY": "http://gate"}, None),
        ("amqps://far", "http://[::1]:8080", {"HTTPS_PROXY": "http://gate"}, "http://[::1]:8080"),
        ("amqps://far", "http://o%40b:p%2F4ss@gate", {"NO_PROXY": "*"}, "http://o@b@gate:80"),
    ],
)
def test_the_proxy_is_the_given_one_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, given: str | None, environment: dict[str, str], expected: str
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address = parse_address(url, Security(proxy=given))
    assert (str(address.proxy) if address.proxy else None) == expected
    assert "4ss" not in f"{address} {address!r} {Security(proxy=given)!r}"


@pytest.mark.parametrize(
    "url", ["https://u:p4ss@gate", "http://", "http://u:p4ss@gate:port", "socks5://gate"]
)
def test_an_unusable_proxy_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingError, match=r"proxy.*http://\[user:password@\]host:port") as caught:
        parse_address("amqps://far", Security(proxy=url))
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", AccessDenied, "wants credentials"),
        (b"HTTP/1.0 403 Filtered\r\n\r\n", SettingError, "does not let this pass"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", BrokerUnavailable, "does not reach it"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", SettingError, "not an HTTP proxy"),
    ],
)
def test_what_a_proxy_answers_is_understood(answer: bytes, error: type[Exception], words: str) -> None:
    proxy = parse_proxy("http://gate:3128")
    proxy.check(b"HTTP/1.0 200 Connection established\r\n\r\n", "far:443")
    with pytest.raises(error, match=f"gate:3128.*{words}") as caught:
        proxy.check(answer, "far:443")
    assert type(caught.value) is error


# ---------------------------------------------------------------- clusters and options


def test_a_url_may_name_the_nodes_of_a_cluster() -> None:
    found = parse_addresses("amqps://u:p%40,@one,two:7,[::1]:8/v%2Fw?heartbeat=5")
    assert [(node.host, node.port) for node in found.nodes] == [("one", 5671), ("two", 7), ("::1", 8)]
    assert {(node.user, node.password, node.vhost) for node in found.nodes} == {("u", "p@,", "v/w")}
    assert found.heartbeat_s == 5
    assert parse_addresses("amqps://one/v").heartbeat_s is None


@pytest.mark.parametrize(
    "url",
    [
        "amqps://u:p4ss@one,/v",
        "amqps://u:p4ss@one,two:port/v",
        "amqps://u:p4ss@one/v?heartbeat=0",
        "amqps://u:p4ss@one/v?heartbeat=soon",
        "amqps://u:p4ss@one/v?heartbeat=5&p4=1",
        "amqps://u:p4?ss@one/v",
    ],
)
def test_a_malformed_list_or_option_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(SettingError, match="percent-encoded") as caught:
        parse_addresses(url)
    assert "p4" not in str(caught.value)
