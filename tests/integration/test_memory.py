"""What roles hold of a model that is too large for several updates to come in at once."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks import processes
from broker_fl import connect
from broker_fl.wire.job import JobSpec, Termination, Transfer

NUM_LEARNERS, NUM_PARAMETERS, ROUNDS = 3, 60_000_000, 2
FEDERATION = "large"


@pytest.mark.timeout(400)
def test_a_controller_holds_the_sum_and_one_update_and_a_learner_one_model(
    amqp_url: str, redis_url: str
) -> None:
    model_bytes = 4 * NUM_PARAMETERS
    with ExitStack() as stack:
        running = [stack.enter_context(processes.controller(amqp_url, redis_url, FEDERATION))]
        running += [
            stack.enter_context(processes.learners(amqp_url, FEDERATION, number, 1))
            for number in range(NUM_LEARNERS)
        ]
        before = [processes.resident_bytes_of(one.process.pid or 0) for one in running]
        spec = JobSpec(
            protocol={"min_learners": NUM_LEARNERS},  # type: ignore[arg-type]
            termination=Termination(rounds=ROUNDS),
            transfer=Transfer(upload_budget_bytes=64 << 20),
        )
        with connect(amqp_url, FEDERATION, timeout_s=120.0) as driver:
            job = driver.submit(spec, {"w": np.zeros(NUM_PARAMETERS, np.float32)})
            assert job.wait().state == "done"
            first = float(job.model()["w"][0])
        peaks = [one.stop() for one in reversed(running)][::-1]
    assert first > 0
    if None in before:
        pytest.skip("the memory of a process can only be read where there is a /proc")
    models = [(peak - (at_first or 0)) / model_bytes for peak, at_first in zip(peaks, before, strict=True)]
    assert models[0] <= 2.5, "the controller"
    assert max(models[1:]) <= 3.0, "a learner"
