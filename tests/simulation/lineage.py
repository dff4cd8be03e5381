"""One job's versions, and what each of them was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from broker_fl.model import Array, Arrays
from broker_fl.wire.job import JobSpec
from broker_fl.wire.rules import Scaffold
from tests.simulation.kernel import Violation
from tests.simulation.readings import Content, New, check, reading_of
from tests.simulation.references import NUM_VALUES, Training
from tests.simulation.variates import Book


class Lineage:
    """The versions of one job as they were committed."""

    def __init__(self, job: str, spec: JobSpec, num_learners: int, *, began_at: float) -> None:
        self.job = job
        self.spec = spec
        self.began_at = began_at
        self.models: list[Array] = []
        self.contents: list[list[Content]] = []
        """Of each version; several, where its values leave open which of them it was."""
        self.variates = Book(num_learners) if isinstance(spec.rule, Scaffold) else None
        self.has_lost = False
        """Whether the store has ever forgotten a version: what was trained from it may count in the one that
        took its number, so that from then on nothing is read from the values."""
        self.parent: tuple[Lineage, int] | None = None
        self._reading = reading_of(spec, num_learners)
        self._max_age = getattr(spec.protocol, "max_staleness", 0)
        self._numbers: dict[bytes, int] = {}

    def begin_from(self, other: Lineage, version: int) -> None:
        """It is to begin with another job's version; a rule of the same settings goes on as it was there."""
        self.parent = other, version
        if other.has_lost or other.spec.rule != self.spec.rule:
            return
        self._reading.begin_from(other._reading, version)
        if self.variates is not None and other.variates is not None:
            self.variates.begin_from(other.variates, version)

    def base_of(self, values: Array) -> int:
        """The number of a version."""
        version = self._numbers.get(values.tobytes())
        if version is None:
            raise Violation(f"a learner was given a model of {self.job} that is no version of it")
        return version

    def cut(self, num_left: int) -> None:
        """The store has forgotten the newest versions."""
        del self.models[num_left:], self.contents[num_left:]
        self.has_lost = True

    def add(
        self,
        data: bytes,
        memory: Arrays | None,
        trainings: Mapping[int, Training],
        counted: Mapping[int, object],
    ) -> Sequence[Training]:
        """A version was committed; what it is made of comes back: what it is for sure, where that is open."""
        values = np.frombuffer(data, np.float64, NUM_VALUES)  # what the rule keeps comes behind
        contents: list[Content] = []
        if self.models and not self.has_lost:
            contents = self._read(values, memory, trainings, counted)
        elif self.parent is not None and not self.models:
            before, version = self.parent
            same = before.has_lost or np.array_equal(before.models[version], values)
            check(same, f"{self.job} began with another model than version {version} of {before.job}")
        key = values.tobytes()
        check(self.has_lost or key not in self._numbers, f"{self.job}: a version is equal to an earlier one")
        self._numbers[key] = len(self.models)
        self.models.append(values)
        self.contents.append(contents)
        return [one for one in contents[0].trainings if _in_all(one, contents)] if contents else []

    def _read(
        self,
        values: Array,
        memory: Arrays | None,
        trainings: Mapping[int, Training],
        counted: Mapping[int, object],
    ) -> list[Content]:
        new = New(
            name=f"version {len(self.models)} of {self.job}",
            number=len(self.models),
            before=self.models[-1],
            values=values,
            trainings=trainings,
            candidates=[
                one
                for one in trainings.values()
                if one.job == self.job and one.is_usable and one.number not in counted
            ],
        )
        contents = self._reading.contents(new)
        for one in contents[0].trainings:
            is_young = self._max_age is None or new.age(one) <= self._max_age
            check(is_young, f"{one} is too old for {new.name}")
        if self.variates is not None:
            self.variates.committed(contents[0].trainings, memory, new.name)
        return contents


def _in_all(one: Training, contents: Sequence[Content]) -> bool:
    return all(one.number in content.weights for content in contents)
