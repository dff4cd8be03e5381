"""Where servers are and what they say: URLs, a proxy's answer, dead letters; and files that hosts keep."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import msgpack

from broker_fl.cli.dead import readable
from broker_fl.errors import FrameRefused
from broker_fl.roles.learner.policy import Guard, Policy
from broker_fl.security.audit import Head
from broker_fl.security.proxy import Proxy, parse_proxy
from broker_fl.stores.redis_client import connect
from broker_fl.transports.rabbitmq.addresses import parse_addresses
from broker_fl.transports.rabbitmq.dead import read_letter
from broker_fl.wire.examples import examples
from broker_fl.wire.messages import DeadLetter
from broker_fl.wire.vectors import body_of

URL_WORDS = (
    *(b"://", b"@", b":", b"/", b"//", b",", b"?heartbeat=", b"#", b"[::1]", b"[", b"%", b"%2f", b"%ff"),
    *(b":0", b":65536", b":-1", b"9" * 5_000, b"\xe2\x84\x80", b"\xd9\xa3", b"\0", b"\n", b" "),
)
NUMBER_WORDS = (b"9" * 5_000, b"1e999", b"NaN", b"[" * 5_000, b'{"a":' * 3_000, b"\xd9\xa3", b"null", b'"')
_SECRET = "s3cr3t-of-mine"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def broker_url(data: bytes) -> None:
    """What is made of it names hosts and ports."""
    addresses = parse_addresses(_text(data))
    assert addresses.nodes
    for node in addresses.nodes:
        assert node.host
        assert 0 < node.port < 65_536


def broker_urls() -> list[bytes]:
    """On this machine: those elsewhere need TLS, whose authorities take long to load."""
    return [
        b"amqp://127.0.0.1",
        f"amqp://ana:{_SECRET}@localhost:5672/fl%2Fx?heartbeat=20".encode(),
        f"amqp://ana:{_SECRET}@[::1]:5672,localhost:5673/fl".encode(),
    ]


def store_url(data: bytes) -> None:
    """A client is made of it, which connects to nothing yet."""
    connect(_text(data), timeout_s=1.0).close()


def store_urls() -> list[bytes]:
    """As for brokers."""
    return [b"redis://127.0.0.1", f"redis://ana:{_SECRET}@localhost:6379/3".encode(), b"redis://[::1]:6379/0"]


def proxy_url(data: bytes) -> None:
    """Its text is a URL again, of the same proxy."""
    proxy = parse_proxy(_text(data))
    assert proxy.host
    assert 0 < proxy.port < 65_536
    proxy.request("broker.example.org", 443)


def proxy_urls() -> list[bytes]:
    """With and without credentials."""
    return [b"proxy:3128", b"http://proxy.example.org:8080", f"http://ana:{_SECRET}@[::1]:3128".encode()]


def proxy_answer(data: bytes) -> None:
    """The tunnel is there, or the error says what was answered."""
    Proxy(host="proxy", port=3128, password=_SECRET).check(data, "broker:443")


def proxy_answers() -> list[bytes]:
    """Only those with 2xx are taken."""
    return [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 204 x\r\nVia: a\r\n\r\n"]


def dead_letter(data: bytes) -> None:
    """A letter is read, whoever wrote it: ``[headers, body]``; its account is the broker's word."""
    try:
        headers, body = msgpack.unpackb(data, use_list=True, strict_map_key=False)
        headers, body = dict(headers), b"" + body
    except Exception as error:
        raise FrameRefused("no letter") from error
    for user, key in ((None, "control"), ("F.controller.main", "b.report"), ("F.learner.b", "b.report")):
        method: Any = SimpleNamespace(routing_key=key, delivery_tag=1)
        properties = SimpleNamespace(headers=headers, user_id=user)
        letter = read_letter(method, properties, body, "F")
        assert letter.user == user or user in (None, "F.controller.main")
        assert letter.num_bytes == len(letter.body)
        assert isinstance(letter.time_s, float)
        json.dumps(readable(letter.header))


def dead_letters() -> list[bytes]:
    """Refused by a controller, and dropped by a broker."""
    death = {"reason": "expired", "queue": "q", "routing-keys": ["b.report"], "time": None, "count": 1}
    bodies = [body_of(one) for one in list(examples().values())[:6]]
    note = DeadLetter(source="q", routing_key="b.report", reason="r", time_s=1.0).pack()
    return [msgpack.packb([{"x-death": [death]}, body]) for body in (*bodies, note)]


LETTER_WORDS = (b"\x80" * 4_000, b"\x91" * 1_000, b"\xa6driver" + b"\x91" * 1_000)
"""Maps of nothing, which take seventy times their bytes as objects; what is nested as deeply as can be."""


@cache
def _scratch() -> Path:
    return Path(mkdtemp(prefix="fuzz-")) / "policy.usage"


def usage_file(data: bytes) -> None:
    """What a site has counted today goes on, whatever is in the file, or the site does not start."""
    path = _scratch()
    path.write_bytes(data)
    Guard(Policy.model_validate({"limits": {"max_bytes_per_day": 1_000}}), path)


def usage_files() -> list[bytes]:
    """As it is written."""
    return [b'{"day": "2026-11-23", "bytes": 123456}', b'{"day": "", "bytes": 0}']


def audit_head(data: bytes) -> None:
    """What was read is written in the same way."""
    text = data.decode("utf-8", "replace")
    assert str(Head.parse(text)) == text.strip() or text.strip()[0] == "0"


def audit_heads() -> list[bytes]:
    """Of an empty log, and of one that is not."""
    return [f"{number}:{'0123456789abcdef' * 4}".encode() for number in (0, 42)]
