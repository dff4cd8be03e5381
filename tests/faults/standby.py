"""Two controllers: the one that works, or a server, is killed or frozen; the same round goes on."""

from __future__ import annotations

import signal
import time
from typing import Literal

from redis import Redis

from broker_fl.topology import RedisKeys
from broker_fl.wire import events as e
from tests.faults.cells import ROUND, Bench, Outcome, Phase, Watched, bring_to, disturb, go_on, outcome
from tests.faults.federation import FENCED, Process

TARGET = "controller with a standby"
Server = Literal["broker", "Redis"]
SERVERS: dict[str, Server] = {"broker with a standby": "broker", "Redis with a standby": "Redis"}
StandbyFault = Literal["kill -9", "freeze, thaw"]
FAULTS: tuple[StandbyFault, ...] = ("kill -9", "freeze, thaw")


def play(fault: StandbyFault, phase: Phase, bench: Bench) -> Outcome:
    """One cell. In the end "controller" works again, alone."""
    federation = bench.federation
    standby = _standby(bench)
    active = federation.processes["controller"]
    watched = bring_to(phase, bench)
    if fault == "kill -9":
        federation.kill("controller")
    else:
        active.freeze()
    began = time.time()
    go_on(bench, watched)
    played = outcome(TARGET, fault, phase, bench, watched, over_at=began)
    if fault == "freeze, thaw":
        active.send(signal.SIGCONT)
        federation.wait(lambda: active.exit_code is not None, "the end of the one that was frozen")
        assert active.exit_code == FENCED, federation.logs()
    _check_same_round(watched)
    _hand_over(bench, standby)
    return played


def play_server(target: str, phase: Phase, bench: Bench) -> Outcome:
    """One cell: a server is frozen for longer than a lease lasts. When Redis wakes up, the lease is over: it
    is the standby's or once more the first one's, whoever comes first, and a second one is fenced.
    """
    federation = bench.federation
    standby, active = _standby(bench), federation.processes["controller"]
    watched, before = bring_to(phase, bench), epoch(bench)
    disturb(SERVERS[target], "freeze, thaw", bench, meanwhile=lambda: go_on(bench, watched))
    played = outcome(target, "freeze, thaw", phase, bench, watched, over_at=time.time())
    if epoch(bench) != before:
        federation.wait(lambda: active.exit_code is not None, "the end of the one whose lease was over")
        assert active.exit_code == FENCED, federation.logs()
        assert standby.exit_code is None, federation.logs()
        _hand_over(bench, standby)
    else:
        assert standby.exit_code is None, federation.logs()
        _end(standby)
    return played


def play_parted(phase: Phase, bench: Bench) -> Outcome:
    """The active one is cut off from Redis alone, and stays so until the standby has brought the job to its
    end, and another one that a driver submits meanwhile.
    """
    federation = bench.federation
    standby, active = _standby(bench), federation.processes["controller"]
    watched = bring_to(phase, bench)
    federation.to_store["controller"].cut("silent")
    began = time.time()
    other = bench.submit()
    federation.open_gates(other.id)
    go_on(bench, watched)
    played = outcome(TARGET, "cut off from Redis", phase, bench, watched, over_at=began)
    federation.wait(lambda: other.has_ended, "the end of the job that was submitted meanwhile")
    assert other.error is None, federation.logs()
    assert other.has(e.JobFinished, state="done"), federation.logs()
    assert active.exit_code is None, "it has no way to know"
    federation.to_store["controller"].heal()
    federation.wait(lambda: active.exit_code is not None, "the end of the one that was cut off")
    assert active.exit_code == FENCED, federation.logs()
    _check_same_round(watched)
    _hand_over(bench, standby)
    return played


def epoch(bench: Bench) -> int:
    """Of the controller that has the lease, once somebody has it."""
    keys = RedisKeys(bench.federation.name)
    assert bench.redis is not None
    with Redis.from_url(bench.redis.url) as redis:
        bench.federation.wait(lambda: redis.exists(keys.lease), "that somebody has the lease")
        return int(redis.hget(keys.controller, "epoch") or 0)


def _standby(bench: Bench) -> Process:
    """A second controller, which waits."""
    standby = bench.federation.start("controller-2")
    bench.federation.wait(lambda: "standing by" in standby.log.read_text(), "a controller on standby")
    return standby


def _hand_over(bench: Bench, standby: Process) -> None:
    """Start "controller" anew, and end the one that took over. It is back only when it has the lease: another
    one that begins before that would not be the standby.
    """
    log = bench.federation.processes["controller"].log
    before = len(log.read_text())
    bench.federation.start("controller")
    _end(standby)
    bench.federation.wait(lambda: "is active" in log.read_text()[before:], "a controller that is alone")


def _end(standby: Process) -> None:
    standby.stop()
    standby.log.unlink()


def _check_same_round(watched: Watched) -> None:
    resumed = [event for event in watched.events if isinstance(event, e.JobResumed)]
    assert [event.round for event in resumed] == [ROUND], "it goes on with the round that it found"
