"""The run folder: whole files, a log that survives a kill and a full disk."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from broker_fl.errors import SettingError, StoreUnavailable
from broker_fl.model import Model
from broker_fl.record.runfolder import EVENTS, RunFolder
from broker_fl.wire.job import JobSpec
from tests.unit.record.events import fake_events

ALL = fake_events(num_learners=3, num_rounds=2)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "digits")


def write(folder: RunFolder) -> None:
    with folder:
        append_all(folder)


def append_all(folder: RunFolder) -> None:
    for event in ALL:
        folder.append(event)


def test_two_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, "digits").name for _ in range(3)]
    assert len(set(names)) == 3
    assert all("-digits" in name for name in names)


def test_what_was_written_is_read(folder: RunFolder) -> None:
    write(folder)
    again = RunFolder.open(folder.path)
    assert list(again.events()) == ALL
    assert again.history().state == "done"


def test_an_event_is_in_the_file_at_once(folder: RunFolder) -> None:
    folder.append(ALL[0])
    assert list(RunFolder.open(folder.path).events()) == ALL[:1]
    folder.close()


def test_a_truncated_last_line_is_skipped_with_a_warning(
    folder: RunFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(folder)
    log = folder.path / EVENTS
    log.write_bytes(log.read_bytes()[:-20])
    assert list(folder.events()) == ALL[:-1]
    assert f"line {len(ALL)} is cut off" in caplog.text


def test_a_log_that_was_cut_can_be_appended_to(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    write(folder)
    log = folder.path / EVENTS
    log.write_bytes(log.read_bytes()[:-20])
    with RunFolder.open(folder.path) as again:
        again.append(ALL[-1])
    assert list(folder.events()) == ALL


@pytest.mark.parametrize(
    "line",
    [b'{"kind":"from_the_future"}', b"\xff\xfe", b"[]", b'{"kind":"job_resumed","job":"j"}', b""],
)
def test_a_line_that_is_no_event_costs_only_itself(
    folder: RunFolder,
    line: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with folder:
        folder.append(ALL[0])
        with (folder.path / EVENTS).open("ab") as log:
            log.write(line + b"\n")
        folder.append(ALL[1])
    assert list(folder.events()) == ALL[:2]
    assert "line 2 is no event and was skipped" in caplog.text


def test_events_of_several_threads_do_not_mix(folder: RunFolder) -> None:
    threads = [threading.Thread(target=append_all, args=(folder,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    folder.close()
    assert len(list(folder.events())) == 4 * len(ALL)


def test_settings_say_what_ran_where(folder: RunFolder) -> None:
    folder.write_settings(JobSpec(name="digits"), app="my_app.py:make", num_learners=5, seed=7)
    settings = folder.settings()
    assert settings["job"]["name"] == "digits"
    assert (settings["app"], settings["num_learners"], settings["seed"]) == ("my_app.py:make", 5, 7)
    assert settings["software"]["numpy"] == np.__version__
    assert settings["machine"]["num_cpus"] >= 1


def test_a_run_without_settings_has_none(folder: RunFolder) -> None:
    assert folder.settings() == {}


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_damaged_settings_are_named(folder: RunFolder, text: str) -> None:
    (folder.path / "settings.json").write_text(text)
    with pytest.raises(SettingError, match=r"settings\.json"):
        folder.settings()


def test_the_model_is_read_as_it_was_saved(folder: RunFolder) -> None:
    model = Model.of({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2)})
    folder.save_model(model)
    assert folder.model().digest == model.digest


def test_a_folder_without_a_log_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no run folder"):
        RunFolder.open(tmp_path)


def test_a_base_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(SettingError, match="cannot be made"):
        RunFolder.create(tmp_path / "runs", "digits")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from broker_fl.errors import BrokerFLError
from broker_fl.model import Model
from broker_fl.record.runfolder import RunFolder
from tests.unit.record.events import fake_events

folder = RunFolder.open(sys.argv[1])
folder.write_text("settings.json", '{"old": true}')
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
written, refused = 0, 0
for event in fake_events(num_learners=3, num_rounds=2) * 2:
    try:
        folder.append(event)
        written += 1
    except BrokerFLError as error:
        refused += 1
        assert "events.jsonl cannot be written" in str(error), error
for write in (lambda: folder.write_text("settings.json", "x" * 9000),
              lambda: folder.save_model(Model.of({"w": np.zeros(9000)}))):
    try:
        write()
    except BrokerFLError as error:
        assert "cannot be written" in str(error), error
        refused += 1000
print(written, refused)
"""


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(folder: RunFolder) -> None:
    # A limit on file sizes makes the kernel refuse a write as a full disk does: after taking a part.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    written, refused = map(int, done.stdout.split())
    assert 0 < written < 2 * len(ALL)
    assert refused == 2 * len(ALL) - written + 2000
    assert len(list(folder.events())) == written
    assert folder.settings() == {"old": True}
    assert not list(folder.path.glob("*.part"))
    assert not (folder.path / "model.safetensors").exists()


KILLED = """
import itertools, sys
from broker_fl.record.runfolder import RunFolder
from tests.unit.record.events import fake_events

folder = RunFolder.open(sys.argv[1])
for number, event in enumerate(itertools.cycle(fake_events(num_learners=3, num_rounds=2)), start=1):
    folder.append(event)
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_event_that_it_wrote(
    folder: RunFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder.path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) == 50:
                process.send_signal(signal.SIGKILL)
                break
        rest = process.stdout.read().splitlines()
    said = int(rest[-1]) if rest and rest[-1].isdigit() else 50
    assert len(list(folder.events())) >= said


def test_a_disk_that_cannot_be_written_is_worth_another_try(folder: RunFolder) -> None:
    (folder.path / EVENTS).unlink()
    (folder.path / EVENTS).symlink_to("/dev/full")
    with pytest.raises(StoreUnavailable, match="No space left"):
        folder.append(ALL[0])


def test_settings_are_plain_json(folder: RunFolder) -> None:
    folder.write_settings(JobSpec())
    assert json.loads((folder.path / "settings.json").read_text())["job"]["termination"]["rounds"] == 10
