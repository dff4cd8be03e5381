"""Groups on their way in: pages of ``group_join`` put together."""

from __future__ import annotations

import msgpack

from broker_fl.coordination.membership import Group, Membership
from broker_fl.errors import FrameRefused
from broker_fl.interfaces import Member, Parameters
from broker_fl.wire.fields import MAX_GROUP
from broker_fl.wire.messages import GroupJoin

MAX_PAGES_BYTES = 64 << 20
"""Of the pages of one group, of which not all are there; 50,000 members with ten attributes take 11 MB."""
MAX_JOINING = 1_000
"""Groups whose pages are not all there; the oldest is forgotten, and joins again when it is not welcomed."""


class Groups:
    """Of a controller."""

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._joining: dict[str, dict[int, GroupJoin]] = {}
        self._num_bytes: dict[str, int] = {}
        """Of the pages that came."""

    def page(self, page: GroupJoin, now: float) -> Group | None:
        """Take a page in; the group, once all of its pages are there.

        Raises:
            FrameRefused: it has too many members, or one of them twice, or says too much of them.
        """
        pages = self._joining.setdefault(page.group, {})
        first = next(iter(pages.values()), page)
        if (first.session, first.num_pages) != (page.session, page.num_pages):
            pages.clear()  # it was started anew
        if not pages:
            self._num_bytes[page.group] = 0
        self._note_size(page)
        pages[page.page] = page
        if len(pages) < page.num_pages:
            while len(self._joining) > MAX_JOINING:
                self._forget(next(iter(self._joining)))
            return None
        self._forget(page.group)
        return _group([pages[number] for number in range(page.num_pages)], now)

    def _note_size(self, page: GroupJoin) -> None:
        num_bytes = len(msgpack.packb([page.members, page.attributes, page.columns]))
        self._num_bytes[page.group] += num_bytes
        if self._num_bytes[page.group] > MAX_PAGES_BYTES:
            self._forget(page.group)
            raise FrameRefused(f"the pages of group {page.group!r} take more than {MAX_PAGES_BYTES} bytes")

    def _forget(self, group: str) -> None:
        self._joining.pop(group, None)
        self._num_bytes.pop(group, None)


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
