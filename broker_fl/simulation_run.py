"""A user's app as a federation in this process: run a job to its end, and keep all of it in a run folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_fl.apps import App
from broker_fl.errors import BrokerFLError
from broker_fl.extensions import OwnClasses
from broker_fl.interfaces import LearnerContext
from broker_fl.model import Model
from broker_fl.record.history import History
from broker_fl.record.runfolder import RunFolder
from broker_fl.roles.driver import Job
from broker_fl.simulation import Federation
from broker_fl.simulation.fit import check_can_run, lower_min_learners, members_of
from broker_fl.wire.events import Event, JobFinished
from broker_fl.wire.job import JobSpec
from broker_fl.world import Profile, World

FEDERATION = "simulation"
Watcher = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run left."""

    folder: RunFolder
    history: History
    finished: JobFinished
    model: Model
    """The newest version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The learners of a run."""

    num_learners: int
    num_workers: int | None = None
    """How many compute at a time; None is one for each CPU."""
    world: World | None = None
    """What they are like; None: all alike, and as fast as this machine."""
    sets_min_learners: bool = False
    """Whether ``min_learners`` is no setting of the user's, and is lowered to those that can take part."""

    def ids(self) -> list[str]:
        """``learner-07``: names sort as numbers do."""
        digits = len(str(self.num_learners - 1))
        return [f"learner-{index:0{digits}d}" for index in range(self.num_learners)]

    def profiles(self) -> Mapping[str, Profile]:
        """What the world makes of each; empty without a world.

        Raises:
            SettingError: the world does not fit these learners.
        """
        return self.world.profiles(self.ids()) if self.world else {}

    def num_lasting(self) -> int:
        """How many learners are never killed; at least 1."""
        return max(1, self.num_learners - sum(bool(profile.kills) for profile in self.profiles().values()))


class AppRun:
    """One job of an app; ``stop`` may be called from another thread, or from a signal handler's."""

    def __init__(
        self,
        app: App,
        spec: JobSpec,
        *,
        team: Team,
        out: str | Path = "runs",
        initial: Model | None = None,
    ) -> None:
        """Make the app's model and learners, and the run folder; nothing runs yet.

        Raises:
            AppError: the app cannot make its initial model or a learner.
            SettingError: the run folder cannot be made, the world does not fit the learners, or they are
                fewer than the job needs.
        """
        self.app = app
        self._team = team
        self._profiles = team.profiles()
        self._own = OwnClasses.of_module(app.module, app.code)
        self._own.check(spec)
        self._initial = initial or app.initial_model()
        self._learners = {
            name: app.make(LearnerContext(learner=name, index=index, count=team.num_learners))
            for index, name in enumerate(team.ids())
        }
        self.spec = self._fitted(spec)
        self._num_workers = team.num_workers or max(1, min(team.num_learners, os.cpu_count() or 1))
        self.folder = RunFolder.create(out, spec.name)
        self._job: Job | None = None
        self._stop_reason: str | None = None
        self._lock = threading.Lock()

    def run(self, watch: Watcher, **options: Any) -> Run:
        """Run the job to its end, whatever that is; ``watch`` sees each event after it was written.

        ``options`` are further JSON values for the run folder's settings.

        Raises:
            StoreUnavailable: the disk is full.
        """
        history = History()
        if (world := self._team.world) is not None:
            options["simulation"] = world.model_dump(mode="json")
            options["learners"] = [profile.to_json() for profile in self._profiles.values()]
        self.folder.write_settings(
            self.spec,
            app=self.app.target,
            num_learners=len(self._learners),
            num_workers=self._num_workers,
            **options,
        )
        finished: JobFinished | None = None
        with self._federation() as federation, self.folder:
            job = self._begin(federation)
            for event in job.events():
                self.folder.append(event)
                history.add(event)
                watch(event)
                finished = event if isinstance(event, JobFinished) else None
            model = job.model()
        if finished is None:
            raise BrokerFLError(f"job {job.id} ended without saying so")
        self.folder.save_model(model)
        return Run(folder=self.folder, history=history, finished=finished, model=model)

    def stop(self, reason: str) -> None:
        """End the job; what it committed is kept, and ``run`` returns it."""
        with self._lock:
            self._stop_reason, job = reason, self._job
        if job is not None:
            job.stop(reason)

    def _federation(self) -> Federation:
        return Federation(
            self._learners,
            world=self._team.world,
            folder=self.folder.path,
            num_workers=self._num_workers,
            name=FEDERATION,
            own=self._own,
        )

    def _fitted(self, spec: JobSpec) -> JobSpec:
        """The job as these learners can run it; nobody else can join them."""
        members = members_of(self._learners)
        if self._team.sets_min_learners:
            spec = lower_min_learners(spec, members, self._profiles)
        check_can_run(spec, members, self._profiles)
        return spec

    def _begin(self, federation: Federation) -> Job:
        job = federation.submit(self.spec, self._initial)
        with self._lock:
            self._job, reason = job, self._stop_reason
        if reason is not None:
            job.stop(reason)
        return job
