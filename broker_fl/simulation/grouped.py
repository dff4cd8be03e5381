"""Learners of a simulation in groups: hosts that send one sum for all of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker_fl.errors import SettingError
from broker_fl.interfaces import Learner
from broker_fl.roles.learner import LazyLearners, LearnerHost, LearnerSettings
from broker_fl.transports.memory import MemoryTransport
from broker_fl.wire.fields import MAX_GROUP
from broker_fl.world import World


def check_groups(num_learners: int, num_groups: int, world: World | None) -> None:
    """Raise ``SettingError`` if so many learners cannot be in so many groups, or are given a world."""
    if world is not None:
        raise SettingError("'groups': learners of a group share a host; they have no world of their own")
    if not 0 < num_groups <= num_learners <= num_groups * MAX_GROUP:
        raise SettingError(
            f"'groups': {num_learners} learners cannot be in {num_groups} groups, each of 1 to {MAX_GROUP}"
        )


class GroupHosts:
    """``num_groups`` hosts; each has a stretch of the learners."""

    def __init__(
        self,
        connect: Callable[[str], MemoryTransport],
        federation: str,
        learners: Mapping[str, Learner],
        num_groups: int,
    ) -> None:
        """Each has a connection of its own, made by ``connect`` under the host's name."""
        ids = list(learners)
        share, rest = divmod(len(ids), num_groups)
        self._hosts: list[LearnerHost] = []
        self._transports: list[MemoryTransport] = []
        end = 0
        for number in range(num_groups):
            begin, end = end, end + share + (number < rest)
            part = ids[begin:end]
            mine = (
                learners.part(part)
                if isinstance(learners, LazyLearners)
                else {learner: learners[learner] for learner in part}
            )
            transport = connect(f"group-{number}")
            settings = LearnerSettings(federation=federation, num_workers=1, group=f"group-{number}")
            self._hosts.append(LearnerHost(transport, mine, settings))
            self._transports.append(transport)

    def start(self) -> None:
        """Have them join."""
        for host in self._hosts:
            host.start()

    def stop(self) -> None:
        """Stop working, leave and end."""
        for host in self._hosts:
            host.stop(drain_s=0.0, reason="the simulation is over")
        for transport in self._transports:
            transport.close()
