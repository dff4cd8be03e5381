from __future__ import annotations

import threading
from pathlib import Path

from broker_fl.interfaces import Learner
from broker_fl.simulation import Federation
from broker_fl.wire.events import VersionCommitted
from tests.unit.roles.stage import Adds, model_of, same, spec


def learners(num: int) -> dict[str, Learner]:
    return {f"l{index:02}": Adds(float(index % 4)) for index in range(num)}


def test_a_federation_of_one_process_makes_the_model_computed_by_hand() -> None:
    """(0 + 1 + 2 + 3) / 4 = 1.5 a round."""
    with Federation(learners(20), num_workers=4) as federation:
        job = federation.submit(spec(rounds=3, min_learners=20), model_of())
        assert job.wait().state == "done"
        same(job.model(), model_of(4.5))
        committed = [event for event in job.events(follow=False) if isinstance(event, VersionCommitted)]
        assert [event.num_learners for event in committed] == [20] * 3


def test_its_threads_end_with_it_and_a_temporary_folder_too() -> None:
    before = set(threading.enumerate())
    with Federation(learners(2)) as federation:
        federation.submit(spec(rounds=1), model_of()).wait()
        folder = federation.folder
        assert folder.exists()
    assert not folder.exists()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]


def test_a_folder_keeps_a_job_that_was_cut_off_and_the_next_federation_goes_on(tmp_path: Path) -> None:
    with Federation({"a": (stuck := Adds(1.0))}, folder=tmp_path) as federation:
        job = federation.submit(spec(rounds=5), model_of())
        for event in job.events():
            if isinstance(event, VersionCommitted) and event.version == 2:
                stuck.gate.clear()
                break
    with Federation({"a": Adds(1.0)}, folder=tmp_path) as federation:
        again = federation.driver.job(job.id)
        assert again.wait().state == "done"
        same(again.model(), model_of(5.0))
        assert [summary.job for summary in federation.driver.jobs()] == [job.id]
