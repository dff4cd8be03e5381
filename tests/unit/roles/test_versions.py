"""What is said of each stored version."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np

from broker_fl.interfaces import Combined, TaskContext, Update
from broker_fl.model import Arrays, Model
from broker_fl.roles.controller.job.versions import FORMER_CHUNK_BYTES, VersionRecord, Versions
from broker_fl.simulation import Federation
from broker_fl.stores.sqlite import SQLiteStore
from broker_fl.wire.job import JobSpec, Termination


def test_a_version_is_read_in_the_pieces_in_which_it_was_written(tmp_path: Path) -> None:
    model = Model.of({"w": np.arange(3_000, dtype=np.float32)})
    memory = Model.of({"m": np.arange(5_000, dtype=np.float32)})
    store = SQLiteStore(tmp_path / "s.sqlite", federation="f")
    epoch = store.acquire_lease("a", 100.0)
    assert epoch is not None
    versions = Versions(store, "j", epoch)
    for version, chunk_bytes in enumerate((4_096, 10_000, FORMER_CHUNK_BYTES)):
        store.chunk_bytes = chunk_bytes
        record = VersionRecord(
            version=version, spec=model.spec, digest=model.digest, committed_at=1.0, memory_spec=memory.spec
        )
        versions.write(record, Combined(model=model, memory=memory), b"state", keep=3)
    for version in range(3):
        assert versions.read(version)[1].digest == model.digest
        found = versions.read_memory(version)
        assert found is not None
        assert found.digest == memory.digest
    packed = msgpack.unpackb(versions.records()[2].pack(), use_list=False)
    del packed["chunk_bytes"]  # as earlier controllers wrote it
    assert VersionRecord.unpack(msgpack.packb(packed)) == versions.records()[2]
    store.close()


class Counts:
    """Adds one to the weight, and reports it as it was given."""

    def train(self, model: Arrays, task: TaskContext) -> Update:
        model["w"][...] += 1
        return Update(model=model, num_examples=1)

    def evaluate(self, model: Arrays, task: TaskContext) -> dict[str, float]:
        return {"w": float(model["w"][0])}


def test_metrics_of_a_version_are_of_that_version_and_not_of_the_one_before() -> None:
    with Federation({"a": Counts(), "b": Counts()}) as federation:
        job = federation.submit(
            JobSpec(termination=Termination(rounds=5), keep_versions=3), {"w": np.zeros(1, np.float32)}
        )
        finished = job.wait()
        versions = job.versions()
    assert [(version.version, version.metrics) for version in versions] == [
        (3, {"w": 3.0}),
        (4, {"w": 4.0}),
        (5, {"w": 5.0}),
    ]
    assert finished.metrics == {"w": 5.0}
