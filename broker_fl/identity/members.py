"""Enrolling, rotating, revoking and listing the accounts of a federation, through the management interface.

What the broker does not keep of a user (since when, until when) is in a global parameter of the broker, named
``broker_fl.<user>``: there is nothing else to be backed up, and nothing that could disagree.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from broker_fl.errors import BrokerUnavailable, SettingError
from broker_fl.identity.accounts import ROLES, Account, Role
from broker_fl.identity.management import ManagementApi
from broker_fl.identity.permissions import permissions_of
from broker_fl.topology import MAX_GENERATIONS, Topology

State = Literal["active", "expired", "revoked", "missing"]
"""``missing``: somebody has deleted the user without ``broker-fl revoke``."""
PREFIX = "broker_fl."


class _Record(BaseModel):
    """What is kept of an account; times in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    vhost: str
    since: float
    rotated: float | None = None
    expires: float | None = None
    revoked: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One account, as an operator sees it."""

    account: Account
    since: float
    expires: float | None
    state: State
    num_connections: int
    last_seen: float | None
    """When it was connected, or its mailbox last used, as far as the broker's statistics go back (to its
    start); Unix time. None: they know nothing of it.
    """


class Members:
    """Of one federation, on one virtual host."""

    def __init__(
        self, api: ManagementApi, *, vhost: str, federation: str, now: Callable[[], float] = time.time
    ) -> None:
        """``now`` in seconds since 1970."""
        self._api = api
        self._vhost = vhost
        self._now = now
        self.topology = Topology(federation)

    def enroll(self, account: Account, password_hash: str, *, expires: float | None = None) -> None:
        """Make an account, with its mailbox if it has one. Without a hash only a certificate opens it.

        The user gets its permissions last: at no moment may it do more than it shall, and if something fails
        it can do nothing, and is deleted again.

        Raises:
            SettingError: there is such an account already, or another one that would be mistaken for it.
        """
        self.check_new(account)
        self._declare(account)
        try:
            self._api.put_user(account.user, password_hash)
            self._api.grant(self._vhost, account.user, permissions_of(account))
            record = _Record(vhost=self._vhost, since=self._now(), expires=expires)
            self._save(account, record)
        except BaseException:
            self._api.delete_user(account.user)
            raise

    def check_new(self, account: Account) -> None:
        """Refuse an account that is there, or that could be mistaken for one that is.

        Raises:
            SettingError: it is.
        """
        self._check_free(account)
        if self._api.has_user(account.user):
            raise SettingError(
                f"{account} is enrolled already: broker-fl rotate gives it another password, broker-fl "
                "revoke takes it out"
            )

    def repair(self, account: Account) -> None:
        """Make anew what belongs to an account, but for its password: mailbox, permissions, limits.

        Raises:
            SettingError: there is no such account.
        """
        self._check_there(account)
        self._declare(account)
        self._api.grant(self._vhost, account.user, permissions_of(account))

    def rotate(self, account: Account, password_hash: str) -> None:
        """Give an account another password, and close what was opened with the last one.

        Raises:
            SettingError: there is no such account.
        """
        record = self._check_there(account)
        self._api.put_user(account.user, password_hash)
        self._api.close_connections(account.user)
        self._save(account, record.model_copy(update={"rotated": self._now()}))

    def revoke(self, account: Account) -> None:
        """Take an account out: its connections are closed, its mailbox, or a driver's or observer's queues,
        are deleted with all that is in them.

        Revoking again finishes what was broken off.

        Raises:
            SettingError: there is no such account.
        """
        record = self._records().get(account)
        if record is None or record.revoked is not None or self._api.has_user(account.user):
            record = self._check_there(account)
        self._api.delete_user(account.user)  # closes its connections
        self._api.close_connections(account.user)
        if account.has_mailbox:
            for mailbox in self._mailboxes(account.name):
                self._api.delete_queue(self._vhost, mailbox)
        if account.asks:  # they may hand events on to a controller for as long as they are there
            own = re.compile(permissions_of(account).configure)
            for queue in filter(own.fullmatch, self._api.queues(self._vhost)):
                self._api.delete_queue(self._vhost, queue)
        self._save(account, record.model_copy(update={"revoked": self._now()}))

    def _mailboxes(self, name: str) -> set[str]:
        """All that an account of this name may read, by its permissions: of whatever generation."""
        known = {self.topology.mailbox(name, generation) for generation in range(MAX_GENERATIONS)}
        first = re.escape(self.topology.mailbox(name))
        there = self._api.queues(self._vhost)
        return known | {queue for queue in there if re.fullmatch(first + r"\.[0-9]+", queue)}

    def find(self, name: str, role: Role | None = None, *, missing: bool = False) -> Account:
        """The account of that name; of several, the one of that role. With ``missing``, also one whose user
        is not there, though nobody has revoked it.

        Raises:
            SettingError: there is none, or there are several and no role is given.
        """
        federation, users = self.topology.federation, self._api.users()
        if missing:
            users = users | {one.user for one, record in self._records().items() if record.revoked is None}
        roles = ROLES if role is None else (role,)
        found = [one for each in roles if (one := Account(federation, each, name)).user in users]
        if not found:
            who = f"a {role} {name!r}" if role else f"{name!r}"
            raise SettingError(f"{who} is not enrolled in federation {federation!r}; see broker-fl members")
        if len(found) > 1:
            there = " or ".join(f"--role {one.role}" for one in found)
            raise SettingError(
                f"several accounts of federation {federation!r} are called {name!r}: give {there}"
            )
        if not missing:
            self._check_there(found[0])
        return found[0]

    def may_fill_up(self, account: Account) -> bool:
        """Whether the account may declare as many queues as it likes: the broker has no limit for a user, but
        one for a virtual host.
        """
        return account.asks and "max-queues" not in self._api.limits(self._vhost)

    def has_password(self, account: Account) -> bool:
        """Whether a password opens the account; if not, a certificate does."""
        return self._api.has_password(account.user)

    def has_taken(self, account: Account, password_hash: str) -> bool | None:
        """Whether this is the account's password now; None if the broker does not say."""
        try:
            return self._api.has_hash(account.user, password_hash)
        except (BrokerUnavailable, SettingError):
            return None

    def expiry(self, account: Account) -> float | None:
        """Until when the account is meant; seconds since 1970."""
        record = self._records().get(account)
        return None if record is None else record.expires

    def members(self) -> list[Member]:
        """All accounts that are or were there, by role and name."""
        connections, users = self._api.connections(), self._api.users()
        found = [
            self._member(one, self._state(record, is_there=one.user in users), record, connections)
            for one, record in self._records().items()
        ]
        return sorted(found, key=lambda member: (member.account.role, member.account.name))

    def expired(self) -> list[Account]:
        """Those whose time is over, and who can still log in."""
        users = self._api.users()
        return sorted(
            (
                account
                for account, record in self._records().items()
                if self._state(record, is_there=account.user in users) == "expired"
            ),
            key=lambda account: account.user,
        )

    def _member(self, account: Account, state: State, record: _Record, connections: dict[str, int]) -> Member:
        num = connections.get(account.user, 0)
        return Member(
            account=account,
            since=record.since,
            expires=record.expires,
            state=state,
            num_connections=num,
            last_seen=self._now() if num else self._last_seen(account),
        )

    def _state(self, record: _Record, *, is_there: bool) -> State:
        if record.revoked is not None:
            return "revoked"
        if not is_there:
            return "missing"
        return "expired" if record.expires is not None and record.expires <= self._now() else "active"

    def _last_seen(self, account: Account) -> float | None:
        if not account.has_mailbox:
            return None
        queue = self._api.queue(self._vhost, self.topology.mailbox(account.name)) or {}
        # A mailbox from which nothing was ever read is idle since it was made, or since the broker's start.
        was_read = bool((queue.get("message_stats") or {}).get("deliver_get"))
        return _unix_time(str(queue.get("idle_since", ""))) if was_read else None

    def _check_free(self, account: Account) -> None:
        """Refuse names with which two accounts could be taken for one another, or have the same queues."""
        there = [one for one, record in self._records().items() if record.revoked is None]
        for one in there:
            if one != account and one.name == account.name and (shared := _shared(account, one)):
                raise SettingError(
                    f"{account} would share its {shared} with {one}, which is enrolled; give it another name"
                )
            if one.has_member(account.name) or account.has_member(one.name):
                raise SettingError(f"{account} could be mistaken for a member of a group because of {one}")

    def _check_there(self, account: Account) -> _Record:
        """What is kept of an account.

        Raises:
            SettingError: there is none.
        """
        if not self._api.has_user(account.user):
            raise SettingError(f"{account} is not enrolled; see broker-fl members")
        others = self._api.vhosts_of(account.user) - {self._vhost}
        if others:
            raise SettingError(f"{account} is enrolled on another virtual host: {', '.join(sorted(others))}")
        return self._records().get(account) or _Record(vhost=self._vhost, since=self._now())

    def _records(self) -> dict[Account, _Record]:
        found: dict[Account, _Record] = {}
        for user, value in self._api.records(f"{PREFIX}{self.topology.federation}.").items():
            account = Account.of(f"{self.topology.federation}.{user}")
            try:
                record = _Record.model_validate(value)
            except ValidationError:
                continue
            if account is not None and record.vhost == self._vhost:
                found[account] = record
        return found

    def _save(self, account: Account, record: _Record) -> None:
        self._api.put_record(f"{PREFIX}{account.user}", record.model_dump(exclude_none=True))

    def _declare(self, account: Account) -> None:
        own = self.topology.for_learner(account.name) if account.has_mailbox else ()
        self._api.declare(self._vhost, (*self.topology.for_controller(), *own))
        self._api.delete_exchange(self._vhost, self.topology.nowhere)


def _unix_time(text: str) -> float | None:
    """Of ``2026-11-23T11:41:17.000+00:00``, as RabbitMQ writes it, or without the zone: UTC."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def _shared(one: Account, other: Account) -> str:
    """What two accounts of one name would both have: queues are named after names, whatever the role."""
    if one.has_mailbox and other.has_mailbox:
        return "mailbox"
    return "queues" if one.asks and other.asks else ""
