"""A job file: TOML with the fields of ``JobSpec``, and where the initial model comes from.

::

    name = "digits"
    parameters = { epochs = 5, learning_rate = 0.2 }

    [model]
    app = "digits.py"                 # its initial_model(); or: file = "start.safetensors"

    [protocol]
    quorum = 0.8
    deadline_s = 60.0

    [termination]
    rounds = 20

    [simulation]                      # only for broker-fl run: see world
    speeds = { name = "spread", low = 0.1, high = 1.0 }

Paths in it are relative to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, model_validator

from broker_fl.errors import SettingError
from broker_fl.job_problems import problems
from broker_fl.toml_file import read_toml
from broker_fl.wire.job import JobSpec
from broker_fl.wire.settings import Setting
from broker_fl.world import World


class ModelSource(Setting):
    """Where a job's initial model comes from: the app's ``initial_model``, or a safetensors file."""

    app: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSource:
        if (self.app is None) == (self.file is None):
            raise ValueError("give either 'app' or 'file'")
        return self


class _JobFile(JobSpec):
    """What may stand in a job file."""

    model_config = ConfigDict(title="job file")
    model: ModelSource | None = None
    simulation: World | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job file that was read. Of ``app`` and ``model_file`` one is given at most."""

    spec: JobSpec
    given: frozenset[str]
    """Dotted names of the fields that stand in the file."""
    app: str | None = None
    model_file: Path | None = None
    simulation: World | None = None
    """What the learners of a federation in one process are like."""


def read_job(path: str | Path) -> JobFile:
    """Read and check a job file.

    Raises:
        SettingError: it cannot be read, or fields of it are wrong; all of them are named.
    """
    return parse_job(read_fields(path), path)


def read_fields(path: str | Path) -> dict[str, Any]:
    """What stands in a job file, unchecked.

    Raises:
        SettingError: it cannot be read, or is not TOML.
    """
    return read_toml(Path(path), "job file")


def make_spec(fields: Mapping[str, Any], source: str) -> JobSpec:
    """A job's settings from plain values; ``source`` says in errors where they come from.

    Raises:
        SettingError: fields are wrong; all of them are named.
    """
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        raise SettingError(f"{source}: {'; '.join(problems(error, JobSpec))}") from None


def parse_job(fields: Mapping[str, Any], path: str | Path) -> JobFile:
    """Check what stands in the job file at ``path``.

    Raises:
        SettingError: fields are wrong; all of them are named.
    """
    path = Path(path)
    try:
        read = _JobFile.model_validate(fields)
    except ValidationError as error:
        raise SettingError(f"{path}: {'; '.join(problems(error, _JobFile))}") from None
    source, folder = read.model, path.parent
    return JobFile(
        spec=JobSpec.model_validate({name: getattr(read, name) for name in JobSpec.model_fields}),
        given=frozenset(_dotted(fields)),
        app=_app_beside(folder, source.app) if source and source.app else None,
        model_file=folder / source.file if source and source.file else None,
        simulation=read.simulation,
    )


def _app_beside(folder: Path, target: str) -> str:
    place, colon, factory = target.partition(":")
    return f"{folder / place}{colon}{factory}" if place.endswith(".py") or "/" in place else target


def _dotted(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in fields.items():
        names.append(prefix + key)
        if isinstance(value, Mapping):
            names += _dotted(value, f"{prefix}{key}.")
    return names
