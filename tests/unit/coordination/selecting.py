"""Rounds without a federation: a selector chooses, and what the chosen do is the history that comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from broker_fl.interfaces import Member, Parameters, Record, Selector

FADING = 0.5
"""Share of the earlier mean in a new one."""


def ids(count: int) -> list[str]:
    return [f"l{index:03}" for index in range(count)]


def everybody(count: int) -> Callable[[int], list[str]]:
    """The same learners in every round."""
    return lambda _: ids(count)


@dataclass(kw_only=True)
class Rounds:
    """What learners are like, by round and id; and what came of it."""

    there: Callable[[int], Iterable[str]]
    task_s: Callable[[int, str], float] = lambda number, learner: 1.0
    loss: Callable[[int, str], float] = lambda number, learner: 1.0
    fails: Callable[[int, str], bool] = lambda number, learner: False
    history: dict[str, Record] = field(default_factory=dict)
    cohorts: list[list[str]] = field(default_factory=list)

    def play(self, selector: Selector, count: int) -> Rounds:
        for number in range(len(self.cohorts), len(self.cohorts) + count):
            members = [Member(learner=learner) for learner in sorted(self.there(number))]
            cohort = selector.select(members, number, self.history)
            self.cohorts.append(cohort)
            for learner in cohort:
                self._do(number, learner, self.history.setdefault(learner, Record()))
        return self

    def _do(self, number: int, learner: str, record: Record) -> None:
        record.num_tasks += 1
        record.last_round = number
        if self.fails(number, learner):
            record.num_failures += 1
            return
        seconds, earlier = self.task_s(number, learner), record.task_s
        record.num_updates += 1
        record.num_failures = 0
        record.task_s = FADING * earlier + (1 - FADING) * seconds if earlier else seconds
        record.evaluation = {"loss": self.loss(number, learner)}

    def counts(self, *, since: int = 0) -> Counter[str]:
        """How often each was chosen."""
        return Counter(learner for cohort in self.cohorts[since:] for learner in cohort)

    def mean_round_s(self, *, since: int = 0) -> float:
        """A round lasts as long as its slowest member."""
        times = [
            max(self.task_s(number, learner) for learner in cohort)
            for number, cohort in enumerate(self.cohorts)
            if number >= since
        ]
        return sum(times) / len(times)

    def rounds_of(self, learner: str) -> list[int]:
        return [number for number, cohort in enumerate(self.cohorts) if learner in cohort]


# ---------------------------------------------------------------- anything at all, for hypothesis

LOSSES = st.one_of(st.floats(0, 10), st.sampled_from([float("nan"), float("inf")]))
RECORDS = st.builds(
    Record,
    num_tasks=st.integers(1, 50),
    num_failures=st.integers(0, 6),
    last_round=st.integers(-1, 40),
    num_examples=st.integers(0, 1000),
    task_s=st.one_of(st.just(0.0), st.floats(0.01, 1000)),
    evaluation=st.one_of(st.just({}), st.fixed_dictionaries({"loss": LOSSES})),
)
ATTRIBUTES: st.SearchStrategy[Parameters] = st.fixed_dictionaries(
    {},
    optional={
        "region": st.sampled_from(["eu", "us"]),
        "gpu": st.booleans(),
        "num_examples": st.integers(0, 5000),
    },
)


@st.composite
def members_and_history(draw: st.DrawFn) -> tuple[list[Member], dict[str, Record]]:
    members = [
        Member(learner=learner, attributes=draw(ATTRIBUTES)) for learner in ids(draw(st.integers(1, 25)))
    ]
    known = draw(st.lists(st.sampled_from([*ids(25), "gone"]), unique=True))
    return members, {learner: draw(RECORDS) for learner in known}
