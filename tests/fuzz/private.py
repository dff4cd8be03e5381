"""Decoders of what makes somebody somebody: join files, tokens, requests to be enrolled, audit logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from broker_fl.errors import AuditBroken
from broker_fl.identity.joinfile import FORMAT, JoinFile, read_join_file
from broker_fl.identity.passwords import hashed
from broker_fl.identity.tokens import EnrolmentRequest, Token, read_token
from broker_fl.security.audit import Deed, Head, chained, read, verify

_PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
_PLACE: dict[str, Any] = {
    "federation": "hospitals",
    "name": "site-1",
    "broker": "amqps://broker.example.org:5671/fl",
    "ca": _PEM,
}
FILE_WORDS = (
    *(
        b"format = ",
        b"role = ",
        b'"driver"\n',
        b"password = ",
        b"certificate = ",
        b"key = ",
        b"keys = [",
        b"token = ",
    ),
    *(
        b"amqp://",
        b"@",
        b"[::1]",
        b"%2",
        b"'''\n",
        b"-----BEGIN ",
        b"nan\n",
        b"inf\n",
        b"true\n",
        b"1979-05-27\n",
    ),
    *(b"\\u0000", b"\\u007F", b"\\uD800", b"\x7f", b"\xff", b"[[", b"9" * 4_000, b"0x" + b"f" * 4_000),
)
JSON_WORDS = (
    *(
        b'"details":{',
        b'"sequence":',
        b'"hash":"',
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"null",
        b"true",
        b"[" * 3_000,
    ),
    *(b'{"":' * 900, b"9" * 4_000, b"\n", b"\r\n", b"\xff"),
)


def _read_as(read_file: Callable[[Path], JoinFile | Token]) -> Callable[[bytes], None]:
    """What was read names an account, and can be written and read again."""

    def decode(data: bytes) -> None:
        path = _scratch()
        path.write_bytes(data)
        file = read_file(path)
        assert file.account.name == file.name
        assert file.broker.partition("://")[0] in file.url
        path.write_text(file.to_toml("again"), encoding="utf-8")
        assert repr(read_file(path)) == repr(file)

    return decode


join_file = _read_as(read_join_file)
token_file = _read_as(lambda path: read_token(path, now=0.0))


@cache
def _scratch() -> Path:
    path = Path(mkdtemp(prefix="fuzz-")) / "a.join"
    path.touch(mode=0o600)
    return path


def join_files() -> list[bytes]:
    """With a password, and with a certificate."""
    files = [
        JoinFile(**_PLACE, role="learner", password="a b'\"\\é", expires="2030-01-01"),
        JoinFile(**_PLACE, role="driver", certificate="site.pem", key="site-key.pem", keys=("a", "b")),
    ]
    return [file.to_toml("a file").encode() for file in files]


def token_files() -> list[bytes]:
    """One that holds, at the time that is given."""
    token = Token(**_PLACE, role="group", token="x" * 43, id="0123456789abcdef", expires=1.5)
    return [token.to_toml("a token").encode()]


def enrolment_request(data: bytes) -> None:
    """Of anybody with a token."""
    request = EnrolmentRequest.unpack(data)
    assert request.format == FORMAT
    assert len(request.fingerprint) == 19
    assert EnrolmentRequest.unpack(request.pack()) == request


def enrolment_requests() -> list[bytes]:
    """One."""
    request = EnrolmentRequest(id="0123456789abcdef", password_hash=hashed("secret", b"salt"))
    return [request.pack()]


@cache
def _entries() -> tuple[bytes, ...]:
    deeds = [
        Deed(
            actor="hospitals.driver.ana", action="submit", subject="job a", details={"rule": "fedavg", "n": 3}
        ),
        Deed(actor="", action="joined", subject="learner é"),
        Deed(actor="admin", action="revoke", subject="learner b", details={"by force": True, "after_s": 0.5}),
    ]
    lines, head = [], Head.of_empty("hospitals")
    for deed in deeds:
        line, head = chained(deed, head, 1_800_000_000.25)
        lines.append(line)
    return tuple(lines)


def audit_log(data: bytes) -> None:
    """The log holds only if it is the one that was written, or a beginning of it; whatever can be read can be
    written after.
    """
    lines = data.split(b"\n")
    with suppress(AuditBroken):
        last = read(lines[-1])
        chained(Deed(actor="a", action="b", subject="c"), Head(last["sequence"], last["hash"]), 0.0)
    head = verify(lines, "hospitals")
    assert tuple(line.strip() for line in lines) == _entries()[: head.sequence]


def audit_logs() -> list[bytes]:
    """The beginnings of one."""
    entries = _entries()
    return [b"\n".join(entries[:num]) for num in range(1, len(entries) + 1)]
