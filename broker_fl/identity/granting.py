"""Tokens given out, and the requests that come of them, for an operator to grant."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
_Messages = list[tuple[bytes, str | None]]
"""Bodies, and who sent them."""


class _Invitation(BaseModel):
    """What is kept of a token; times in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    vhost: str
    id: str
    role: Role
    expires: float
    account_expires: float | None = None
    kept: tuple[EnrolmentRequest, ...] = ()
    """Requests that were taken out of the queue, since what had to be dropped lay behind them."""


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
            self._save(account, invitation)
        except BaseException:
            self._forget(account)
            raise

    def has_invited(self, account: Account) -> bool:
        """Whether there is a token for the account, used or not; one whose time is over may be deleted."""
        return self._api.has_user(candidate_user(account))

    def asked(self) -> list[Asked]:
        """Requests that wait and whose token is valid; they go on waiting."""
        invitations = self._invitations()
        found = [
            (user, request) for user, (_, invitation) in invitations.items() for request in invitation.kept
        ]
        found = list(dict.fromkeys([*found, *_requests(self._waiting(), invitations)]))
        times = Counter(user for user, _ in found)
        return [Asked(invitations[user][0], request, times[user] == 1) for user, request in found]

    def misused(self) -> list[tuple[Account, str]]:
        """Whose valid token has brought what no site sends, and what that is: anything that is no request,
        which may fill the queue with a message or two; or more than ``MAX_REQUESTS_OF_ONE`` messages.
        """
        waiting, invitations = self._waiting(), self._invitations()
        times, found = Counter(user for _, user in waiting), dict[str, str]()
        for body, user in waiting:
            if user is not None and user in invitations and not _is_request(body):
                found.setdefault(user, "a message that is no request")
        for user, (_, invitation) in invitations.items():
            if times[user] + len(invitation.kept) > MAX_REQUESTS_OF_ONE:
                found[user] = f"more than {MAX_REQUESTS_OF_ONE} messages"
        return [(invitations[user][0], reason) for user, reason in found.items()]

    def expired(self) -> list[Account]:
        """For whom a token was made that is too old by now; it can still log in, to no use."""
        now = self._now()
        return [account for account, invitation in self._all_invitations() if invitation.expires <= now]

    def _waiting(self) -> _Messages:
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
        """Drop messages that came with tokens that are spent or no longer valid.

        The management interface takes messages from the oldest on only: requests in front of them are kept
        with their invitations from then on.
        """
        if self._api.queue(self._vhost, self._topology.enrolment) is None:
            return
        while True:
            waiting, invitations = self._waiting(), self._invitations()
            useless = [at for at, (_, user) in enumerate(waiting) if user not in invitations]
            if not useless:
                return
            count = useless[-1] + 1
            self._keep(waiting[:count], invitations)
            if not self._api.take_messages(self._vhost, self._topology.enrolment, count, truncate=1):
                return

    def _keep(self, messages: _Messages, invitations: Mapping[str, tuple[Account, _Invitation]]) -> None:
        asked: dict[str, list[EnrolmentRequest]] = {}
        for user, request in _requests(messages, invitations):
            asked.setdefault(user, []).append(request)
        for user, requests in asked.items():
            account, invitation = invitations[user]
            kept = tuple(dict.fromkeys([*invitation.kept, *requests]))
            self._save(account, invitation.model_copy(update={"kept": kept}))

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

    def _save(self, account: Account, invitation: _Invitation) -> None:
        self._api.put_record(self._record(account), invitation.model_dump(mode="json", exclude_none=True))

    def _record(self, account: Account) -> str:
        return f"{PREFIX}{candidate_user(account)}"


def _requests(
    messages: _Messages, invitations: Mapping[str, tuple[Account, _Invitation]]
) -> list[tuple[str, EnrolmentRequest]]:
    """Requests that came with valid tokens, and their users."""
    found: list[tuple[str, EnrolmentRequest]] = []
    for body, user in messages:
        if user is None or user not in invitations or not _is_request(body):
            continue
        request = EnrolmentRequest.unpack(body)
        if request.id == invitations[user][1].id:
            found.append((user, request))
    return found


def _is_request(body: bytes) -> bool:
    try:
        EnrolmentRequest.unpack(body)
    except FrameRefused:
        return False
    return True
