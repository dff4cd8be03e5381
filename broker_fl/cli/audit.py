"""``broker-fl audit``: the log of who did what."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from broker_fl.cli import options
from broker_fl.cli.access import store_security
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.tables import print_table, when
from broker_fl.errors import AuditBroken, SettingError
from broker_fl.identity.joinfile import read_join_file
from broker_fl.record.text import one_line
from broker_fl.security import audit as chain

F = TypeVar("F", bound=Callable[..., Any])


def _source(command: F) -> F:
    """Where the log is."""
    plaintext = click.option(
        "--insecure-plaintext", is_flag=True, help="Go to a Redis on another machine without TLS."
    )
    file = click.option(
        "--file",
        metavar="FILE",
        help="That of an operator's commands (enroll, token, accept, rotate, revoke), instead of the "
        "controller's in the store; 'own': where they write.",
    )
    audit_file = click.option(
        "--audit",
        "own_file",
        metavar="FILE",
        help="As --file own, where they were given --audit, too.  "
        "[default: ~/.local/state/broker_fl/audit-<federation>.jsonl]",
    )
    join = click.option("--join", metavar="FILE", help="A join file, which says the federation.")
    source = options.store(options.federation(plaintext(command)))

    @functools.wraps(source)
    def with_join_file(*args: Any, join: str | None, **given: Any) -> Any:
        if join is not None:
            options.not_beside_join(f"--join {join} says the federation", ["federation"])
            given["federation"] = read_join_file(join).federation
        typed = click.get_current_context().get_parameter_source("own_file") is ParameterSource.COMMANDLINE
        if typed and given["file"] is None:
            given["file"] = "own"
        return command(*args, **given)

    return cast("F", file(audit_file(join(with_join_file))))


@click.group()
def audit() -> None:
    """Show the log of who did what, and see whether somebody changed it."""


@audit.command(cls=Command)
@_source
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N entries.")
@options.as_json
def show(last: int | None, as_json: bool, **given: Any) -> None:
    """List the entries, oldest first; nothing is verified.

    What an operator's command does has two: one before it is done (begun), one with what came of it (ended).
    """
    entries = [chain.read(line) for line in _lines(given)]
    chosen = entries[-last:] if last else entries
    if as_json:
        print_json(chosen)
        return
    if not entries:
        click.echo(_nothing(given), err=True)
        return
    begun = {_of_entry(one) for one in entries}
    columns = ("entry", "when", "who", "did", "to", "details")
    rows = [_row(one, is_begun=one["sequence"] in begun) for one in chosen]
    print_table(columns, rows, numbers=("entry",), last_below=True)
    click.echo(f"head {chain.Head(entries[-1]['sequence'], entries[-1]['hash'])}")


@audit.command(cls=Command)
@_source
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="N:HASH",
    help="A head that the log must hold; may be given several times.",
)
@click.option(
    "--remember",
    metavar="FILE",
    help="Keep the head in FILE, and hold the log against the one that is there. The FILE belongs where the "
    "store's keeper cannot write.",
)
def verify(heads: tuple[str, ...], remember: str | None, **given: Any) -> None:
    """Go through the whole log: changed, missing and moved entries are found, and with a remembered head also
    a log that was cut off or made anew.
    """
    known = [chain.Head.parse(one) for one in heads]
    memory = Path(remember) if remember else None
    if memory is not None and memory.exists():
        known.append(chain.Head.parse(_read(memory)))
    try:
        head = chain.verify(_lines(given), given["federation"], known)
    except AuditBroken as error:
        raise AuditBroken(f"federation {given['federation']!r}: {error}") from error
    if not head.sequence:
        raise SettingError(_nothing(given))
    if memory is not None:
        _write(memory, f"{head}\n")
    click.echo(f"{head.sequence} entries, and all fit; head {head}")
    if not known:
        click.echo(
            "Whether entries are missing at the end, only a remembered head can tell: --remember FILE."
        )


def _nothing(given: dict[str, Any]) -> str:
    """Of a log without an entry; a controller makes the first one when it begins."""
    if given["file"] is not None:
        return f"nothing of federation {given['federation']!r} is written down in that file"
    return (
        f"no controller of federation {given['federation']!r} has ever worked with this store; is another "
        "one meant (--federation, --join, --store)?"
    )


def _lines(given: dict[str, Any]) -> Iterator[bytes]:
    federation = given["federation"]
    if given["file"] is not None:
        own = given["own_file"] or chain.default_file(federation)
        yield from chain.FileLog(own if given["file"] == "own" else given["file"], federation).lines()
        return
    from broker_fl.roles.controller.auditing import stored_lines
    from broker_fl.stores.redis import RedisStore

    store = RedisStore(given["store"], federation=federation, security=store_security(given))
    try:
        yield from stored_lines(store)
    finally:
        store.close()


def _of_entry(entry: dict[str, Any]) -> int | None:
    """Whose outcome it has; whatever somebody made of the entry, it is shown."""
    number = entry["details"].get("of_entry") if isinstance(entry["details"], dict) else None
    return number if isinstance(number, int) else None


def _row(entry: dict[str, Any], *, is_begun: bool) -> tuple[str, ...]:
    details = json.dumps(entry["details"], ensure_ascii=False)[1:-1]
    word = " (begun)" if is_begun else " (ended)" if _of_entry(entry) is not None else ""
    texts = (entry["actor"] or "?", f"{entry['action']}{word}", entry["subject"])
    return (
        str(entry["sequence"]),
        when(float(entry["time_s"])),
        *(one_line(str(text), 80) for text in texts),
        one_line(details, 500),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from error
