"""The sum of what learners changed, ``Σ sᵢ (xᵢ − x)``, for rules that move the model they gave out.

Trained tensors have a change; the head of ``sums.py`` says in which types it is summed. Integer and boolean
tensors, and buffers (float tensors that are not trained, such as the running variances of batch
normalisation), have none: they take the weighted mean of the updates, as in ``sums.py``. An optimiser's step
beyond that mean would make a variance negative.
"""

from __future__ import annotations

import numpy as np

from broker_fl.aggregation import fused, kernels
from broker_fl.aggregation.sums import Intact, check_addable, length, sum_dtype, write_mean
from broker_fl.errors import AggregationError
from broker_fl.interfaces import Given
from broker_fl.model import FLOATS, Array, Model, ModelSpec, Run, parts


def float_runs(spec: ModelSpec) -> tuple[Run, ...]:
    """The runs that have a length and a distance."""
    return tuple(run for run in spec.runs if run.dtype in FLOATS)


class ChangeSum:
    """``Σ sᵢ (xᵢ − x)`` and ``Σ wᵢ``. Memory: the model that was given, and one in the type of the sum."""

    def __init__(self, given: Given) -> None:
        self.spec = given.spec
        self.total_weight = 0.0
        self._is_trained = parts(given.spec, given.buffers)
        self._given = given
        self._base: Model | None = None
        self._totals: dict[Run, Array] | None = None
        self._intact = Intact()

    @property
    def trained_runs(self) -> tuple[Run, ...]:
        """The stretches that have a change."""
        return tuple(run for run, is_trained in self._is_trained.items() if is_trained)

    @property
    def base(self) -> Model:
        """``x``, the model that was given."""
        if self._base is None:
            self._base = self._given.model()
        return self._base

    def check(self, model: Model, weight: float) -> None:
        """Whether the model can be added.

        Raises:
            UpdateRefused: another spec, a weight that is not positive and finite, or a value that is not
                finite.
        """
        check_addable(self.spec, model, weight)

    def add(self, model: Model, *, scale: float, weight: float) -> None:
        """Take in a model that passed ``check``: its change times ``scale``, all else by ``weight``.

        Raises:
            AggregationError: an addition before broke off, so that the sum is lost.
        """
        totals, base = self._begun(), self.base
        with self._intact.changing():
            for run, total in totals.items():
                if self._is_trained[run]:
                    fused.add_scaled_change(total, model.run(run), base.run(run), scale)
                else:
                    kernels.add_scaled(total, model.run(run), weight)
        self.total_weight += weight

    def add_change(self, change: Model, weight: float) -> None:
        """Take in a change that its learner computed and that passed ``check``; what is not trained are the
        learner's values.

        Raises:
            AggregationError: an addition before broke off, so that the sum is lost.
        """
        totals = self._begun()
        with self._intact.changing():
            for run, total in totals.items():
                kernels.add_scaled(total, change.run(run), weight)
        self.total_weight += weight

    def _begun(self) -> dict[Run, Array]:
        if self._totals is None:
            self._totals = {run: np.zeros(length(run), sum_dtype(run)) for run in self._is_trained}
        return self._totals

    def rescale(self, factor: float) -> None:
        """Multiply ``Σ sᵢ (xᵢ − x)``."""
        with self._intact.changing():
            for run, total in (self._totals or {}).items():
                if self._is_trained[run]:
                    fused.evaluate("total * factor", total, total=total, factor=factor)

    def squared_change(self, model: Model) -> float:
        """``|xᵢ − x|²`` over all that is trained."""
        runs = self.trained_runs
        return sum(fused.squared_distance(model.run(run), self.base.run(run)) for run in runs)

    def totals(self) -> list[Array]:
        """``Σ sᵢ (xᵢ − x)`` of each of ``trained_runs``; what is written to them changes what ``moved`` adds.

        Raises:
            AggregationError: nothing was added, or an addition broke off.
        """
        self._intact.check()
        if self._totals is None:
            raise AggregationError("no update was folded, so there is nothing to combine")
        return [total for run, total in self._totals.items() if self._is_trained[run]]

    def moved(self) -> Model:
        """``x`` plus the totals as they are now, and the mean of all else; the sum is used up.

        Raises:
            AggregationError: a value is not finite, or an addition broke off.
        """
        self._intact.check()
        result, totals = Model.blank(self.spec), self._totals or {}
        for run, total in totals.items():
            if self._is_trained[run]:
                kernels.add_scaled(total, self.base.run(run), 1.0)
            else:
                kernels.divide(total, self.total_weight)
            write_mean(result.run(run), total)
            if not kernels.all_finite(result.run(run)):
                raise AggregationError(f"the combination of the updates overflows {run.dtype}")
        self._totals, self._base = None, None
        return result
