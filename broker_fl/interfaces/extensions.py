"""Where rules and selectors of the user's own come from."""

from __future__ import annotations

from typing import Protocol

from broker_fl.interfaces.learner import Parameters
from broker_fl.interfaces.rule import Rule
from broker_fl.interfaces.selector import Selector


class Extensions(Protocol):
    """Rules and selectors of the user's own; jobs name them by their classes."""

    def rule(self, name: str, settings: Parameters) -> Rule:
        """The rule of that class. That there is none is said by ``begin``, as an ``AppError``."""
        ...

    def selector(self, name: str, settings: Parameters) -> Selector:
        """The selector of that class. That there is none is said by ``select``, as an ``AppError``."""
        ...
