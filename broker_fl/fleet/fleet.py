"""What is done with a fleet: all hosts at once, and an error of one is no other's."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_fl.errors import SettingError
from broker_fl.fleet.inventory import Deployment, Host, Inventory, deployments, load, package_file
from broker_fl.fleet.remote import HostFailed, Remote, connected
from broker_fl.suggestion import expected_one_of

MAX_AT_ONCE = 32
"""Hosts."""
ANSWER_S = 60.0
INSTALL_S = 1800.0
READY_S = 30.0
"""A daemon that is not ready after that waits for its servers; it goes on doing so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one daemon."""

    name: str
    host: str
    state: str
    """``deployed``, ``unchanged``, ``running``, ``stopped``, ``ended``, ``not deployed``, ``failed``;
    ``unknown`` where its host was not reached to see or stop it.
    """
    detail: str = ""
    is_good: bool = True
    facts: dict[str, Any] = field(default_factory=dict)


OnHost = Callable[[Remote, Sequence[Deployment]], Awaitable[list[Outcome]]]


class Fleet:
    """The daemons of an inventory, or some of them."""

    def __init__(self, path: Path, only: Collection[str] = ()) -> None:
        """``only`` are names of daemons or hosts; empty: all.

        Raises:
            SettingError: the inventory is wrong, or has no such name.
        """
        self.inventory: Inventory = load(path)
        self._root = path.parent
        known = self.inventory.known_hosts
        self._known_hosts = self._root / known.expanduser() if known is not None else None
        if self._known_hosts is not None and not self._known_hosts.is_file():
            raise SettingError(f"{path}: known_hosts: there is no file {self._known_hosts}")
        self._package = package_file(self.inventory, self._root)
        self._daemons = self._chosen(deployments(self.inventory, self._root), set(only))

    def _chosen(self, found: list[Deployment], only: set[str]) -> list[Deployment]:
        names = {one.name for one in found} | self.inventory.hosts.keys()
        for name in sorted(only - names):
            raise SettingError(f"the inventory has no {name!r}: {expected_one_of(name, names)}")
        return [one for one in found if not only or {one.name, one.host} & only]

    def deploy(self) -> list[Outcome]:
        """Bring package and files to the hosts; what is there is not sent again. Nothing is started."""
        return self._on_hosts(self._deploy)

    def start(self, *, restart: bool = False) -> list[Outcome]:
        """Start what does not run; with ``restart``, those that run as they were deployed before, too."""

        async def on_host(remote: Remote, daemons: Sequence[Deployment]) -> list[Outcome]:
            return [await _guarded(one, self._start(remote, one, restart=restart)) for one in daemons]

        return self._on_hosts(on_host)

    def stop(self, timeout_s: float) -> list[Outcome]:
        """Have daemons finish and leave; those that take longer are killed."""

        async def on_host(remote: Remote, daemons: Sequence[Deployment]) -> list[Outcome]:
            return list(
                await asyncio.gather(*(_guarded(one, _stop(remote, one, timeout_s)) for one in daemons))
            )

        return self._on_hosts(on_host, unreached="unknown")

    def status(self) -> list[Outcome]:
        """What runs."""
        return self._on_hosts(_status, unreached="unknown")

    # ------------------------------------------------------------ hosts

    def _on_hosts(self, work: OnHost, unreached: str = "failed") -> list[Outcome]:
        """``unreached`` is the state of daemons whose host could not be worked on."""
        return asyncio.run(self._gather(work, unreached))

    async def _gather(self, work: OnHost, unreached: str) -> list[Outcome]:
        by_host: dict[str, list[Deployment]] = {}
        for one in self._daemons:
            by_host.setdefault(one.host, []).append(one)
        places = asyncio.Semaphore(MAX_AT_ONCE)

        async def on_host(name: str, daemons: list[Deployment]) -> list[Outcome]:
            async with places:
                try:
                    async with connected(self._host(name), self._known_hosts) as remote:
                        return await work(remote, daemons)
                except HostFailed as error:
                    return [_failed(one, error, unreached) for one in daemons]

        found = await asyncio.gather(*(on_host(name, daemons) for name, daemons in by_host.items()))
        outcomes = {outcome.name: outcome for some in found for outcome in some}
        return [outcomes[one.name] for one in self._daemons]

    def _host(self, name: str) -> Host:
        """As the inventory has it, its key's path absolute."""
        host = self.inventory.hosts[name]
        key = host.identity_file
        return host.model_copy(update={"identity_file": self._root / key.expanduser()}) if key else host

    # ------------------------------------------------------------ on one of them

    async def _deploy(self, remote: Remote, daemons: Sequence[Deployment]) -> list[Outcome]:
        told = {"venv": self._venv_key(), "daemons": [_told(one) for one in daemons]}
        found = await remote.do("look", ANSWER_S, **told)
        if not found["has_venv"]:
            await self._install(remote, found["incoming"])
        sources = {(one.name, upload.name): upload.source for one in daemons for upload in one.uploads}
        for daemon, name in found["wanted"]:
            await remote.send(sources[daemon, name], f"{found['incoming']}/{daemon}.{name}")
        placed = await remote.do("place", ANSWER_S, **told)
        return [
            Outcome(
                name=one.name,
                host=one.host,
                state="deployed" if one.name in placed["changed"] else "unchanged",
            )
            for one in daemons
        ]

    async def _install(self, remote: Remote, incoming: str) -> None:
        if self._package is not None:
            await remote.send(self._package, f"{incoming}/{self._package.name}")
        await remote.do(
            "install",
            INSTALL_S,
            venv=self._venv_key(),
            requirement=self._package.name if self._package is not None else self.inventory.package,
            is_file=self._package is not None,
            extras=list(self.inventory.extras),
            pip_options=list(self.inventory.pip_options),
        )

    def _venv_key(self) -> str:
        """Another package, another environment: daemons that run keep theirs."""
        inventory = self.inventory
        content = (
            hashlib.sha256(self._package.read_bytes()).hexdigest() if self._package else inventory.package
        )
        what = json.dumps([content, inventory.extras, inventory.pip_options])
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    async def _start(self, remote: Remote, one: Deployment, *, restart: bool) -> Outcome:
        if restart:
            (now,) = await _status(remote, [one])
            if now.facts.get("outdated"):
                await _stop(remote, one, ANSWER_S)
        answer = await remote.do("start", ANSWER_S, name=one.name, ready_s=READY_S)
        detail = f"process {answer['pid']}" + (", ran already" if answer["was_running"] else "")
        if not answer.get("is_ready", True):
            detail += ", not ready yet: it waits for its servers"
        return Outcome(name=one.name, host=one.host, state="running", detail=detail, facts=answer)


