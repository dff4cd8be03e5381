"""Every store: this folder holds what each promises, a test for each sentence of ``interfaces.Store``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_fl.interfaces import Store
from tests.contract.stores.places import MemoryPlace, Place, RedisPlace, SQLitePlace
from tests.contract.stores.writing import acquire


@pytest.fixture(params=["sqlite", "memory", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path, federation: str) -> Iterator[Place]:
    found: SQLitePlace | MemoryPlace | RedisPlace
    if request.param == "sqlite":
        found = SQLitePlace(tmp_path / "store.db")
    elif request.param == "memory":
        found = MemoryPlace()
    else:
        found = RedisPlace(request.getfixturevalue("redis_url"), federation)
    yield found
    found.close()


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def epoch(store: Store) -> int:
    return acquire(store, "first")
