"""A run's folder: its events as they happen, its settings, its final model, its report.

======================  ==============================================================================
``events.jsonl``        one event a line, written as it happens; a kill loses at most the line it cuts
``settings.json``       the job, the app, the learners, versions of software, the machine
``model.safetensors``   the final model
``report.html``         the report page
======================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from broker_fl.errors import FrameRefused, SettingError, StoreUnavailable
from broker_fl.model import Model
from broker_fl.record.closing import Closing
from broker_fl.record.history import History
from broker_fl.wire.events import Event, event_from_json
from broker_fl.wire.job import JobSpec

log = logging.getLogger(__name__)

EVENTS = "events.jsonl"
SETTINGS = "settings.json"
MODEL = "model.safetensors"
REPORT = "report.html"
_SHOWN_VERSIONS = (
    "broker-fl",
    "numpy",
    "numexpr",
    "msgpack",
    "pydantic",
    "pika",
    "redis",
    "torch",
    "tensorflow",
    "scikit-learn",
)


class RunFolder(Closing):
    """One run on disk. Make it with ``create`` or ``open``; ``append`` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._events: int | None = None

    @classmethod
    def create(cls, base: str | Path, name: str) -> Self:
        """Make ``base/<UTC time>-<name>``, with ``-2``, ``-3``, … where that is taken.

        Raises:
            SettingError: the folder cannot be made.
        """
        stem = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{name}"
        try:
            Path(base).mkdir(parents=True, exist_ok=True)
            return cls(_new_folder(Path(base), stem))
        except OSError as error:
            raise SettingError(f"the run folder {Path(base) / stem} cannot be made: {_why(error)}") from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run.

        Raises:
            SettingError: there is no run in that folder.
        """
        if not (Path(path) / EVENTS).is_file():
            raise SettingError(f"{path} is no run folder: there is no {EVENTS} in it")
        return cls(Path(path))

    @property
    def name(self) -> str:
        """Of the folder; runs are told apart by it."""
        return self.path.resolve().name

    # ------------------------------------------------------------ writing

    def append(self, event: Event) -> None:
        """Write one event; when this returns, a kill of the process does not lose it.

        Raises:
            StoreUnavailable: the disk is full or cannot be written; nothing of the event is in the file.
        """
        line = event.to_json().encode() + b"\n"
        with self._lock:
            try:
                self._events = _open_log(self.path / EVENTS) if self._events is None else self._events
                _write_whole(self._events, line)
            except OSError as error:
                raise StoreUnavailable(f"{self.path / EVENTS} cannot be written: {_why(error)}") from error

    def write_settings(
        self,
        job: JobSpec,
        *,
        app: str = "",
        num_learners: int = 0,
        **options: object,
    ) -> None:
        """Write ``settings.json``: what this run is, where it runs and on which software.

        ``options`` are JSON values.

        Raises:
            StoreUnavailable: the disk is full or cannot be written; an older file stays as it was.
        """
        settings = {
            "job": job.model_dump(mode="json"),
            "app": app,
            "num_learners": num_learners,
            **options,
            "software": software(),
            "machine": machine(),
        }
        self.write_text(SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def save_model(self, model: Model) -> Path:
        """Write ``model.safetensors``, whole or not at all, and give its path.

        Raises:
            SettingError: the disk is full or cannot be written; an older file stays as it was.
        """
        path = self.path / MODEL
        model.save(path)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file, or nothing.

        Raises:
            StoreUnavailable: the disk is full or cannot be written; an older file stays as it was.
        """
        path = self.path / name
        write_whole(path, text.encode("utf-8", "replace"))
        return path

    def close(self) -> None:
        """Close the log; ``append`` opens it again."""
        with self._lock:
            if self._events is not None:
                os.close(self._events)
                self._events = None

    # ------------------------------------------------------------ reading

    def events(self) -> Iterator[Event]:
        """The events in the log, in its order; a line that is cut or unknown is skipped with a warning.

        Raises:
            SettingError: the log cannot be read.
        """
        path = self.path / EVENTS
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if (event := _read(path, number, line)) is not None:
                        yield event
        except OSError as error:
            raise SettingError(f"{path} cannot be read: {_why(error)}") from error

    def history(self) -> History:
        """What happened, folded from the log.

        Raises:
            SettingError: the log cannot be read.
        """
        return History.of(self.events())

    def settings(self) -> dict[str, Any]:
        """What ``write_settings`` wrote; empty if it was not called.

        Raises:
            SettingError: the file cannot be read or is no JSON object.
        """
        path = self.path / SETTINGS
        try:
            settings = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingError(f"{path} cannot be read: {_why(error)}") from error
        if not isinstance(settings, dict):
            raise SettingError(f"{path} must hold a JSON object, not {type(settings).__name__}")
        return settings

    def model(self) -> Model:
        """The final model.

        Raises:
            SettingError: there is none, or it is no model file.
        """
        return Model.load(self.path / MODEL)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it: the name always stands for a whole file.

    Raises:
        StoreUnavailable: the disk is full or cannot be written; an older file stays as it was.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine may leave the new name on an empty file
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreUnavailable(f"{path} cannot be written: {_why(error)}") from error


def software() -> dict[str, str]:
    """Versions of what results may depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _SHOWN_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "num_cpus": os.cpu_count() or 0,
    }


def _new_folder(base: Path, stem: str) -> Path:
    number = 1
    while True:
        path = base / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            (path / EVENTS).touch()
            return path


def _open_log(path: Path) -> int:
    """The log, ready to be appended to: after a line that was cut, on a line of its own."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    end = os.fstat(handle).st_size
    if end and os.pread(handle, 1, end - 1) != b"\n":
        _write_whole(handle, b"\n")
    return handle


def _write_whole(handle: int, line: bytes) -> None:
    """Append all of ``line``, or leave the file as it was."""
    before = os.fstat(handle).st_size
    try:
        rest = memoryview(line)
        while rest:  # a disk that fills up takes a part first, and says so at the next call
            rest = rest[os.write(handle, rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            os.ftruncate(handle, before)
        raise


def _read(path: Path, number: int, line: bytes) -> Event | None:
    try:
        return event_from_json(line.decode())
    except (FrameRefused, ValueError) as error:
        cut = "is cut off" if not line.endswith(b"\n") else "is no event"
        log.warning("%s: line %d %s and was skipped (%s)", path, number, cut, error)
        return None


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
