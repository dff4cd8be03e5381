"""``broker-fl dead list``, ``show``, ``replay`` and ``drop``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from broker_fl.cli import options
from broker_fl.cli.access import broker_security
from broker_fl.cli.command import Command, print_json
from broker_fl.cli.deeds import noted
from broker_fl.cli.operators import AUDIT
from broker_fl.cli.tables import print_table, when
from broker_fl.errors import SettingError
from broker_fl.record.text import one_line, plural, size
from broker_fl.security.audit import Deed
from broker_fl.transports.rabbitmq.dead import DeadLetters, Letter, dead_letters
from broker_fl.wire.fields import MAX_TEXT_CHARS
from broker_fl.wire.frames import MAX_CHUNK_HEADER_BYTES

F = TypeVar("F", bound=Callable[..., Any])
_SHOWN = (
    *("id", "reason", "time_s", "queue", "routing_key", "user", "sender"),
    *("kind", "job", "num_bytes", "is_cut"),
)

MAX_NAMED = 100
"""Letters whose ids are written down, of those that one command sends on or drops."""
MAX_DEPTH = 20
"""Of a refused message's header that is shown. No kind has more; what somebody made up may."""


@click.group()
def dead() -> None:
    """Messages that were refused: list, read, send again, drop."""


def _filters(command: F) -> F:
    """Which of them."""
    for option in (
        click.option("--job", metavar="ID", help="Only those of this job."),
        click.option("--kind", metavar="KIND", help="Only those of this kind."),
        click.option("--from", "sender", metavar="NAME", help="Only those of this learner or driver."),
    ):
        command = option(command)
    return command


@dead.command("list", cls=Command)
@options.broker_access
@_filters
@options.as_json
def list_letters(as_json: bool, job: str | None, kind: str | None, sender: str | None, **access: Any) -> None:
    """List them, oldest first. They stay where they are."""
    with _opened(access) as opened:
        found = _matching(opened.letters, job, kind, sender)
    if as_json:
        print_json([_as_json(letter) for letter in found])
        return
    if not found:
        which = "no such dead letters" if opened.letters else "no dead letters"
        click.echo(f"federation {access['federation']} has {which}", err=True)
        return
    now = time.time()
    rows = [
        (
            letter.id,
            _age(now - letter.time_s) if letter.time_s else "",
            *(one_line(words, 64) for words in (letter.sender, letter.kind, letter.job)),
            size(letter.num_bytes),
            one_line(letter.reason, MAX_TEXT_CHARS),
        )
        for letter in found
    ]
    columns = ("id", "age", "from", "kind", "job", "size", "reason")
    print_table(columns, rows, numbers=("age", "size"), last_below=True)


@dead.command(cls=Command)
@click.argument("letter")
@options.broker_access
def show(letter: str, **access: Any) -> None:
    """Show one of them as JSON: why it was refused, and what is in it. LETTER is an id, or its beginning."""
    with _opened(access) as opened:
        found = _named(opened.letters, [letter])[0]  # others that it may be have the same bytes
    header = found.header
    shown = f"more than {MAX_CHUNK_HEADER_BYTES} bytes" if header is None else readable(header)
    print_json({**_as_json(found), "when": when(found.time_s), "header": shown})


@dead.command(cls=Command)
@click.argument("letters", nargs=-1)
@options.broker_access
@_filters
@AUDIT
@click.option("--all", "everything", is_flag=True, help="All, or all that the filters leave.")
def replay(letters: tuple[str, ...], **given: Any) -> None:
    """Send LETTERS (ids, or beginnings of them) again, to where they were refused.

    Where accounts are identities it takes the join file of a controller (--join): what its account sends on
    counts as sent by who wrote it, and is held against that. A message may safely arrive twice.
    """
    _each(letters, given, DeadLetters.replay, "sent again", check=DeadLetters.check_replay)


@dead.command(cls=Command)
@click.argument("letters", nargs=-1)
@options.broker_access
@_filters
@AUDIT
@click.option("--all", "everything", is_flag=True, help="All, or all that the filters leave.")
def drop(letters: tuple[str, ...], **given: Any) -> None:
    """Delete LETTERS (ids, or beginnings of them) for good."""
    _each(letters, given, DeadLetters.drop, "dropped")


def _each(
    letters: tuple[str, ...],
    given: dict[str, Any],
    act: Callable[[DeadLetters, Letter], None],
    done: str,
    check: Callable[[DeadLetters, Sequence[Letter]], None] = lambda *_: None,
) -> None:
    if bool(letters) == given["everything"]:
        raise click.UsageError("give the letters by their ids, or --all")
    with _opened(given) as opened:
        chosen = _named(opened.letters, letters) if letters else opened.letters
        chosen = _matching(chosen, given["job"], given["kind"], given["sender"])
        check(opened, chosen)
        if chosen:
            with noted(_deed(act.__name__, opened.user, chosen), given):
                _do(lambda letter: act(opened, letter), chosen, done)
        else:
            click.echo(f"0 dead letters {done}")


def _deed(action: str, user: str, letters: Sequence[Letter]) -> Deed:
    """That is written down: letters are evidence, and who sends them on says who wrote them."""
    first = letters[:MAX_NAMED]
    details = {
        "ids": " ".join(letter.id for letter in first),
        "of": one_line(" ".join(sorted({letter.user or "nobody" for letter in first})), 500),
    }
    subject = plural(len(letters), "dead letter")
    return Deed(actor=user, action=f"dead_{action}", subject=subject, details=details)


def _do(act: Callable[[Letter], None], letters: Sequence[Letter], done: str) -> None:
    failures: list[str] = []
    for letter in letters:
        try:
            act(letter)
        except SettingError as error:
            failures.append(str(error))
    click.echo(f"{plural(len(letters) - len(failures), 'dead letter')} {done}")
    if failures:
        raise SettingError(f"{plural(len(failures), 'dead letter')} left: {'; '.join(failures[:5])}")


def _opened(access: dict[str, Any]) -> Any:
    return dead_letters(access["broker"], access["federation"], broker_security(access))


def _matching(
    letters: Sequence[Letter], job: str | None, kind: str | None, sender: str | None
) -> list[Letter]:
    wanted = {"job": job, "kind": kind, "sender": sender}
    return [
        letter
        for letter in letters
        if all(value is None or getattr(letter, name) == value for name, value in wanted.items())
    ]


def _named(letters: Sequence[Letter], names: Sequence[str]) -> list[Letter]:
    """Those whose ids begin so; of the same bytes, each time they are there."""
    found: dict[int, Letter] = {}
    for name in names:
        same = [letter for letter in letters if letter.id.startswith(name)]
        if not same:
            raise SettingError(f"there is no dead letter {name!r}; `broker-fl dead list` shows their ids")
        if len({letter.id for letter in same}) > 1:
            raise SettingError(f"{name!r} may be any of {len(same)} dead letters; give more of the id")
        found |= {letter.tag: letter for letter in same}
    return list(found.values())


def _as_json(letter: Letter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in _SHOWN}


def readable(value: Any, depth: int = 0) -> Any:
    """What JSON has no form for, in words; and no deeper than anybody reads."""
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {str(name): readable(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [readable(inner, depth + 1) for inner in value[:100]]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if isinstance(value, str | int | float | None) else str(value)


def _age(seconds: float) -> str:
    for name, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
