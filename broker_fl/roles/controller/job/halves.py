"""How much is held of uploads that are not done yet: who had to pass its turn on keeps what has arrived, and
may go on sending for as long as it likes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from broker_fl.wire.chunks import Assembly

Key = TypeVar("Key")


class Halves(Generic[Key]):
    """Uploads of which something is there. Memory: as many as the budget has turns, and one more.

    So in a job whose uploads take turns nobody who has one is ever without room, and the one that has
    arrived most of those who wait for another turn is kept.
    """

    def __init__(self, update_bytes: int, budget_bytes: int) -> None:
        self._most = max(1, budget_bytes // max(1, update_bytes)) + 1
        self._begun: weakref.WeakValueDictionary[Key, Assembly] = weakref.WeakValueDictionary()
        """What was dropped elsewhere is not in it any more."""

    def admits(self, key: Key, assembly: Assembly, num_bytes: int, has_turn: Callable[[Key], bool]) -> bool:
        """Whether so many bytes of an upload may be put into its assembly. For one that has a turn another,
        which has none, forgets what has arrived of it.
        """
        if assembly.has_begun or num_bytes == assembly.num_bytes:  # it is held already, or not for long
            return True
        begun = {one: other for one, other in self._begun.items() if other.has_begun}
        if len(begun) >= self._most:
            if not has_turn(key):
                return False
            waiting = [one for one in begun if not has_turn(one)]
            if waiting:
                begun[max(waiting, key=lambda one: begun[one].num_missing)].forget()
        self._begun[key] = assembly
        return True
