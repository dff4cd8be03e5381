"""Groups on their way in: pages of ``group_join`` put together."""

from __future__ import annotations

from broker_fl.coordination.membership import Group, Membership
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Member, Parameters
from broker_fl.wire.fields import MAX_GROUP
from broker_fl.wire.messages import GroupJoin

MAX_JOINING = 1_000
"""Groups whose pages are not all there; the oldest is forgotten, and joins again when it is not welcomed."""


class Groups:
    """Of a controller."""

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._joining: dict[str, dict[int, GroupJoin]] = {}

    def page(self, page: GroupJoin, now: float) -> Group | None:
        """Take a page in; the group, once all of its pages are there.

        Raises:
            FrameRefused: it has too many members, or one of them twice.
        """
        pages = self._joining.setdefault(page.group, {})
        first = next(iter(pages.values()), page)
        if (first.session, first.num_pages) != (page.session, page.num_pages):
            pages.clear()  # it was started anew
        pages[page.page] = page
        if len(pages) < page.num_pages:
            while len(self._joining) > MAX_JOINING:
                del self._joining[next(iter(self._joining))]
            return None
        del self._joining[page.group]
        return _group([pages[number] for number in range(page.num_pages)], now)


def _group(pages: list[GroupJoin], now: float) -> Group:
    first, members = pages[0], dict[str, Member]()
    for page in pages:
        for place, learner in enumerate(page.members):
            attributes = _attributes(page, place)
            members[learner] = Member(learner=learner, attributes=attributes, software=page.software)
    num = sum(len(page.members) for page in pages)
    if num > MAX_GROUP:
        raise FrameRefused(
            f"group {first.group!r} has {num} members; at most {MAX_GROUP}: make several of it"
        )
    if len(members) < num:
        raise FrameRefused(f"group {first.group!r} names {num - len(members)} of its members more than once")
    return Group(
        group=first.group,
        session=first.session,
        members=members,
        software=first.software,
        last_seen=now,
        tasks=first.tasks,
    )


def _attributes(page: GroupJoin, place: int) -> Parameters:
    """Of one member; those that all have are one dict for all of them."""
    if not page.columns:
        return page.attributes
    own = {name: values[place] for name, values in page.columns.items() if values[place] is not None}
    return {**page.attributes, **own} if own else page.attributes
