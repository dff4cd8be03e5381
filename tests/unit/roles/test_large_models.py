"""What is done about models of which a process can hold few."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np

from broker_fl.model import Model
from broker_fl.wire.job import Transfer
from tests.unit.roles.stage import Adds, Stage, done, eventually, same

SIZE = 50_021
"""Of no other test's model."""


def num_alive() -> int:
    """Models of this test that something in the process still holds."""
    return sum(1 for one in gc.get_objects() if isinstance(one, Model) and one.spec.num_elements == SIZE)


def test_a_large_version_is_let_go_of_once_it_is_sent_and_read_again_for_who_starts_anew(
    tmp_path: Path,
) -> None:
    transfer = Transfer(upload_budget_bytes=1, chunk_bytes=8192)
    slow, quick = Adds(1.0), Adds(3.0)
    slow.gate.clear()
    quick.gate.clear()
    with Stage(tmp_path) as stage:
        stage.controller()
        stage.host({"quick": quick})
        host = stage.host({"slow": slow})
        job = stage.submit(
            {"w": np.zeros(SIZE, np.float32)}, min_learners=2, rounds=2, evaluate=False, transfer=transfer
        )
        assert slow.at_work.wait(30)
        assert quick.at_work.wait(30)
        eventually(lambda: num_alive() == 2, "nobody but the learners having the model")
        stage.kill_host(host)
        again = Adds(1.0)
        stage.host({"slow": again})
        quick.gate.set()
        done(job)
        assert again.num_trained >= 2
        same(job.model(), {"w": np.full(SIZE, 4.0, np.float32)})
