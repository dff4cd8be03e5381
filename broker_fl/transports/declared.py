"""What a transport has declared, so that it can declare it again."""

from __future__ import annotations

from broker_fl.topology import Binding, Entity, Queue


class Declared:
    """Entities in the order in which they were first declared."""

    def __init__(self) -> None:
        self._entities: dict[Entity, None] = {}
        self._of_queue: dict[str, dict[Entity, None]] = {}

    def remember(self, entity: Entity) -> None:
        self._entities[entity] = None
        if (queue := _queue_name(entity)) is not None:
            self._of_queue.setdefault(queue, {})[entity] = None

    def forget_queue(self, name: str) -> None:
        for entity in self._of_queue.pop(name, ()):
            del self._entities[entity]

    def forget_exchange(self, name: str) -> None:
        """And its bindings."""
        of_it = [
            entity
            for entity in self._entities
            if not isinstance(entity, Queue)
            and (entity.exchange if isinstance(entity, Binding) else entity.name) == name
        ]
        for entity in of_it:
            del self._entities[entity]
            if isinstance(entity, Binding):
                del self._of_queue[entity.queue][entity]

    def everything(self) -> list[Entity]:
        return list(self._entities)

    def of_queue(self, name: str) -> list[Entity]:
        """The queue and its bindings."""
        return list(self._of_queue.get(name, ()))

    def is_quorum(self, queue: str) -> bool:
        """Whether it was declared here as a quorum queue."""
        return any(isinstance(entity, Queue) and entity.quorum for entity in self._of_queue.get(queue, ()))

    def names_exchange(self, name: str) -> bool:
        return any(
            not isinstance(entity, Queue | Binding) and entity.name == name for entity in self._entities
        )


def _queue_name(entity: Entity) -> str | None:
    if isinstance(entity, Queue):
        return entity.name
    return entity.queue if isinstance(entity, Binding) else None
