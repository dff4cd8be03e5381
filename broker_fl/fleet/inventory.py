"""The inventory: machines, and the daemons on each.

::

    package = "dist/broker_fl-0.1.0-py3-none-any.whl"   # a file, or what pip finds: "broker-fl[torch]==0.1.0"
    known_hosts = "known_hosts"                         # default: OpenSSH's own

    [hosts.ops]
    address = "ops.example.org"
    user = "fl"

    [hosts.a]
    address = "10.0.0.7"
    environment = { OMP_NUM_THREADS = "4" }

    [controllers.main]
    host = "ops"
    config = "controller.toml"                          # with the URLs; readable by its owner only

    [learners.hospital-a]
    host = "a"
    app = "app.py:make_learner"
    files = ["reading.py"]
    join = "hospital-a.join"

Paths are relative to the inventory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker_fl.errors import SettingError
from broker_fl.job_problems import what_is_allowed
from broker_fl.suggestion import expected_one_of
from broker_fl.toml_file import read_toml
from broker_fl.wire.fields import Identifier
from broker_fl.wire.frames import brief

Port = Annotated[int, Field(gt=0, lt=65_536)]
Variables = dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]


_WITH_LOGIN = re.compile(r"\w://[^\s/@]*:[^\s/@]+@|https?://[^\s/?#]+@")
"""A URL with a password, or of HTTP with a user, which is often a token."""
_IS_READ = (
    "a URL with a password is in it, and everybody on that machine can read a command line; a login of a "
    "package index belongs into ~/.netrc or ~/.config/pip/pip.conf there (mode 0600), a daemon's into its "
    "join file or its settings file (config)"
)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(_Table):
    """A machine that SSH reaches."""

    address: str
    """A name or a number, or an alias in OpenSSH's configuration."""
    user: str | None = None
    port: Port | None = None
    identity_file: Path | None = None
    """The private key; None: those of the agent, and of OpenSSH's defaults."""
    python: str = "python3"
    """3.11 or newer; makes the virtual environment."""
    folder: str = "broker-fl"
    """For all that is deployed; relative to the user's home."""
    environment: Variables = {}
    """Of all daemons on it."""


class Daemon(_Table):
    """A controller or a learner on a host."""

    host: str
    join: Path | None = None
    """The join file, which names a learner, too."""
    config: Path | None = None
    """Its settings file."""
    arguments: tuple[str, ...] = ()
    """More of them, as on the command line; nothing secret, which every user of the machine could read."""
    environment: Variables = {}
    files: tuple[Path, ...] = ()
    """To lie beside the app."""


class ControllerDaemon(Daemon):
    """A controller."""

    app: Path | None = None
    """With the rules and selectors of jobs, as of ``--app``."""


class LearnerDaemon(Daemon):
    """A learner, or several in one process."""

    app: str
    """``FILE.py``, ``FILE.py:FACTORY``, or a module that is installed there."""
    id: Identifier | None = None
    """None: that of the join file, or else the daemon's name in the inventory."""

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if self.id is not None and self.join is not None:
            raise ValueError("the join file names the learner: leave out id")
        return self


class Inventory(_Table):
    """All of it."""

    package: str
    """A wheel or an archive of the source, or a requirement for pip."""
    extras: tuple[str, ...] = ()
    """Of a file; a requirement names its own."""
    pip_options: tuple[str, ...] = ()
    """Nothing secret, as in a daemon's ``arguments``: both are command lines there."""
    known_hosts: Path | None = None
    """None: OpenSSH's own file. A host whose key is not in it is refused."""
    hosts: dict[Identifier, Host]
    controllers: dict[Identifier, ControllerDaemon] = {}
    learners: dict[Identifier, LearnerDaemon] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, daemon in self.daemons():
            if daemon.host not in self.hosts:
                raise ValueError(_no_host(name, daemon.host, self.hosts))
        texts = {"package": (self.package,), "pip_options": self.pip_options}
        texts |= {f"arguments of {name}": daemon.arguments for name, daemon in self.daemons()}
        for what, words in texts.items():
            if any(_WITH_LOGIN.search(word) for word in words):
                raise ValueError(f"{what}: {_IS_READ}")
        if both := self.controllers.keys() & self.learners.keys():
            raise ValueError(f"a controller and a learner have the same name: {', '.join(sorted(both))}")
        return self

    def daemons(self) -> Iterator[tuple[str, ControllerDaemon | LearnerDaemon]]:
        """By name, controllers first."""
        yield from self.controllers.items()
        yield from self.learners.items()


class Upload(_Table):
    """A file of a daemon."""

    name: str
    source: Path
    mode: int = 0o644

    @property
    def digest(self) -> str:
        """SHA-256."""
        return hashlib.sha256(self.source.read_bytes()).hexdigest()


class Deployment(_Table):
    """What a daemon needs on its host."""

    name: str
    host: str
    arguments: tuple[str, ...]
    """Of ``broker-fl``; files by the names that they have there."""
    environment: dict[str, str]
    uploads: tuple[Upload, ...]


