"""Tokens given out, and the requests that come of them, for an operator to grant."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from pydantic import BaseModel, ConfigDict, ValidationError

from broker_fl.errors import FrameRefused, SettingError
from broker_fl.identity.accounts import Account, Role
from broker_fl.identity.management import ManagementApi
from broker_fl.identity.members import PREFIX, Members
from broker_fl.identity.passwords import hashed
from broker_fl.identity.tokens import (
    CANDIDATE,
    MAX_REQUEST_BYTES,
    EnrolmentRequest,
    Token,
    candidate_permissions,
    candidate_user,
)
from broker_fl.topology import Topology

MAX_REQUESTS_OF_ONE = 100
"""Messages with one token; a site asks once or twice."""
_MAX_MESSAGES = 1_000
"""That are looked at together: the tables of headers that come with them have up to 128 kB each."""


class _Invitation(BaseModel):
    """What is kept of a token; times in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    vhost: str
    id: str
    role: Role
    expires: float
    account_expires: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may be granted."""

    account: Account
    request: EnrolmentRequest
    is_only_one: bool
    """No other request came with the same token; else somebody else has it."""


class Granting:
    """Of one federation."""

    def __init__(
        self,
        api: ManagementApi,
        members: Members,
        *,
        vhost: str,
        federation: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``now`` in seconds since 1970."""
        self._api = api
        self._members = members
        self._vhost = vhost
        self._topology = Topology(federation)
        self._now = now
        self.is_more = False
        """Whether more messages may have been there at the last look than were looked at."""

    def invite(self, token: Token, account_expires: float | None = None) -> None:
        """Make the user whose password the token has; one that was there before is no longer valid.

        Raises:
            SettingError: the account is enrolled already, or its name cannot be given.
        """
        account = token.account
        self._members.check_new(account)
        user = candidate_user(account)
        self._api.declare(self._vhost, self._topology.for_enrolment())
        self._forget(account)
        try:
            self._api.put_user(user, hashed(token.token))
            self._api.grant(self._vhost, user, candidate_permissions(account.federation))
            invitation = _Invitation(
                vhost=self._vhost,
                id=token.id,
                role=account.role,
                expires=token.expires,
                account_expires=account_expires,
            )
            self._api.put_record(self._record(account), invitation.model_dump(exclude_none=True))
        except BaseException:
            self._forget(account)
            raise

    def has_invited(self, account: Account) -> bool:
        """Whether there is a token for the account, used or not; one whose time is over may be deleted."""
        return self._api.has_user(candidate_user(account))

    def asked(self) -> list[Asked]:
        """Requests that wait and whose token is valid; they go on waiting."""
        invitations = self._invitations()
        found: list[tuple[str, EnrolmentRequest]] = []
        for body, user in self._waiting():
            if user is None or user not in invitations:
                continue
            try:
                request = EnrolmentRequest.unpack(body)
            except FrameRefused:
                continue
            if request.id == invitations[user][1].id:
                found.append((user, request))
        found = list(dict.fromkeys(found))
        times = Counter(user for user, _ in found)
        return [Asked(invitations[user][0], request, times[user] == 1) for user, request in found]

    def flooding(self) -> list[Account]:
        """Whose valid token has brought more than ``MAX_REQUESTS_OF_ONE`` messages."""
        times, invitations = Counter(user for _, user in self._waiting()), self._invitations()
        return [account for user, (account, _) in invitations.items() if times[user] > MAX_REQUESTS_OF_ONE]

    def expired(self) -> list[Account]:
        """For whom a token was made that is too old by now; it can still log in, to no use."""
        now = self._now()
        return [account for account, invitation in self._all_invitations() if invitation.expires <= now]

    def _waiting(self) -> list[tuple[bytes, str | None]]:
        """Messages from the oldest on, cut where they are too long for a request; and who sent them."""
        found = self._api.look_at_messages(
            self._vhost, self._topology.enrolment, _MAX_MESSAGES, truncate=MAX_REQUEST_BYTES + 1
        )
        self.is_more = len(found) == _MAX_MESSAGES
        return found

    def grant(self, asked: Asked) -> None:
        """Enrol who asked, under its own password; the token is spent.

        Raises:
            SettingError: the account cannot be made.
        """
        found = self._invitations().get(candidate_user(asked.account))
        if found is None:
            raise SettingError(f"the token of {asked.account} is no longer valid")
        self._members.enroll(asked.account, asked.request.password_hash, expires=found[1].account_expires)
        self._forget(asked.account)

    def refuse(self, account: Account) -> None:
        """The token is no longer valid; requests that came with it are not heard of again."""
        self._forget(account)

    def clear(self) -> None:
        """Drop messages that came with tokens that are spent or no longer valid, from the oldest on."""
        if self._api.queue(self._vhost, self._topology.enrolment) is None:
            return
        users = self._invitations().keys()
        while count := sum(1 for _ in takewhile(lambda one: one[1] not in users, self._waiting())):
            if not self._api.take_messages(self._vhost, self._topology.enrolment, count, truncate=1):
                return

    def _invitations(self) -> dict[str, tuple[Account, _Invitation]]:
        """Valid ones, by their users."""
        now = self._now()
        return {
            candidate_user(account): (account, invitation)
            for account, invitation in self._all_invitations()
            if invitation.expires > now
        }

    def _all_invitations(self) -> list[tuple[Account, _Invitation]]:
        federation = self._topology.federation
        found: list[tuple[Account, _Invitation]] = []
        for name, value in self._api.records(f"{PREFIX}{federation}.{CANDIDATE}.").items():
            try:
                invitation = _Invitation.model_validate(value)
                account = Account.new(federation, invitation.role, name)
            except (ValidationError, SettingError):
                continue
            if invitation.vhost == self._vhost:
                found.append((account, invitation))
        return found

    def _forget(self, account: Account) -> None:
        self._api.delete_user(candidate_user(account))
        self._api.delete_record(self._record(account))

    def _record(self, account: Account) -> str:
        return f"{PREFIX}{candidate_user(account)}"
