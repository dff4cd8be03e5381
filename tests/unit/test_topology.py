"""Names, and what every broker must accept of them."""

from __future__ import annotations

from typing import Any

import pytest

from broker_fl.topology import Binding, Exchange, Queue, Topology

LONGEST = "x" * 64


def everything(topology: Topology) -> list[Any]:
    return [
        *topology.for_controller(),
        *topology.for_inbox(LONGEST),
        *topology.for_learner(LONGEST),
        *topology.for_driver(LONGEST),
        *topology.for_watcher(LONGEST, LONGEST),
    ]


def test_every_binding_joins_an_exchange_and_a_queue_that_are_declared_before_it() -> None:
    declared: set[str] = set()
    for entity in everything(Topology("F")):
        if isinstance(entity, Binding):
            assert {entity.exchange, entity.queue} <= declared
        else:
            declared.add(entity.name)


def test_names_stay_below_what_amqp_carries() -> None:
    for entity in everything(Topology(LONGEST)):
        names = (
            [entity.exchange, entity.queue, entity.routing_key]
            if isinstance(entity, Binding)
            else [entity.name]
        )
        assert all(len(name.encode()) <= 255 for name in names)


def test_federations_share_no_name() -> None:
    first, second = (
        {entity.name for entity in everything(Topology(name)) if not isinstance(entity, Binding)}
        for name in "AB"
    )
    assert not first & second


def test_no_learner_driver_inbox_or_watcher_has_the_queue_of_another() -> None:
    topology = Topology("F")
    names = [
        topology.mailbox("same"),
        topology.inbox("same"),
        topology.driver_queue("same"),
        topology.event_queue("same"),
        topology.reports,
        topology.control,
        topology.dead,
    ]
    assert len(set(names)) == len(names)
    assert topology.learner_key("s") != Topology.ALL_LEARNERS


def test_models_never_go_through_quorum_queues_and_reports_do() -> None:
    queues = {entity.name: entity for entity in everything(Topology("F")) if isinstance(entity, Queue)}
    assert {name for name, queue in queues.items() if queue.quorum} == {"bfl.F.reports", "bfl.F.control"}
    assert all(queue.quorum or not queue.single_active_consumer for queue in queues.values())


def test_a_queue_of_a_party_that_may_never_come_back_expires_or_is_bounded() -> None:
    topology = Topology("F")
    for queue in everything(topology):
        if isinstance(queue, Queue) and not queue.quorum:
            assert queue.max_length_bytes
            assert queue.expires_s or queue.name == topology.dead


def test_a_full_inbox_makes_its_senders_wait_and_loses_nothing() -> None:
    (inbox,) = (entity for entity in Topology("F").for_inbox("i") if isinstance(entity, Queue))
    assert inbox.overflow == "reject-publish"


@pytest.mark.parametrize("role", ["for_learner", "for_driver"])
def test_a_party_reads_only_what_is_meant_for_it(role: str) -> None:
    bindings = [entity for entity in getattr(Topology("F"), role)("me") if isinstance(entity, Binding)]
    keys = {binding.routing_key for binding in bindings}
    assert keys == ({"learner.me", "learners"} if role == "for_learner" else {"me"})
    exchange = "bfl.F.tasks" if role == "for_learner" else "bfl.F.answers"
    assert {binding.exchange for binding in bindings} == {exchange}


def test_exchanges_are_of_the_types_that_their_keys_need() -> None:
    types = {
        e.name.removeprefix("bfl.F."): e.type for e in Topology("F").exchanges() if isinstance(e, Exchange)
    }
    assert types == {
        "tasks": "direct",
        "answers": "topic",
        "updates": "topic",
        "reports": "topic",
        "control": "direct",
        "events": "topic",
    }
