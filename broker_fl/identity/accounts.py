"""Names of accounts. The broker vouches for them (``user_id``), so that a name alone says who speaks.

An account is the broker's user ``<federation>.<role>.<name>``; none of the three has a dot in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

from broker_fl.errors import SettingError

Role = Literal["learner", "group", "driver", "observer", "controller"]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_DRIVER_NAME = 40
"""Characters: a driver's ids and queues are its account's name with something behind it."""
_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OF_A_DRIVER = re.compile(r"(?P<name>.+)-[0-9a-f]{12}")
_MEMBER = re.compile(r"(?P<group>.+)-[0-9]+")


@dataclass(frozen=True, slots=True)
class Account:
    """One party of one federation."""

    federation: str
    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r} of federation {self.federation!r}"

    @property
    def user(self) -> str:
        """The broker's user."""
        return f"{self.federation}.{self.role}.{self.name}"

    @property
    def has_mailbox(self) -> bool:
        """Whether tasks come to it."""
        return self.role in ("learner", "group")

    @property
    def asks(self) -> bool:
        """Whether it sends requests."""
        return self.role in ("driver", "observer")

    @classmethod
    def of(cls, user: str | None) -> Self | None:
        """The account that a broker's user is; None if it is no account of a federation."""
        federation, _, rest = (user or "").partition(".")
        role, _, name = rest.partition(".")
        if role in ROLES and _PART.fullmatch(federation) and _PART.fullmatch(name):
            return cls(federation, role, name)
        return None

    @classmethod
    def new(cls, federation: str, role: Role, name: str) -> Self:
        """The account of somebody who is to be enrolled.

        Raises:
            SettingError: the name cannot be one.
        """
        for what, part in (("federation", federation), (role, name)):
            if not _PART.fullmatch(part):
                raise SettingError(
                    f"{part!r} is no name of a {what}: 1 to 64 letters, digits, '-' or '_' are allowed"
                )
        account = cls(federation, role, name)
        if account.asks and len(name) > MAX_DRIVER_NAME:
            raise SettingError(
                f"{name!r} is too long for a {role}: at most {MAX_DRIVER_NAME} characters are allowed"
            )
        return account

    def speaks_for(self, name: str) -> bool:
        """Whether messages under this id may come from this account: its own, or one of its drivers'."""
        if self.asks:
            found = _OF_A_DRIVER.fullmatch(name)
            return found is not None and found["name"] == self.name
        return name == self.name

    def has_member(self, learner: str) -> bool:
        """Whether a learner of that name may be one of this group: ``<group>-<number>``."""
        found = _MEMBER.fullmatch(learner)
        return self.role == "group" and found is not None and found["group"] == self.name
