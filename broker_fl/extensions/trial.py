"""Own code is tried before its job begins: who submits is told what is wrong with it, not round 7."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from broker_fl.aggregation.kernels import all_finite
from broker_fl.errors import AppError, BrokerFLError
from broker_fl.extensions.classes import OwnClasses
from broker_fl.extensions.selector import CheckedSelector
from broker_fl.interfaces import Combined, Contribution, Given, Member, Record, Rule
from broker_fl.model import FLOATS, Model
from broker_fl.wire.contradictions import fewest_updates
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import OwnRule
from broker_fl.wire.selectors import OwnSelector

MIN_CONTRIBUTIONS = 2
PATIENCE_S = 10.0
_LIBRARIES = (str(Path(__file__).parents[1]), threading.__file__, "site-packages")
_BYTES_IN_TIME = 200_000_000
_SHIFT = 0.01


def try_own_code(spec: JobSpec, model: Model, members: Sequence[Member], own: OwnClasses) -> None:
    """Run the job's own rule over made-up updates of ``model``, and its own selector over ``members``.

    The rule gets as few updates as the job lets a round end with, and at least two; then the same in the
    other order, with the memory of the first time. Memory: what the rule takes, and one model.

    It may take ``PATIENCE_S``, and as long again for each 200 MB of the model.
    A thread that has not ended then is left alone: Python cannot stop it.

    Raises:
        AppError: something of it does not do what its interface says, or does not end; the message names the
            user's line.
    """
    own.check(spec)
    patience_s = PATIENCE_S * (1 + model.spec.num_bytes / _BYTES_IN_TIME)
    if isinstance(spec.rule, OwnRule):
        rule = own.rule(spec.rule.rule, spec.rule.settings)
        _in_time(partial(_try_rule, spec, rule, model), f"the rule {spec.rule.rule!r}", patience_s)
    if isinstance(spec.selector, OwnSelector):
        name = spec.selector.selector
        _in_time(partial(_try_selector, spec.selector, members, own), f"the selector {name!r}", patience_s)


def _in_time(trial: Callable[[], None], what: str, patience_s: float) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            trial()
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, name="trial", daemon=True)
    thread.start()
    thread.join(patience_s)
    if thread.is_alive():
        raise AppError(f"{what} did not end within {patience_s:.3g} s when it was tried{_place(thread)}")
    if failures:
        raise failures[0]


def _place(thread: threading.Thread) -> str:
    """Where it is: of the code that is the user's, the innermost line."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the only way to know
    stack = traceback.extract_stack(frame) if frame is not None else []
    own = [one for one in stack if not any(part in one.filename for part in _LIBRARIES)]
    return f"; it is at {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else ""


# ---------------------------------------------------------------- the rule


class AnyMetric(Mapping[str, float]):
    """1.0, whatever a rule asks for: what learners will measure is not known yet."""

    def __getitem__(self, name: str) -> float:
        return 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(("accuracy", "loss"))

    def __len__(self) -> int:
        return 2


def _try_rule(spec: JobSpec, rule: Rule, model: Model) -> None:
    count = max(MIN_CONTRIBUTIONS, fewest_updates(spec))
    buffers = spec.buffers_of(model.spec)

    def given(memory: Model | None) -> Given:
        return Given(spec=model.spec, model=lambda: model, memory=memory, buffers=buffers)

    try:
        first = _round(rule, given(None), range(count))
        _round(rule, given(first.memory), reversed(range(count)))
    except BrokerFLError as error:
        raise AppError(f"the rule failed when it was tried with {count} made-up updates: {error}") from error


def _round(rule: Rule, given: Given, indices: Iterable[int]) -> Combined:
    accumulator = rule.begin(given)
    for index in indices:
        accumulator.fold(_contribution(given.model(), index))
    return accumulator.result()


def _contribution(base: Model, index: int) -> Contribution:
    """All floats a bit above those of ``base``, each learner's by another bit; integers as they are."""
    model = base.copy()
    for run in model.spec.runs:
        if run.dtype in FLOATS:
            values = model.run(run)
            with np.errstate(over="ignore"):
                shifted = values + values.dtype.type(_SHIFT * (index + 1))
            if all_finite(shifted):
                values[...] = shifted
    return Contribution(
        learner=f"made-up-{index}",
        model=model.frozen(),
        num_examples=32 * (index + 1),
        num_steps=4 * (index + 1),
        metrics=AnyMetric(),
        evaluation=AnyMetric(),
    )


# ---------------------------------------------------------------- the selector


class _NotKnown(KeyError):
    """An attribute of a learner that is not there yet."""


class _Unknown(Mapping[str, str]):
    """Attributes of a learner that is not there yet: ``get`` finds none, ``[]`` ends the trial."""

    def __getitem__(self, name: str) -> str:
        raise _NotKnown(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _try_selector(settings: OwnSelector, members: Sequence[Member], own: OwnClasses) -> None:
    selector = own.selector(settings.selector, settings.settings)
    there = list(members) or [Member(learner=f"made-up-{index}", attributes=_Unknown()) for index in range(2)]
    try:
        _choose_twice(selector, there)
    except AppError as error:
        if not isinstance(error.__cause__, _NotKnown):
            raise AppError(f"the selector failed when it was tried: {error}") from error


def _choose_twice(selector: CheckedSelector, members: Sequence[Member]) -> None:
    """In the first round, of which there is no history, and in the next."""
    history: dict[str, Record] = {}
    for round in range(2):
        chosen = selector.choose(members, round, history)
        if chosen != selector.choose(members, round, history):
            raise AppError(
                f"{selector.name}.select() gives other ids when it is asked the same again: draw from "
                "random.Random(f'{seed}/{round}')"
            )
        history |= {learner: Record(num_tasks=1, num_updates=1, last_round=round) for learner in chosen}
