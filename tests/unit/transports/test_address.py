"""Broker URLs and TLS files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import SettingError
from broker_fl.transports.rabbitmq.address import TlsFiles, parse_address
from broker_fl.transports.rabbitmq.addresses import parse_addresses

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(user=words, password=words, vhost=words, port=st.integers(1, 65535))
def test_any_user_password_and_vhost_come_through(user: str, password: str, vhost: str, port: int) -> None:
    user_, password_, vhost_ = (quote(text, safe="") for text in (user, password, vhost))
    address = parse_address(f"amqp://{user_}:{password_}@broker.example:{port}/{vhost_}")
    assert (address.user, address.password, address.vhost, address.port) == (user, password, vhost, port)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://host", ("host", 5672, "guest", "/")),
        ("amqp://host/", ("host", 5672, "guest", "/")),
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
    address = parse_address("amqp://u:p4ss@host/v")
    assert "p4ss" not in f"{address} {address!r}"
    assert str(address) == "amqp://u@host:5672 (virtual host 'v')"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (TlsFiles(ca_file="/missing/ca.pem"), "/missing/ca.pem"),
        (TlsFiles(cert_file="/missing/cert.pem"), "/missing/cert.pem"),
        (TlsFiles(key_file="/missing/key.pem"), "certificate"),
    ],
)
def test_a_tls_file_that_cannot_be_used_is_named(files: TlsFiles, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        parse_address("amqps://host", files)


def test_a_tls_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(SettingError, match=r"ca\.pem"):
        parse_address("amqps://host", TlsFiles(ca_file=path))


def test_tls_files_need_an_amqps_url() -> None:
    with pytest.raises(SettingError, match="amqps"):
        parse_address("amqp://host", TlsFiles())


def test_certificates_are_verified_by_default() -> None:
    context = parse_address("amqps://host").tls
    assert context is not None
    assert context.check_hostname


# ---------------------------------------------------------------- clusters and options


def test_a_url_may_name_the_nodes_of_a_cluster() -> None:
    found = parse_addresses("amqp://u:p%40,@one,two:7,[::1]:8/v%2Fw?heartbeat=5")
    assert [(node.host, node.port) for node in found.nodes] == [("one", 5672), ("two", 7), ("::1", 8)]
    assert {(node.user, node.password, node.vhost) for node in found.nodes} == {("u", "p@,", "v/w")}
    assert found.heartbeat_s == 5
    assert parse_addresses("amqp://one/v").heartbeat_s is None


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:p4ss@one,/v",
        "amqp://u:p4ss@one,two:port/v",
        "amqp://u:p4ss@one/v?heartbeat=0",
        "amqp://u:p4ss@one/v?heartbeat=soon",
        "amqp://u:p4ss@one/v?heartbeat=5&p4=1",
        "amqp://u:p4?ss@one/v",
    ],
)
def test_a_malformed_list_or_option_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(SettingError, match="percent-encoded") as caught:
        parse_addresses(url)
    assert "p4" not in str(caught.value)
