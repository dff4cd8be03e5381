"""The world of a simulation, and what it makes of each learner."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import model_validator

from broker_fl.errors import SettingError
from broker_fl.wire.fields import Count
from broker_fl.wire.settings import Above0, Setting
from broker_fl.world.draws import AtLeast0, Draw, DrawAbove0, Ids, Same, check_known, distribution
from broker_fl.world.faults import Fail, Fault, Kill


class Links(Setting):
    """Of each learner, between it and the broker."""

    down_bytes_s: DrawAbove0 | None = None
    """Bytes a second to the learner; None is as fast as this machine."""
    up_bytes_s: DrawAbove0 | None = None
    """Bytes a second from the learner."""
    latency_s: Draw = Same(value=0.0)
    """How long a message is on its way besides, in each direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one learner of a simulation is like."""

    learner: str
    speed: float = 1.0
    down_bytes_s: float | None = None
    up_bytes_s: float | None = None
    latency_s: float = 0.0
    fail_probability: float = 0.0
    kills: tuple[Kill, ...] = ()

    @property
    def has_link(self) -> bool:
        """Whether messages from or to it take time."""
        return self.latency_s > 0 or self.down_bytes_s is not None or self.up_bytes_s is not None

    def to_json(self) -> dict[str, Any]:
        """For the run folder; of its deaths, when they are."""
        return {
            "learner": self.learner,
            "speed": self.speed,
            "down_bytes_s": self.down_bytes_s,
            "up_bytes_s": self.up_bytes_s,
            "latency_s": self.latency_s,
            "fail_probability": self.fail_probability,
            "kills": [
                kill.model_dump(exclude_none=True, exclude={"name", "learners", "fraction", "count"})
                for kill in self.kills
            ],
        }


class World(Setting):
    """A simulated federation: what its learners are like, and what happens to them."""

    seed: Count = 0
    """Everything random is drawn from it, each thing by itself: other links leave the speeds as they are."""
    speeds: DrawAbove0 = Same(value=1.0)
    """How fast learners compute: at 0.1, training and evaluation take ten times as long as at 1."""
    step_s: Above0 | None = None
    """How long an optimiser step takes at speed 1, whatever it takes here; needs learners that count their
    steps. None: as long as it takes on this machine, which no speed above 1 can shorten.
    """
    evaluate_s: AtLeast0 | None = None
    """How long an evaluation takes at speed 1; None: as long as it takes on this machine."""
    links: Links = Links()
    faults: Sequence[Fault] = ()
    heartbeat_s: Above0 = 1.0
    """How often learners are heard of; four missed in a row, and one is lost."""

    @model_validator(mode="after")
    def _can_be_as_fast(self) -> World:
        most = distribution(self.speeds).least_and_most()[1]
        if most > 1 and self.step_s is None:
            raise ValueError(
                f"'speeds' go up to {most:g}, but real time cannot be shortened: give 'step_s', or speeds of "
                f"at most 1"
            )
        return self

    @property
    def paces(self) -> bool:
        """Whether some computing takes longer than it does on this machine."""
        slowest = distribution(self.speeds).least_and_most()[0]
        return slowest < 1 or self.step_s is not None or self.evaluate_s is not None

    def profiles(self, learners: Ids) -> dict[str, Profile]:
        """What each of these learners is like; the same learners and seed give the same.

        Raises:
            SettingError: a setting names other learners, or is for more of them than there are.
        """
        ids, num = sorted(learners), len(learners)
        links = self.links
        speeds = self._drawn("speeds", self.speeds, ids)
        down: list[Any] = self._drawn("links.down_bytes_s", links.down_bytes_s, ids) or [None] * num
        up: list[Any] = self._drawn("links.up_bytes_s", links.up_bytes_s, ids) or [None] * num
        latency = self._drawn("links.latency_s", links.latency_s, ids)
        hit = dict(self._hit(ids))
        return {
            learner: Profile(
                learner=learner,
                speed=speeds[index],
                down_bytes_s=down[index],
                up_bytes_s=up[index],
                latency_s=latency[index],
                fail_probability=self._fail_probability(learner, hit),
                kills=tuple(
                    fault
                    for place, fault in enumerate(self.faults)
                    if isinstance(fault, Kill) and learner in hit[place]
                ),
            )
            for index, learner in enumerate(ids)
        }

    def rng(self, what: str) -> np.random.Generator:
        """A stream of random numbers of its own for ``what``."""
        return np.random.default_rng([self.seed, zlib.crc32(what.encode())])

    def _drawn(self, what: str, draw: Draw | None, ids: Ids) -> list[float]:
        try:
            return [] if draw is None else distribution(draw).draw(ids, self.rng(what))
        except SettingError as error:
            raise SettingError(f"simulation.{what}: {error}") from None

    def _fail_probability(self, learner: str, hit: Mapping[int, frozenset[str]]) -> float:
        """That at least one of the faults has its way."""
        fails = 0.0
        for place, fault in enumerate(self.faults):
            if isinstance(fault, Fail) and learner in hit[place]:
                fails += fault.probability - fails * fault.probability
        return fails

    def _hit(self, ids: Ids) -> Iterator[tuple[int, frozenset[str]]]:
        """Whom each fault hits.

        Of one seed, those that a smaller share hits are among those of a larger one. No two kills draw the
        same learner.
        """
        order = {name: [ids[at] for at in self.rng(name).permutation(len(ids))] for name in ("kill", "fail")}
        for place, fault in enumerate(self.faults):
            where = f"simulation.faults, number {place + 1}"
            if fault.learners is not None:
                check_known(fault.learners, ids, where)
                yield place, frozenset(fault.learners)
                continue
            left = order[fault.name]
            num = fault.num_drawn(len(ids)) if fault.fraction or fault.count else len(left)
            if num > len(left):
                raise SettingError(f"{where}: {num} learners are to be hit, and {len(left)} are left")
            yield place, frozenset(left[:num])
            if isinstance(fault, Kill):
                del left[:num]
