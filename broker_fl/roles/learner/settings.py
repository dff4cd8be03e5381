"""How a host of learners behaves, and what it says that it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import broker_fl
from broker_fl.interfaces import Parameters
from broker_fl.roles.learner.policy import Guard

SOFTWARE = f"broker_fl {broker_fl.__version__}"
"""What learners of this library say that they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """How a host of learners behaves."""

    federation: str = "default"
    attributes: Parameters = field(default_factory=dict)
    """Told to the controller at joining, besides those that a learner tells itself; selectors may go by them.
    """
    num_workers: int = 1
    """Tasks of this host's learners that are worked on at the same time."""
    max_model_bytes: int = 8 << 30
    """A task with a larger model is refused."""
    group: str | None = None
    """Name of the group that the learners are: they have one mailbox, and send one sum of their updates,
    which serves jobs whose rule is a weighted sum. None: each is by itself.
    """
    guard: Guard | None = None
    """The site's policy, which each task is held against. None: all are taken."""