def load(path: Path) -> Inventory:
    """Read an inventory; paths in it are absolute from then on.

    Raises:
        SettingError: it cannot be read, or something in it is wrong.
    """
    data = read_toml(path, "inventory")
    try:
        inventory = Inventory.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_words(one) for one in found]
        if all(one["loc"] for one in found):  # else the tables as a whole were looked at, too
            problems += _unknown_hosts(data)
        raise SettingError(f"{path}: {'; '.join(problems[:5])}") from error
    return inventory


def _words(problem: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return f"{place} is missing"
        case "extra_forbidden":
            return f"{place}: unknown setting: {_meant(problem['loc'])}"
        case "value_error":
            text = str(problem["ctx"]["error"])
            return f"{place}: {text}" if place else text
    return f"{place} = {brief(problem['input'])} is not allowed: it must be {what_is_allowed(problem)}"


def _meant(place: tuple[int | str, ...]) -> str:
    tables: dict[str, type[_Table]] = {
        "hosts": Host,
        "controllers": ControllerDaemon,
        "learners": LearnerDaemon,
    }
    table = tables.get(str(place[0]), Inventory) if len(place) > 1 else Inventory
    return expected_one_of(str(place[-1]), table.model_fields)


def _unknown_hosts(data: Mapping[str, Any]) -> list[str]:
    """As ``Inventory`` says it, of tables that have other faults, too."""
    tables = [data.get(kind) for kind in ("controllers", "learners")]
    daemons = [pair for table in tables if isinstance(table, Mapping) for pair in table.items()]
    hosts = data.get("hosts")
    if not isinstance(hosts, Mapping):
        return []
    wanted = [(name, one.get("host")) for name, one in daemons if isinstance(one, Mapping)]
    unknown = [(name, host) for name, host in wanted if isinstance(host, str) and host not in hosts]
    return [_no_host(name, host, hosts) for name, host in unknown]


def _no_host(name: str, host: str, hosts: Iterable[str]) -> str:
    return f"{name}: there is no host {host!r}; there are: {', '.join(hosts)}"


def package_file(inventory: Inventory, root: Path) -> Path | None:
    """The package, if it is a file; None if pip is to find it.

    Raises:
        SettingError: it should be a file, and is none.
    """
    path = root / inventory.package
    if path.is_file():
        return path
    if inventory.package.endswith((".whl", ".tar.gz", ".zip")):
        raise SettingError(f"package: there is no file {path}; make it with: python -m build")
    return None


def deployments(inventory: Inventory, root: Path) -> list[Deployment]:
    """What goes where; ``root`` is where the inventory lies.

    Raises:
        SettingError: a file is not there, or two of a daemon have one name.
    """
    return [_deployment(name, daemon, inventory, root) for name, daemon in inventory.daemons()]


class _Files:
    """The files of one daemon, as they are collected."""

    def __init__(self, daemon: str, root: Path) -> None:
        self._daemon = daemon
        self._root = root
        self.uploads: dict[str, Upload] = {}

    def put(self, path: Path, *, is_secret: bool = False) -> str:
        """Take a file along; its name there."""
        source = self._root / path.expanduser()
        if not source.is_file():
            raise SettingError(f"{self._daemon}: there is no file {source}")
        if source.name in self.uploads:
            raise SettingError(f"{self._daemon}: two of its files are named {source.name!r}")
        mode = 0o600 if is_secret else 0o644
        self.uploads[source.name] = Upload(name=source.name, source=source, mode=mode)
        return source.name


def _deployment(
    name: str, daemon: ControllerDaemon | LearnerDaemon, inventory: Inventory, root: Path
) -> Deployment:
    files = _Files(name, root)
    arguments = (
        _learner(name, daemon, files) if isinstance(daemon, LearnerDaemon) else _controller(daemon, files)
    )
    if daemon.join is not None:
        arguments += ["--join", files.put(daemon.join, is_secret=True)]
    if daemon.config is not None:
        arguments += ["--config", files.put(daemon.config, is_secret=True)]
    for path in daemon.files:
        files.put(path)
    return Deployment(
        name=name,
        host=daemon.host,
        arguments=(*arguments, *daemon.arguments),
        environment={**inventory.hosts[daemon.host].environment, **daemon.environment},
        uploads=tuple(files.uploads.values()),
    )


def _controller(daemon: ControllerDaemon, files: _Files) -> list[str]:
    return ["controller"] if daemon.app is None else ["controller", "--app", files.put(daemon.app)]


def _learner(name: str, daemon: LearnerDaemon, files: _Files) -> list[str]:
    file, colon, factory = daemon.app.partition(":")
    arguments = [
        "learner",
        f"{files.put(Path(file))}{colon}{factory}" if file.endswith(".py") else daemon.app,
    ]
    if daemon.join is None:
        arguments += ["--id", daemon.id or name]
    return arguments
