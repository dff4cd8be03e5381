"""Which classes a job may name, and how an object is made of one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from broker_fl.app_errors import UserCode
from broker_fl.errors import AppError
from broker_fl.extensions.rule import CheckedRule
from broker_fl.extensions.selector import CheckedSelector
from broker_fl.interfaces import Parameters
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import OwnRule
from broker_fl.wire.selectors import OwnSelector

RULE_METHOD, SELECTOR_METHOD = "begin", "select"


@dataclass(frozen=True, slots=True)
class OwnClasses:
    """A controller's ``Extensions``: the rules and selectors of one app file, or those given to it."""

    classes: Mapping[str, type] = field(default_factory=dict)
    source: str = ""
    """Where they are from; empty where no app was named."""
    code: UserCode | None = None
    """None: each class is looked up where Python says that it was defined."""

    @classmethod
    def of(cls, classes: Iterable[type]) -> OwnClasses:
        """Those that a program has.

        Raises:
            AppError: one of them is neither a rule nor a selector, or two have one name.
        """
        given = tuple(classes)
        for one in given:
            if not (_has(one, RULE_METHOD) or _has(one, SELECTOR_METHOD)):
                raise AppError(
                    f"{one!r} is neither a rule (a class with the method {RULE_METHOD}) nor a selector "
                    f"(with {SELECTOR_METHOD})"
                )
        names = [one.__name__ for one in given]
        if len(set(names)) < len(names):
            raise AppError(f"two of {', '.join(names)} have one name, by which a job would mean either")
        return cls(dict(zip(names, given, strict=True)), "what this program was given")

    @classmethod
    def of_module(cls, module: ModuleType, code: UserCode) -> OwnClasses:
        """Those that an app file defines, or imports from elsewhere than this library."""
        found = {name: value for name, value in vars(module).items() if _is_users_own(value)}
        return cls(found, code.name, code)

    def rule(self, name: str, settings: Parameters) -> CheckedRule:
        """The rule of that class; nothing of it is called yet."""
        return CheckedRule(name, lambda: self._make(RULE_METHOD, name, settings))

    def selector(self, name: str, settings: Parameters) -> CheckedSelector:
        """The selector of that class; nothing of it is called yet."""
        return CheckedSelector(name, lambda: self._make(SELECTOR_METHOD, name, settings))

    def check(self, spec: JobSpec) -> None:
        """Whether the classes that the job names are here and take its settings; nothing of them is called.

        Raises:
            AppError: one is not, or does not.
        """
        if isinstance(spec.rule, OwnRule):
            self._usable(RULE_METHOD, spec.rule.rule, spec.rule.settings)
        if isinstance(spec.selector, OwnSelector):
            self._usable(SELECTOR_METHOD, spec.selector.selector, spec.selector.settings)

    def _make(self, method: str, name: str, settings: Parameters) -> tuple[Any, UserCode]:
        """An object of the class, and where its code is.

        Raises:
            AppError: there is no such class, it has no such method, or it does not take the settings.
        """
        cls, code = self._usable(method, name, settings)
        with code.explained(f"{name}()"):
            made = cls(**settings)
        return made, code

    def _usable(self, method: str, name: str, settings: Parameters) -> tuple[type, UserCode]:
        cls = self._find(method, name)
        code = self.code or _code_of(cls)
        _check_settings(cls, name, settings, code)
        return cls, code

    def _find(self, method: str, name: str) -> type:
        """Only a class that was offered as what it is wanted for is ever called: a job comes from afar."""
        usable = {key: one for key, one in self.classes.items() if _has(one, method)}
        if name in usable:
            return usable[name]
        kind = "rule" if method == RULE_METHOD else "selector"
        if not self.source:
            raise AppError(
                f"no own {kind} {name!r} is known here: the controller was started without an app file "
                "(broker-fl controller --app APP.py)"
            )
        raise AppError(
            f"{self.source} has no {kind} {name!r} (a class with the method {method}); "
            f"it has {', '.join(sorted(usable)) or 'none'}"
        )


def _check_settings(cls: type, name: str, settings: Parameters, code: UserCode) -> None:
    try:
        signature = inspect.signature(cls)
    except ValueError:  # some classes made elsewhere than in Python have none
        return
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise AppError(
            f"{code.line_of(cls)}: {name}{signature} cannot be made with settings = {dict(settings)}: {error}"
        ) from error


def _has(value: object, method: str) -> bool:
    return isinstance(value, type) and callable(getattr(value, method, None))


def _is_users_own(value: object) -> bool:
    if not (_has(value, RULE_METHOD) or _has(value, SELECTOR_METHOD)):
        return False
    return str(getattr(value, "__module__", "")).partition(".")[0] not in {"broker_fl", "typing"}


def _code_of(cls: type) -> UserCode:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return UserCode(name=cls.__module__, root=Path(file).resolve().parent if file else Path.cwd())
