"""How a role is doing at the moment; asked for by whoever watches it, from any thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """Of a controller or a host of learners."""

    num_learners: int
    """That are there for a controller; that the host has."""
    num_calls: int
    """Messages and other calls that wait for the deciding thread."""
    stalled_s: float
    """Since the deciding thread last turned to a new call; it turns at least once a heartbeat."""
    has_ended: bool
    queues: Mapping[str, str]
    """What it reads: ``inbox``, ``reports``, ``control``, or the first learner's ``mailbox`` → name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerStatus(RoleStatus):
    """Of a controller."""

    epoch: int
    """0 while it stands by."""
    is_active: bool
    is_standby: bool
    """It waits for the lease that another holds. Neither active nor this: the store does not answer."""
    is_without_store: bool
    """The store did not take the last that was asked of it."""
    num_jobs: Mapping[str, int]
    """By phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStatus(RoleStatus):
    """Of a host of learners."""

    is_welcomed: bool
    """A controller has answered."""
    num_working: int
    num_waiting: int
    """Tasks that are whole and wait for a worker."""
