"""A user's own rule, held to what ``Rule`` and ``Accumulator`` promise, in its trial and in every round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

from broker_fl.aggregation.kernels import all_finite
from broker_fl.aggregation.sums import check_addable
from broker_fl.aggregation.weighting import weight_of
from broker_fl.app_errors import UserCode
from broker_fl.errors import AggregationError, AppError, BrokerFLError, UpdateRefused
from broker_fl.interfaces import Combined, Contribution, Given
from broker_fl.model import Model, ModelSpec


class CheckedRule:
    """Makes the user's object when it is first needed: a job whose class is gone ends with that reason."""

    def __init__(self, name: str, make: Callable[[], tuple[Any, UserCode]]) -> None:
        self.name = name
        self._make = make
        self._made: tuple[Any, UserCode] | None = None

    def begin(self, given: Given) -> CheckedRound:
        """Begin a round.

        Raises:
            AppError: the rule cannot be made, fails, or gives something that takes no updates.
        """
        self._made = self._made or self._make()
        rule, code = self._made
        with code.explained(f"{self.name}.begin()"):
            inner = rule.begin(_read_only(given))
        for method in ("fold", "result"):
            if not callable(getattr(inner, method, None)):
                raise AppError(
                    f"{code.line_of(rule.begin)}: {self.name}.begin() returned a {type(inner).__name__} "
                    f"without {method}(); it returns an object with fold() and result()"
                )
        return CheckedRound(given.spec, inner, code)


class CheckedRound:
    """One round of it. ``total_weight`` is the sum of what its ``fold`` gave; the user need not count."""

    def __init__(self, spec: ModelSpec, inner: Any, code: UserCode) -> None:
        self._spec = spec
        self._inner = inner
        self._code = code
        self._name = type(inner).__name__
        self.total_weight = 0.0

    def fold(self, contribution: Contribution) -> float:
        """Have the user's rule take an update that is in order: right tensors, all values finite, examples.

        Raises:
            UpdateRefused: it is not in order, or the rule refuses it.
            AppError: the rule fails, or gives no weight.
        """
        weight_of(contribution, "equal")
        check_addable(self._spec, contribution.model, 1.0, contribution.magnitudes)
        with self._explained("fold", UpdateRefused):
            weight = self._inner.fold(contribution)
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < float(weight) < math.inf:
            raise AppError(
                f"{self._where('fold')} returned {weight!r:.80}; it returns the update's weight, above 0"
            )
        self.total_weight += float(weight)
        return float(weight)

    def result(self) -> Combined:
        """What the user's rule makes of the round.

        Raises:
            AggregationError: the rule says that these updates cannot be combined, or a value is not finite.
            AppError: the rule fails, or its result is no next version of the model.
        """
        with self._explained("result", AggregationError):
            combined: Combined = self._inner.result()
        self._check(combined)
        return combined

    def _check(self, combined: object) -> None:
        if not isinstance(combined, Combined):
            found = type(combined).__name__
            raise AppError(f"{self._where('result')} returned a {found}; it returns a Combined")
        model, memory = combined.model, combined.memory
        for what, value in (("model", model), ("memory", memory)):
            if not isinstance(value, Model) and (what, value) != ("memory", None):
                raise AppError(
                    f"{self._where('result')} returned a {what} that is a {type(value).__name__}; it is a "
                    "Model: Model.of(arrays) makes one of a dict of arrays"
                )
        if combined.updates:
            raise AppError(
                f"{self._where('result')} returned updates that are to be stored, which only rules of the "
                "asynchronous protocol can: leave updates out"
            )
        if model.spec != self._spec:
            problems = self._spec.differences(model.spec) or ["the tensors are in another order"]
            raise AppError(f"{self._where('result')} returned another model: {'; '.join(problems[:3])}")
        for name, array in model.items():
            if not all_finite(array.reshape(-1)):
                raise AggregationError(
                    f"{self._where('result')} returned values in tensor {name!r} that are NaN or infinite"
                )

    def _where(self, method: str) -> str:
        return f"{self._code.line_of(getattr(self._inner, method))}: {self._name}.{method}()"

    @contextmanager
    def _explained(self, method: str, allowed: type[BrokerFLError]) -> Iterator[None]:
        """As ``UserCode.explained``; what the rule may raise by its interface passes as it is."""
        try:
            with self._code.explained(f"{self._name}.{method}()"):
                yield
        except AppError as error:
            if isinstance(error.__cause__, allowed):
                raise error.__cause__ from None
            raise


def _read_only(given: Given) -> Given:
    """Others use the version and the memory too; writing to them is an error at the line that does it."""
    memory = given.memory and _view(given.memory)
    return replace(given, model=lambda: _view(given.model()), memory=memory)


def _view(model: Model) -> Model:
    buffer = model.buffer.view()
    buffer.flags.writeable = False
    return Model(model.spec, buffer)
