"""Learners that are made when they are worked on: a host may have more than fit into memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from broker_fl.interfaces import Learner, LearnerContext

MAX_CACHED = 64
Make = Callable[[LearnerContext], Learner]


class LazyLearners(Mapping[str, Learner]):
    """Learners that are made when they are worked on, and forgotten when others were since.

    100,000 learners with data of their own do not fit into memory; those at work do.
    """

    def __init__(self, ids: Iterable[str], make: Make, *, num_cached: int = MAX_CACHED) -> None:
        """``make`` makes a learner; it is called again when one is needed that is not among the
        ``num_cached`` that were used last.
        """
        self._index = {learner: place for place, learner in enumerate(ids)}
        self._make = make
        self._num_cached = num_cached
        self._cache: OrderedDict[str, Learner] = OrderedDict()
        self._lock = threading.Lock()

    def part(self, ids: Iterable[str]) -> LazyLearners:
        """Some of them, made as before."""

        def make(context: LearnerContext) -> Learner:
            learner = context.learner
            return self._make(
                LearnerContext(learner=learner, index=self._index[learner], count=len(self._index))
            )

        return LazyLearners(ids, make, num_cached=self._num_cached)

    def __getitem__(self, learner: str) -> Learner:
        with self._lock:
            if (found := self._cache.get(learner)) is not None:
                self._cache.move_to_end(learner)
                return found
        context = LearnerContext(learner=learner, index=self._index[learner], count=len(self._index))
        made = self._make(context)
        with self._lock:
            self._cache[learner] = made
            while len(self._cache) > self._num_cached:
                self._cache.popitem(last=False)
        return made

    def __contains__(self, learner: object) -> bool:
        return learner in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
