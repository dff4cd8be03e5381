"""The operator's audit log: what a command sets out to do, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from broker_fl.errors import BrokerFLError, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.security.audit import Deed, FileLog, default_file
from broker_fl.workers.logs import redacted

_MAX_REASON = 300


@contextmanager
def written_down(
    action: str, account: Account, given: Mapping[str, Any], **details: str | float
) -> Iterator[None]:
    """Write an entry before the block is run, and one with its ``outcome`` after it: ``done``, or ``refused``
    or ``failed`` with the reason. The second names the first (``of_entry``); a first one alone was cut short.

    Raises:
        SettingError: the log cannot be written; if the first entry cannot, the block is not run.
    """
    actor = unquote(urlsplit(given["management"]).username or "guest")
    deed = Deed(actor=actor, action=action, subject=f"account {account.user}", details=details)
    with noted(deed, given):
        yield


@contextmanager
def noted(deed: Deed, given: Mapping[str, Any], federation: str | None = None) -> Iterator[dict[str, str]]:
    """As ``written_down``, of any deed. What the block puts into the dictionary is in the last entry, if the
    deed was done.
    """
    federation = federation or given["federation"]
    log, known = FileLog(given["audit"] or default_file(federation), federation), dict[str, str]()

    def write(more: Mapping[str, str | int | float | bool]) -> int:
        return log.append(replace(deed, details=more)).sequence

    begun = write(deed.details or {})
    try:
        yield known
    except BaseException as error:
        write({"of_entry": begun, "outcome": _what_went_wrong(error)})
        raise
    try:
        write({"of_entry": begun, "outcome": "done", **known})
    except BrokerFLError as error:
        raise SettingError(
            f"{deed.subject}: the {deed.action} is done, and that could not be noted: {error}"
        ) from error


def _what_went_wrong(error: BaseException) -> str:
    word = "refused" if isinstance(error, SettingError) else "failed"
    text = " ".join(str(error).split()) or type(error).__name__
    return redacted(f"{word}: {text}")[:_MAX_REASON]
