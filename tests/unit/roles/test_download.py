"""How a stored version comes to a driver."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from broker_fl.errors import RequestRefused, StoreUnavailable
from broker_fl.interfaces import Combined
from broker_fl.model import Model
from broker_fl.roles.controller.job.versions import VersionRecord, Versions
from broker_fl.roles.controller.requests import download
from broker_fl.roles.controller.requests.download import find_version
from broker_fl.stores.sqlite import SQLiteStore
from tests.unit.roles.stage import Adds, Stage, done, same

SIZE = 5_000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SQLiteStore, "chunk_bytes", 10_000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 4_096)


def test_pieces_of_any_length_are_cut_anew() -> None:
    data = bytes(range(256)) * 40
    for lengths in ((10_240,), (0,), (4_096, 4_096), (1, 4_095, 10, 6_000), (8_192, 2_048)):
        ends = np.cumsum(lengths)
        pieces = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        cut = list(download._cut(pieces, 4_096))
        assert b"".join(cut) == data[: ends[-1]]
        assert [len(one) for one in cut[:-1]] == [4_096] * (len(cut) - 1)
        assert len(cut) == max(1, -(-ends[-1] // 4_096))


def test_a_version_that_stays_is_read_when_its_pieces_are_wanted(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.sqlite", federation="f")
    epoch = store.acquire_lease("a", 100.0)
    assert epoch is not None
    model = Model.of({"w": np.arange(SIZE, dtype=np.float32)})
    versions = Versions(store, "j", epoch)
    for version in range(2):
        record = VersionRecord(version=version, spec=model.spec, digest=model.digest, committed_at=1.0)
        versions.write(record, Combined(model=model, memory=None), b"state", keep=1 + version)
    record, pieces = find_version(versions, 0, may_change=False)
    assert (record.version, b"".join(pieces)) == (0, model.buffer.tobytes())
    _, safe = find_version(versions, None, may_change=True)
    _, piecewise = find_version(versions, None, may_change=False)
    store.delete_job("j", epoch=epoch)
    assert b"".join(safe) == model.buffer.tobytes()
    with pytest.raises(StoreUnavailable, match="version 1 of job 'j' is not whole in the store"):
        list(piecewise)
    store.close()


def test_a_driver_gets_what_is_stored_and_is_told_when_it_is_not_what_was_stored(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        job = stage.run({"a": Adds(1.0)}, {"w": np.zeros(SIZE, np.float32)}, rounds=1)
        done(job)
        same(job.model(), {"w": np.ones(SIZE, np.float32)})
        with sqlite3.connect(stage.path) as database:
            database.execute("UPDATE chunks SET data = zeroblob(10000) WHERE version = 1 AND position = 1")
        with pytest.raises(RequestRefused, match=r"version 1 of job .* is corrupt in the store"):
            job.model()
        with sqlite3.connect(stage.path) as database:
            database.execute("DELETE FROM chunks WHERE version = 1 AND position = 1")
        with pytest.raises(RequestRefused, match=r"version 1 of job .* is not whole in the store"):
            job.model()
        same(job.model(0), {"w": np.zeros(SIZE, np.float32)})
