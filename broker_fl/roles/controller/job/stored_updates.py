"""Learners' updates in the store, for a rule that needs the newest of each of them again.

One is stored under ``<learner>:<round of its task>``, which never names two that count. It is written before
the version that it is part of, and counts from the commit on: by the state that is stored together with the
version, which says the round of each learner's last update (``JobState.counted``). Then the one that it
replaces is dropped. What a crash between these steps leaves over is what the state does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from broker_fl.coordination.state import JobState, Phase
from broker_fl.errors import StoreUnavailable
from broker_fl.interfaces import Contribution
from broker_fl.model import ModelSpec
from broker_fl.roles.controller.job.versions import FORMER_CHUNK_BYTES, assemble, pieces
from broker_fl.roles.controller.services import Services


class StoredUpdates(Mapping[str, Contribution]):
    """Of one job: the newest update of each learner that is in a version, read when it is asked for.

    All that asks the store waits until it answers, and raises ``StoreUnavailable`` if the controller is
    stopped meanwhile.
    """

    def __init__(self, services: Services, state: JobState, spec: ModelSpec) -> None:
        """``state`` goes on as the job does."""
        self._services = services
        self._state = state
        self._spec = spec

    def __getitem__(self, learner: str) -> Contribution:
        name = self._newest(learner)
        return self._services.persist(lambda: self._read(learner, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.counted)

    def __len__(self) -> int:
        return len(self._state.counted)

    def _newest(self, learner: str) -> str:
        return _name(learner, self._state.counted[learner])

    def _read(self, learner: str, name: str) -> Contribution:
        store, job = self._services.store, self._state.job
        try:
            header: dict[str, Any] = msgpack.unpackb(store.read_update(job, name, 0))
            chunk_bytes = header.pop("chunk_bytes", FORMER_CHUNK_BYTES)
            model = assemble(self._spec, chunk_bytes, lambda index: store.read_update(job, name, 1 + index))
        except (KeyError, ValueError) as error:
            raise StoreUnavailable(
                f"update {name} of job {job!r} is not whole in the store: {error}"
            ) from error
        if model.digest != header.pop("digest"):
            raise StoreUnavailable(f"update {name} of job {job!r} is corrupt in the store: other digest")
        return Contribution(learner=learner, model=model, **header)

    def replace(self, updates: Sequence[Contribution], commit: Callable[[], None]) -> None:
        """Store the updates of the version that ``commit`` stores; then drop those that they replace.

        All of them are written again before ``commit`` is tried again: a store that lost power has forgotten
        those that it had taken.

        Raises:
            Fenced: another controller has taken over.
        """
        state, services = self._state, self._services
        replaced = [self._newest(update.learner) for update in updates if update.learner in self]
        cohort = state.cohort
        named = {_name(one.learner, part.round): one for one in updates if (part := cohort.get(one.learner))}

        def write() -> None:
            for name, update in named.items():
                self._write(update, name)
            commit()

        services.persist(write)
        if replaced:
            services.persist(lambda: services.store.drop_updates(state.job, replaced, epoch=services.epoch))

    def _write(self, update: Contribution, name: str) -> None:
        store, epoch = self._services.store, self._services.epoch
        chunk_bytes = store.chunk_bytes
        header = {
            "num_examples": update.num_examples,
            "num_steps": update.num_steps,
            "digest": update.model.digest,
            "chunk_bytes": chunk_bytes,
        }
        parts = [memoryview(msgpack.packb(header)), *pieces(update.model, chunk_bytes)]
        for index, part in enumerate(parts):
            store.write_update(self._state.job, name, index, part, epoch=epoch)


def drop_unneeded(services: Services, state: JobState) -> None:
    """Drop the stored updates of a job that no later version needs: all, once it has ended.

    Raises:
        Fenced: another controller has taken over.
    """
    current = {} if state.phase is Phase.ENDED else state.counted
    needed = {_name(learner, round) for learner, round in current.items()}
    stored = services.persist(lambda: services.store.updates(state.job))
    names = [name for name in stored if name not in needed]
    if names:
        services.persist(lambda: services.store.drop_updates(state.job, names, epoch=services.epoch))


def _name(learner: str, round: int) -> str:
    return f"{learner}:{round}"
