"""What a seed stands for: jobs, learners, and how much goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from broker_fl.wire.job import JobSpec, Termination, Transfer
from broker_fl.wire.pacing import Aimd
from broker_fl.wire.protocols import Asynchronous, SemiSynchronous, Synchronous
from broker_fl.wire.rules import FedAsync, FedAvgM, FedBuff
from broker_fl.wire.selectors import SelectRandom
from tests.simulation.jobs import varied
from tests.simulation.network import NetworkFaults
from tests.simulation.storage import StoreFaults


@dataclass(slots=True, kw_only=True)
class Scenario:
    """All that is drawn before anything happens."""

    jobs: list[JobSpec]
    hosts: list[list[int]]
    """Learners by the process that they are in."""
    num_controllers: int
    train_s: float
    fail: float
    """Share of trainings that raise."""
    refuse: float
    """Share of trainings whose update is not finite."""
    until_s: float
    """When faults end."""
    pause_s: float
    """Mean seconds between two of what befalls a whole process or server."""
    befalls: list[str]
    """What may."""
    skew_s: float
    """How far clocks are apart."""
    network: NetworkFaults = field(default_factory=NetworkFaults)
    store: StoreFaults = field(default_factory=StoreFaults)
    is_sqlite: bool = False
    forgets_versions: bool = False
    """Whether a store without power loses versions too that it had committed within a second."""
    store_patience_s: float | None = None
    is_observed: bool = False
    """Whether somebody lists jobs, learners and versions all the time."""
    pauses: list[bool] = field(default_factory=list)
    """Of each job: whether its driver pauses it for a while."""
    stops: list[bool] = field(default_factory=list)
    continues: list[bool] = field(default_factory=list)
    """Whether its driver submits another one, which begins from its last version or from an older one."""
    groups: list[bool] = field(default_factory=list)
    """Of each process with learners: whether they are a group."""

    @property
    def num_jobs(self) -> int:
        """Also those that begin from others."""
        return len(self.jobs) + sum(self.continues)

    @property
    def num_learners(self) -> int:
        return sum(map(len, self.hosts))


BEFALLS = (
    "kill controller",
    "freeze controller",
    "cut controller",
    "stop controller",
    "kill learner",
    "freeze learner",
    "cut learner",
    "stop learner",
    "cut driver",
    "restart broker",
    "wipe broker",
    "delete mailbox",
    "store outage",
)
PART = "part controller"
"""From the store alone."""


def scenario(seed: int) -> Scenario:
    """Drawn from the seed alone."""
    draw = random.Random(f"scenario {seed}")
    more = random.Random(f"more of {seed}")  # beside the first, so that what it gives stays as it was
    hosts = _hosts(draw)
    has_groups = more.random() < 0.2
    if has_groups:
        hosts = _groups(more)
    parts = random.Random(f"parts of {seed}")  # beside both
    num_learners = sum(map(len, hosts))
    num_jobs = draw.choice([1, 1, 2])
    rare = [0.0, 0.0, 0.01, 0.05]
    hostile = draw.random() < 0.4
    return Scenario(
        jobs=[
            varied(_job(draw, num_learners), more, num_learners, has_groups=has_groups)
            for _ in range(num_jobs)
        ],
        hosts=hosts,
        num_controllers=draw.choice([1, 1, 2]),
        train_s=draw.choice([0.2, 2.0, 10.0]),
        fail=draw.choice([0.0, 0.0, 0.05, 0.2]),
        refuse=draw.choice([0.0, 0.0, 0.05, 0.2]),
        until_s=draw.choice([20.0, 60.0, 120.0]),
        pause_s=draw.choice([2.0, 8.0, 20.0]),
        befalls=draw.sample(BEFALLS, draw.randint(1, len(BEFALLS))) + [PART] * parts.choice([0, 0, 0, 1, 3]),
        skew_s=draw.choice([0.0, 0.0, 1.0, 100.0]),
        network=NetworkFaults(
            lose=draw.choice(rare) if hostile else 0.0,
            double=draw.choice(rare) if hostile else 0.0,
            reorder=draw.choice(rare) if hostile else 0.0,
            delay=draw.choice(rare),
            delay_s=draw.choice([0.5, 5.0, 30.0]),
        ),
        store=StoreFaults(
            refuse=draw.choice(rare),
            silence=draw.choice(rare),
            outage=draw.choice([0.0, 0.0, 0.005, 0.02]),
            crash=draw.choice([0.0, 0.0, 0.005, 0.02]),
        ),
        is_sqlite=seed % 8 == 0,
        forgets_versions=draw.random() < 0.15,
        store_patience_s=draw.choice([None, None, None, 5.0]),
        is_observed=draw.random() < 0.1,
        pauses=[draw.random() < 0.15 for _ in range(num_jobs)],
        stops=[draw.random() < 0.03 for _ in range(num_jobs)],
        continues=[more.random() < 0.1 for _ in range(num_jobs)],
        groups=[has_groups and (len(host) > 1 or more.random() < 0.5) for host in hosts],
    )


def _hosts(draw: random.Random) -> list[list[int]]:
    hosts, count = [], draw.randint(2, 5)
    left = list(range(count))
    while left:
        size = draw.choice([1, 1, 1, 2])
        hosts.append(left[:size])
        left = left[size:]
    return hosts


def _groups(draw: random.Random) -> list[list[int]]:
    """Processes with more learners in each."""
    hosts: list[list[int]] = []
    for _ in range(draw.randint(1, 3)):
        first = sum(map(len, hosts))
        hosts.append(list(range(first, first + draw.choice([1, 2, 3] if hosts else [2, 3]))))
    return hosts


def _job(draw: random.Random, num_learners: int) -> JobSpec:
    transfer = Transfer(chunk_bytes=4096, upload_budget_bytes=draw.choice([1, 20_000, 1 << 20, 1 << 20]))
    shared: dict[str, Any] = {
        "transfer": transfer,
        "evaluate": draw.random() < 0.7,
        "keep_versions": draw.choice([1, 3]),
    }
    deadline_s = draw.choice([None, 15.0, 60.0])
    kind = draw.choice(["rounds", "rounds", "rounds", "semi", "fedasync", "fedbuff"])
    if kind in ("fedasync", "fedbuff"):
        size = draw.randint(1, 2)
        rule = FedAsync() if kind == "fedasync" else FedBuff(buffer_size=size)
        protocol = Asynchronous(
            min_learners=draw.randint(size, 2),
            deadline_s=deadline_s,
            max_staleness=draw.choice([None, None, 1, 4]),
            max_lead=draw.choice([None, None, 1, 2]),
            max_concurrent=draw.choice([None, None, 1, 2]),
            max_failures=draw.choice([3, 100]),
        )
        if draw.random() < 0.2:
            shared["pacing"] = Aimd(target_s=2.0)
        versions = draw.randint(2, 8)
        return JobSpec(protocol=protocol, rule=rule, termination=Termination(versions=versions), **shared)
    selector: dict[str, Any] = {}
    if draw.random() < 0.3 and num_learners > 2:
        selector = {"selector": SelectRandom(count=2, seed=draw.randint(0, 9))}
    if draw.random() < 0.2:
        selector["rule"] = FedAvgM(learning_rate=0.5, momentum=0.5)
    protocol_class = SemiSynchronous if kind == "semi" else Synchronous
    rounds = protocol_class(
        quorum=draw.choice([1.0, 1.0, 0.6, draw.randint(1, 2)]),
        deadline_s=deadline_s,
        over_selection=draw.choice([0, 0, 1]) if "selector" in selector else 0,
        min_learners=draw.randint(1, 2),
        max_retries=draw.choice([2, 100, 100, 100]),
    )
    return JobSpec(protocol=rounds, termination=Termination(rounds=draw.randint(2, 4)), **selector, **shared)
