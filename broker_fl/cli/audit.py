"""``broker-fl audit``: the log of who did what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from broker_fl.cli import options
from broker_fl.cli.access import store_security
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.tables import print_table, when
from broker_fl.errors import SettingError
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
        "controller's in the store; 'own': where they write by themselves.",
    )
    return file(options.store(options.federation(plaintext(command))))


@click.group()
def audit() -> None:
    """Show the log of who did what, and see whether somebody changed it."""


@audit.command(cls=Command)
@_source
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N entries.")
@options.as_json
def show(last: int | None, as_json: bool, **given: Any) -> None:
    """List the entries, oldest first; nothing is verified."""
    entries = [chain.read(line) for line in _lines(given)]
    chosen = entries[-last:] if last else entries
    if as_json:
        print_json(chosen)
        return
    print_table(
        ("entry", "when", "who", "did", "to", "details"), [_row(one) for one in chosen], numbers=("entry",)
    )
    if entries:
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
    head = chain.verify(_lines(given), given["federation"], known)
    if memory is not None:
        _write(memory, f"{head}\n")
    click.echo(f"{head.sequence} entries, and all fit; head {head}")
    if not known:
        click.echo(
            "Whether entries are missing at the end, only a remembered head can tell: --remember FILE."
        )


def _lines(given: dict[str, Any]) -> Iterator[bytes]:
    federation = given["federation"]
    if given["file"] is not None:
        own = chain.default_file(federation)
        yield from chain.FileLog(own if given["file"] == "own" else given["file"], federation).lines()
        return
    from broker_fl.roles.auditing import stored_lines
    from broker_fl.stores.redis import RedisStore

    store = RedisStore(given["store"], federation=federation, security=store_security(given))
    try:
        yield from stored_lines(store)
    finally:
        store.close()


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    details = json.dumps(entry["details"], ensure_ascii=False)[1:-1]
    texts = (entry["actor"] or "?", entry["action"], entry["subject"])
    return (
        str(entry["sequence"]),
        when(float(entry["time_s"])),
        *(one_line(str(text), 80) for text in texts),
        one_line(details, 200),
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
