"""A job's tasks on their way to the sender, with the version that they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from broker_fl.aggregation.scaffold import Variates
from broker_fl.coordination import signals as s
from broker_fl.coordination.state import JobState
from broker_fl.errors import SettingError
from broker_fl.model import ModelSpec
from broker_fl.roles.controller.job.cache import VersionCache, lets_go
from broker_fl.roles.controller.job.outgoing import OutgoingTasks
from broker_fl.roles.controller.services import Services
from broker_fl.wire.events import Event
from broker_fl.wire.rules import Scaffold


class Sending:
    """Of one job; ``name in sending``: a task is on its way out to this learner or group."""

    def __init__(
        self,
        state: JobState,
        spec: ModelSpec,
        services: Services,
        cache: VersionCache,
        emit: Callable[[Event], None],
        signal: Callable[[s.Signal], None],
    ) -> None:
        """``state`` goes on as the job does; ``signal`` tells the job what cannot be sent."""
        self._state = state
        self._spec = spec
        self._services = services
        self._cache = cache
        self._emit = emit
        self._signal = signal
        self._lets_go = lets_go(state.spec, spec)
        self._addressees: Counter[str] = Counter()
        """To whom tasks are on their way, and how many are."""

    def __contains__(self, name: object) -> bool:
        return name in self._addressees

    def send(self, action: s.SendTasks) -> None:
        """Hand task and model to the sender; how long that took comes back as an event.

        Raises:
            VersionsLost: the store has the version no more.
        """
        model = self._cache.model(action.version)
        outgoing = self._outgoing(action)
        addressees = (*action.learners, *action.groups)
        self._addressees.update(addressees)

        def publish() -> None:
            try:
                for event in outgoing.publish(action, model):
                    self._services.post(partial(self._emit, event))
            except SettingError as error:
                self._services.post(
                    partial(self._signal, s.CannotGoOn(f"round {action.task.round + 1}: {error}"))
                )
            finally:
                self._services.post(lambda: self._sent(addressees))

        self._services.bulk_sender.post(publish)
        if self._lets_go:
            self._cache.let_go(action.version, model)

    def _outgoing(self, action: s.SendTasks) -> OutgoingTasks:
        settings, counted = self._state.spec, self._state.counted
        has_control = isinstance(settings.rule, Scaffold) and action.train
        has_residuals = settings.has_residuals and action.train
        return OutgoingTasks(
            self._services,
            settings,
            self._state.driver,
            settings.form,
            self._services.members.compact(action.learners),
            self._emit,
            Variates.of(self._cache.memory(action.version), self._spec) if has_control else None,
            {one: counted.get(one, -1) for one in action.learners} if has_residuals else None,
        )

    def _sent(self, addressees: tuple[str, ...]) -> None:
        self._addressees.subtract(addressees)
        for name in addressees:
            if self._addressees[name] <= 0:
                del self._addressees[name]
