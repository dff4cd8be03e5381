"""A user's own selector, held to what ``Selector`` promises, in its trial and in every round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from broker_fl.app_errors import UserCode
from broker_fl.errors import AppError
from broker_fl.interfaces import Member, Record

_SHOWN = 5


class CheckedSelector:
    """Makes the user's object when it is first needed: a job whose class is gone ends with that reason."""

    def __init__(self, name: str, make: Callable[[], tuple[Any, UserCode]]) -> None:
        self.name = name
        self._make = make
        self._made: tuple[Any, UserCode] | None = None

    def select(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """Ask the user's selector.

        Raises:
            AppError: it cannot be made, fails, or does not choose some of ``members``.
        """
        chosen = self.choose(members, round, history)
        if not chosen:
            raise AppError(f"{self._where()} chose nobody of {len(members)} learners for round {round}")
        return chosen

    def choose(self, members: Sequence[Member], round: int, history: Mapping[str, Record]) -> list[str]:
        """As ``select``, where nobody may be chosen."""
        self._made = self._made or self._make()
        selector, code = self._made
        with code.explained(f"{self.name}.select()"):
            chosen = selector.select(list(members), round, dict(history))
        return self._checked(chosen, {member.learner for member in members})

    def _checked(self, chosen: object, known: set[str]) -> list[str]:
        if not isinstance(chosen, list | tuple | set | frozenset):
            raise AppError(f"{self._where()} returned a {type(chosen).__name__}; it returns a list of ids")
        strangers = [one for one in chosen if not isinstance(one, str) or one not in known]
        if strangers:
            more = " …" if len(strangers) > _SHOWN else ""
            names = ", ".join(map(repr, strangers[:_SHOWN])) + more
            raise AppError(f"{self._where()} chose {names}, which is not the id of a member")
        if len(set(chosen)) < len(chosen):
            raise AppError(f"{self._where()} chose a learner twice: {list(chosen)!r:.200}")
        return sorted(chosen)

    def _where(self) -> str:
        selector, code = self._made or self._make()
        return f"{code.line_of(selector.select)}: {self.name}.select()"
