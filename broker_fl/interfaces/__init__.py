"""The seams of the system: what learner, transport, store, rule and selector must offer. Read this first.

=============  ============================================  ============================================
interface      implementations                               to add one
=============  ============================================  ============================================
``Learner``    the user's own, ``frameworks/``               any object with ``train`` and ``evaluate``
``Transport``  ``transports/rabbitmq``, ``memory``           a package there; it passes ``tests/contract``
``Store``      ``stores/``: redis, sqlite, memory            a file there; it passes ``tests/contract``
``Rule``       ``aggregation/``, one file per rule           a file there, its name in ``RULES``
``Selector``   ``coordination/selection/``                   a class there, its settings in ``wire/``
=============  ============================================  ============================================

A module each; names are imported from here.
"""

from broker_fl.interfaces.extensions import Extensions
from broker_fl.interfaces.learner import Learner, LearnerContext, Metrics, Parameters, TaskContext, Update
from broker_fl.interfaces.rule import (
    Accumulator,
    Combined,
    Contribution,
    Given,
    LazyAccumulator,
    Rule,
    SumAccumulator,
)
from broker_fl.interfaces.selector import Member, Record, Selector
from broker_fl.interfaces.store import Store, StoredVersion
from broker_fl.interfaces.transport import Delivery, HandsOver, Sink, Transport

__all__ = [
    "Accumulator",
    "Combined",
    "Contribution",
    "Delivery",
    "Extensions",
    "Given",
    "HandsOver",
    "LazyAccumulator",
    "Learner",
    "LearnerContext",
    "Member",
    "Metrics",
    "Parameters",
    "Record",
    "Rule",
    "Selector",
    "Sink",
    "Store",
    "StoredVersion",
    "SumAccumulator",
    "TaskContext",
    "Transport",
    "Update",
]
