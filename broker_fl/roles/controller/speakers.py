"""Who sent a message: what the broker vouches for where accounts are identities, else what its key says."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from broker_fl.errors import FrameRefused, RequestRefused
from broker_fl.identity.accounts import Account, Role
from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.replays import Replayed
from broker_fl.wire import messages as m

Identities = Literal["required", "shared"]
"""``shared``: parties may use one account together, and are believed who they say they are."""
LEARNERS: Set[Role] = frozenset({"learner", "group"})
DRIVERS: Set[Role] = frozenset({"driver", "observer"})
_FOR_OBSERVERS = (m.ListJobs, m.ListVersions, m.ListLearners, m.ReadEvents)


@dataclass(frozen=True, slots=True)
class Speaker:
    """The sender of one message."""

    name: str
    account: Account | None
    """None where accounts are shared."""
    user: str = ""
    """The broker's account that sent it, shared or not; empty: the broker does not say."""
    replayed_by: str = ""
    """The controller's account that has it heard again and says who sent it; empty: it came by itself."""

    @property
    def how_known(self) -> dict[str, str]:
        """For the audit log: by whose word an entry names this sender, if that is not the broker's."""
        return {"replayed_by": self.replayed_by} if self.replayed_by else {}

    def check_name(self, name: str, kind: str) -> None:
        """Hold the id in a message against who sent it.

        Raises:
            FrameRefused: it is another's.
        """
        if name != self.name if self.account is None else not self.account.speaks_for(name):
            raise FrameRefused(f"{self.name!r} sent a {kind!r} message in the name of {name!r}")

    def check_report(self, message: m.Message) -> None:
        """Hold what a learner or a group sends against who it is.

        Raises:
            FrameRefused: it is in another's name, or of another role.
        """
        fields = vars(message)  # getattr is slow where there is no such field, and all reports come by here
        name: str = fields.get("group") or fields.get("learner", self.name)
        self.check_name(name, message.KIND)
        if self.account is None:
            return
        wanted = {m.Join: "learner", m.GroupJoin: "group"}.get(type(message), self.account.role)
        if self.account.role != wanted:
            raise FrameRefused(f"{self.account} sent a {message.KIND!r} message, which is for a {wanted}")
        if isinstance(message, m.GroupJoin):
            strangers = [one for one in message.members if not self.account.has_member(one)]
            if strangers:
                raise FrameRefused(
                    f"{self.account} names members that are not called {self.name}-<number>: {strangers[:3]}"
                )

    def check_request(self, request: m.Request) -> None:
        """Hold a request against what its sender may ask for.

        Raises:
            RequestRefused: it is more than that.
        """
        is_observer = self.account is not None and self.account.role == "observer"
        if is_observer and not isinstance(request, _FOR_OBSERVERS):
            raise RequestRefused(f"{self.account} only watches; a {request.KIND!r} request is for drivers")


class Speakers:
    """Of one federation."""

    def __init__(self, federation: str, identities: Identities) -> None:
        self._federation = federation
        self.required = identities == "required"

    def of(self, delivery: Delivery, roles: Set[Role]) -> Speaker:
        """Who sent it.

        Raises:
            FrameRefused: nobody knows, or it is an account that sends nothing of this kind.
        """
        account = Account.of(delivery.user)
        by = (delivery.letter.user or "") if isinstance(delivery, Replayed) else ""
        if account is None:
            if self.required:
                raise FrameRefused(_unknown(delivery.user))
            return Speaker(delivery.routing_key.partition(".")[0], None, delivery.user or "", by)
        if account.federation != self._federation or account.role not in roles:
            raise FrameRefused(f"it was sent by {account}, which has nothing to say here")
        return Speaker(account.name, account, account.user, by)


def _unknown(user: str | None) -> str:
    if not user:
        return "it does not say which account sent it (user_id), and this controller requires that"
    return (
        f"it was sent by {user!r}, which is no enrolled account; this controller requires one for each party "
        "(broker-fl enroll)"
    )
