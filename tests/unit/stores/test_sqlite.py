"""What is SQLite's own in the SQLite store."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from broker_fl.errors import SettingError, StoreUnavailable
from broker_fl.interfaces import StoredVersion
from broker_fl.stores import open_store
from broker_fl.stores.sqlite import SQLiteStore

KILLS = 10

WRITER = """
import sys
from broker_fl.interfaces import StoredVersion
from broker_fl.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1], federation="f")
epoch = store.acquire_lease("writer", 600)
number = (store.versions("job") or [StoredVersion(version=-1, manifest=b"", num_chunks=0)])[-1].version + 1
print("ready", flush=True)
while True:
    chunk = b"%08d" % number * (1 << 15)
    for index in range(4):
        store.write_chunk("job", number, index, memoryview(chunk), epoch=epoch)
    store.append_events("job", [b"%d" % number], first=number + 1, epoch=epoch)
    version = StoredVersion(version=number, manifest=b"%d" % number, num_chunks=4)
    store.commit_version("job", version, b"%d" % number, epoch=epoch, keep=2)
    print(number, flush=True)
    number += 1
"""


def killed_writer(path: Path, after_s: float) -> int:
    """Let a process write until it is killed; the last version that it said was committed."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline()]
        time.sleep(after_s)
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    return max(int(line) for line in lines if line.endswith("\n"))


def test_nothing_committed_is_lost_and_nothing_half_written_is_seen_when_the_process_is_killed(
    tmp_path: Path,
) -> None:
    path, last = tmp_path / "store.db", -1
    moments = random.Random(7)
    for _ in range(KILLS):
        last = max(last, killed_writer(path, moments.uniform(0, 0.15)))
        store = SQLiteStore(path, federation="f")
        versions = store.versions("job")
        newest = versions[-1].version
        assert newest >= last
        assert [version.version for version in versions] == list(range(max(0, newest - 1), newest + 1))
        for version in versions:
            assert version.manifest == b"%d" % version.version
            for index in range(4):
                assert store.read_chunk("job", version.version, index) == b"%08d" % version.version * (
                    1 << 15
                )
        assert store.jobs() == {"job": b"%d" % newest}
        assert store.num_events("job") in (newest + 1, newest + 2)
        store.close()


def test_the_file_stops_growing_when_old_versions_are_dropped(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", federation="f")
    epoch = store.acquire_lease("a", 60) or 0
    sizes = []
    for number in range(12):
        for index in range(8):
            store.write_chunk("job", number, index, memoryview(bytes(1 << 20)), epoch=epoch)
        version = StoredVersion(version=number, manifest=b"", num_chunks=8)
        store.commit_version("job", version, b"", epoch=epoch, keep=2)
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    store.close()
    assert max(sizes) < 8 * (8 << 20)
    assert sizes[-1] <= 1.1 * max(sizes[:8])


def test_it_makes_the_folders_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "7" / "store.db"
    open_store(f"sqlite:{path}", federation="f").close()
    assert path.exists()


def test_nobody_else_on_the_machine_reads_the_models(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "store.db", federation="f")) as store:
        store.acquire_lease("a", 10)
        assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}


def test_a_store_in_memory_needs_no_file() -> None:
    store = SQLiteStore(":memory:", federation="f")
    assert store.acquire_lease("a", 10) == 1
    store.close()


def test_two_processes_may_make_one_file_at_once(tmp_path: Path) -> None:
    for attempt in range(10):
        path = tmp_path / f"{attempt}.db"
        with ThreadPoolExecutor(6) as pool:
            stores = list(pool.map(lambda _, p=path: SQLiteStore(p, federation="f"), range(6)))
        for store in stores:
            assert store.jobs() == {}
            store.close()


def test_a_file_of_another_federation_is_refused(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "store.db", federation="a").close()
    with pytest.raises(SettingError, match="holds the federation 'a', not 'b'"):
        SQLiteStore(tmp_path / "store.db", federation="b")


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(SettingError, match="another program"):
        SQLiteStore(path, federation="f")
    assert path.read_bytes() == before


def test_a_file_of_the_layout_before_is_read_and_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SQLiteStore(path, federation="f")
    epoch = store.acquire_lease("a", 10)
    assert epoch is not None
    store.save_job("job", b"state", epoch=epoch)
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE updates")
        other.execute("PRAGMA user_version = 1")
    other.close()
    for _ in range(2):
        store = SQLiteStore(path, federation="f")
        assert store.jobs() == {"job": b"state"}
        store.write_update("job", "a:1", 0, memoryview(b"piece"), epoch=epoch)
        assert store.updates("job") == ["a:1"]
        store.close()


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SQLiteStore(path, federation="f").close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(SettingError, match="layout 99"):
        SQLiteStore(path, federation="f")


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be mistaken for the beginning of one " * 9)
    before = path.read_bytes()
    with pytest.raises(SettingError, match=r"notes\.txt cannot be used as a store"):
        SQLiteStore(path, federation="f")
    assert path.read_bytes() == before


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "store.db"):
        with pytest.raises(SettingError, match="store"):
            SQLiteStore(path, federation="f")


def test_a_full_disk_changes_nothing_and_writing_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", federation="f")
    epoch = store.acquire_lease("a", 60) or 0
    store.save_job("job", b"before", epoch=epoch)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 40}")  # SQLite then says that the disk is full
    chunk = memoryview(bytes(1 << 20))
    store.write_chunk("job", 0, 0, chunk, epoch=epoch)
    with pytest.raises(StoreUnavailable, match="full"):
        store.write_chunk("job", 0, 1, chunk, epoch=epoch)
    version = StoredVersion(version=0, manifest=b"", num_chunks=2)
    with pytest.raises(StoreUnavailable, match="1 of 2 chunks"):
        store.commit_version("job", version, b"after", epoch=epoch, keep=1)
    assert store.jobs() == {"job": b"before"}
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.write_chunk("job", 0, 1, chunk, epoch=epoch)
    store.commit_version("job", version, b"after", epoch=epoch, keep=1)
    assert store.jobs() == {"job": b"after"}
    store.close()


def test_a_file_that_another_process_keeps_locked_is_unavailable(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", federation="f", busy_timeout_s=0.05)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.acquire_lease("a", 10)
    other.execute("ROLLBACK")
    other.close()
    assert store.acquire_lease("a", 10) == 1
    store.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db", federation="f")
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.jobs()


@pytest.mark.parametrize("url", ["", "store.db", "redis:", "http://host/1", "sqlite:"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="store"):
        open_store(url, federation="f")
