"""Every encoding through RabbitMQ and Redis; what each loses is tested in ``tests/unit/roles``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker_fl.wire import events as e
from broker_fl.wire.encodings import encoding
from broker_fl.wire.job import JobSpec
from tests.integration.test_protocols import NAMES, of, running
from tests.unit.roles.stage import done

SIZE = 30_000
ROUNDS = 3


@pytest.mark.parametrize(
    "transfer",
    [
        {"encoding": "float16"},
        {"encoding": "bfloat16", "form": "changes"},
        {"encoding": "int8"},
        {"encoding": "int8", "broadcast": "int8"},
        {"encoding": "topk/4"},
    ],
    ids=str,
)
def test_a_job_in_each_encoding_on_real_servers(
    amqp_url: str, redis_url: str, federation: str, transfer: dict[str, Any]
) -> None:
    """Five learners that add 1 in each round; chunks of 4 KiB, so that each update is several.

    With one element in four, each quarter is sent when its turn comes, with what had to wait.
    """
    initial: dict[str, Any] = {"w": np.arange(SIZE, dtype=np.float32) % 7, "n": np.arange(5)}
    spec = JobSpec.model_validate(
        {
            "protocol": {"min_learners": len(NAMES)},
            "termination": {"rounds": ROUNDS},
            "transfer": {"chunk_bytes": 4096, **transfer},
        }
    )
    with running(amqp_url, redis_url, federation) as driver:
        job = driver.submit(spec, initial)
        done(job)
        final = job.model()
        folded = of(job, e.UpdateFolded)
    added = np.repeat([1.0, 2.0, 3.0, 0.0], SIZE // 4) if transfer["encoding"] == "topk/4" else ROUNDS
    np.testing.assert_allclose(final["w"], initial["w"] + added, atol=0.03)
    np.testing.assert_array_equal(final["n"], initial["n"] + ROUNDS)
    expected = encoding(spec.transfer.encoding).num_bytes(final.spec)
    assert {event.num_bytes for event in folded} == {expected}  # type: ignore[attr-defined]
    assert len(folded) == ROUNDS * len(NAMES)
