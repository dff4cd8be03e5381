"""Two controllers: the one that works is killed or frozen, and the other goes on with the same round."""

from __future__ import annotations

import signal
import time
from typing import Literal

from broker_fl.wire import events as e
from tests.faults.cells import ROUND, Bench, Outcome, Phase, Watched, bring_to, go_on, outcome
from tests.faults.federation import FENCED

TARGET = "controller with a standby"
StandbyFault = Literal["kill -9", "freeze, thaw"]
FAULTS: tuple[StandbyFault, ...] = ("kill -9", "freeze, thaw")


def play(fault: StandbyFault, phase: Phase, bench: Bench) -> Outcome:
    """One cell. In the end "controller" works again, alone."""
    federation = bench.federation
    standby = federation.start("controller-2")
    federation.wait(lambda: "standing by" in standby.log.read_text(), "a controller on standby")
    active = federation.processes["controller"]
    watched = bring_to(phase, bench)
    if fault == "kill -9":
        federation.kill("controller")
    else:
        active.send(signal.SIGSTOP)
    began = time.time()
    go_on(bench, watched)
    played = outcome(TARGET, fault, phase, bench, watched, over_at=began)
    if fault == "freeze, thaw":
        active.send(signal.SIGCONT)
        federation.wait(lambda: active.exit_code is not None, "the end of the one that was frozen")
        assert active.exit_code == FENCED, federation.logs()
    _check_same_round(watched)
    federation.start("controller")
    standby.stop()
    standby.log.unlink()
    return played


def _check_same_round(watched: Watched) -> None:
    resumed = [event for event in watched.events if isinstance(event, e.JobResumed)]
    assert [event.round for event in resumed] == [ROUND], "it goes on with the round that it found"