async def _stop(remote: Remote, one: Deployment, timeout_s: float) -> Outcome:
    answer = await remote.do("stop", timeout_s + ANSWER_S, name=one.name, patience_s=timeout_s)
    detail = "" if answer["was_running"] else "did not run"
    if answer.get("was_killed"):
        detail = f"killed: it had not ended after {timeout_s:g} s"
    return Outcome(name=one.name, host=one.host, state="stopped", detail=detail, facts=answer)


async def _status(remote: Remote, daemons: Sequence[Deployment]) -> list[Outcome]:
    answer = await remote.do("status", ANSWER_S, names=[one.name for one in daemons])
    return [_seen(one, answer["daemons"][one.name]) for one in daemons]


def _seen(one: Deployment, found: dict[str, Any]) -> Outcome:
    detail = str(found.get("last", ""))
    if found["state"] == "running":
        detail = f"process {found['pid']}, for {found['for_s']:.0f} s"
        if found["outdated"]:
            detail += "; was deployed anew since: start --restart"
    is_good = found["state"] == "running"
    return Outcome(
        name=one.name, host=one.host, state=found["state"], detail=detail, is_good=is_good, facts=found
    )


async def _guarded(one: Deployment, work: Awaitable[Outcome]) -> Outcome:
    try:
        return await work
    except HostFailed as error:
        return _failed(one, error)


def _failed(one: Deployment, error: HostFailed, state: str = "failed") -> Outcome:
    return Outcome(name=one.name, host=one.host, state=state, detail=str(error), is_good=False)


def _told(one: Deployment) -> dict[str, Any]:
    return {
        "name": one.name,
        "arguments": list(one.arguments),
        "environment": one.environment,
        "files": [{"name": up.name, "digest": up.digest, "mode": up.mode} for up in one.uploads],
    }
