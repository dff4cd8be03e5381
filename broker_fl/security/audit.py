"""The audit log: who did what when, as a chain of hashes in which nothing can be changed unnoticed.

Each entry is one line of JSON in a canonical form (keys sorted, no blanks, UTF-8). ``hash`` is the SHA-256 of
the entry without it, ``previous`` the hash of the entry before; the first one's is that of the log's name. So
a changed, removed, inserted or moved entry does not fit its neighbours. Entries cut off at the end, and a
chain made anew as a whole, are noticed by who remembers a **head**, the number and hash of an entry: keep
one where the log's keeper cannot write.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from broker_fl.errors import AuditBroken, SettingError

log = logging.getLogger(__name__)
LOG_NAME = "audit.log"
"""Where a store keeps it among events; no job is called so, since ids have no dots."""
_FIELDS = ("action", "actor", "details", "hash", "previous", "sequence", "subject", "time_s")
_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})")
_HASH = re.compile("[0-9a-f]{64}")
_MAX_SEQUENCE = 1 << 62
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of a log, at some time."""

    sequence: int
    """0: the log is empty."""
    hash: str

    @classmethod
    def of_empty(cls, federation: str) -> Head:
        """Before the first entry."""
        return cls(0, hashlib.sha256(f"broker_fl audit log of federation {federation}".encode()).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what ``str`` wrote.

        Raises:
            SettingError: it is none.
        """
        if (found := _HEAD.fullmatch(text.strip())) is None:
            raise SettingError(f"{text[:80]!r} is no head of an audit log; it looks like 42:<64 hex digits>")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What is written down. No field may hold a secret."""

    actor: str
    """The broker's account that did it, as the broker vouches for it; empty: that is not known."""
    action: str
    subject: str
    """What it was done to: ``job digits-1f``, ``learner site-1``."""
    details: Mapping[str, str | int | float | bool] | None = None


def chained(deed: Deed, after: Head, time_s: float) -> tuple[bytes, Head]:
    """The entry of a deed, and the head that it makes; ``time_s`` is Unix time."""
    fields = {
        "sequence": after.sequence + 1,
        "time_s": round(time_s, 3),
        "actor": deed.actor,
        "action": deed.action,
        "subject": deed.subject,
        "details": dict(deed.details or {}),
        "previous": after.hash,
    }
    digest = _digest(fields)
    return _canonical({**fields, "hash": digest}), Head(after.sequence + 1, digest)


def read(line: bytes) -> dict[str, Any]:
    """The fields of an entry, whether it fits the chain or not.

    Raises:
        AuditBroken: it is no entry.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AuditBroken(f"audit log: {_start(line)} is no entry of one") from error
    if not isinstance(fields, dict) or tuple(sorted(fields)) != _FIELDS:
        raise AuditBroken(f"audit log: {_start(line)} has other fields than an entry")
    number, own = fields["sequence"], fields["hash"]
    if type(number) is not int or not 0 < number < _MAX_SEQUENCE or not isinstance(own, str):
        raise AuditBroken("audit log: an entry has no number or no hash")
    if not _HASH.fullmatch(own):
        raise AuditBroken(f"audit log: entry {number} has a hash that is none")
    return fields


def _start(line: bytes) -> str:
    """Which line, so that it can be found."""
    return f"the line that begins with {line[:60].decode(errors='replace')!r}" if line else "an empty line"


def verify(lines: Iterable[bytes], federation: str, remembered: Sequence[Head] = ()) -> Head:
    """Go through a log from its beginning; its head comes back.

    Raises:
        AuditBroken: an entry was changed, removed, inserted or moved; or the log does not hold a head that is
            remembered, because it was cut off or made anew. The message names the entry.
    """
    head = Head.of_empty(federation)
    awaited = {one.sequence: one for one in remembered if one.sequence}
    for line in lines:
        head = _next(line, head)
        known = awaited.pop(head.sequence, None)
        if known is not None and known != head:
            raise AuditBroken(f"audit log: entry {head.sequence} is another than is remembered: made anew?")
    if awaited:
        missing = max(awaited)
        raise AuditBroken(
            f"audit log: it ends with entry {head.sequence}; entry {missing} is remembered: it was cut off"
        )
    return head


def _next(line: bytes, head: Head) -> Head:
    fields = read(line)
    number, place = fields["sequence"], head.sequence + 1
    if number != place:
        what = "is missing" if number > place else "comes once more"
        raise AuditBroken(f"audit log: entry {number} stands where {place} should: one {what}, or was moved")
    if fields["previous"] != head.hash:
        raise AuditBroken(f"audit log: entry {number} does not follow the one before it: one was exchanged")
    own = fields.pop("hash")
    if not _fits(fields, own, line.strip()):
        raise AuditBroken(f"audit log: entry {number} was changed: it does not fit its hash")
    return Head(number, own)


def _fits(fields: Mapping[str, Any], own: str, line: bytes) -> bool:
    try:
        return _digest(fields) == own and _canonical({**fields, "hash": own}) == line
    except (ValueError, RecursionError):  # no text of ours: half of a surrogate pair, a number too long
        return False


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()


# ---------------------------------------------------------------- a log in a file


def default_file(federation: str) -> Path:
    """Where what is done from this account is written down, without another place being named."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "broker_fl" / f"audit-{federation}.jsonl"


class FileLog:
    """For what is done without a controller: enrolling, rotating, revoking."""

    def __init__(self, path: str | Path, federation: str) -> None:
        """Nothing is opened yet."""
        self.path = Path(path)
        self._federation = federation

    def append(self, deed: Deed, clock: Callable[[], float] = time.time) -> Head:
        """Write one down, on disk when this returns; the file is its owner's only.

        A last line that is no entry, as of a machine that lost its power, does not keep an account from being
        revoked: what is written down follows it, and ``verify`` will say so.

        Raises:
            SettingError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                before, ends = self._head(file)
                line, head = chained(deed, before, clock())
                file.write((b"" if ends else b"\n") + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingError(f"the audit log {self.path} cannot be written: {error.strerror}") from error
        return head

    def lines(self) -> Iterator[bytes]:
        """All entries, oldest first.

        Raises:
            SettingError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")
        except OSError as error:
            raise SettingError(f"the audit log {self.path} cannot be read: {error.strerror}") from error

    def _head(self, file: BinaryIO) -> tuple[Head, bool]:
        """Of the log as it is, and whether its last line is complete."""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        if not tail:
            return Head.of_empty(self._federation), True
        line = tail.splitlines()[-1]
        try:
            last = read(line)
        except AuditBroken as error:
            log.error("%s: %s; the log goes on after it", self.path, error)
            file.seek(0)
            return Head(sum(1 for _ in file), hashlib.sha256(line).hexdigest()), tail.endswith(b"\n")
        return Head(last["sequence"], last["hash"]), tail.endswith(b"\n")
