"""The base of all events, and what several of them have."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field

from broker_fl.wire.fields import Count, Identifier, Seconds
from broker_fl.wire.messages import Message

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Event(Message):
    """Base of all events."""

    job: Identifier
    sequence: Count = 0
    """1, 2, … within the job; given when the event is stored."""
    time_s: Seconds = 0.0

    def stamped(self, sequence: int, time_s: float) -> Self:
        """The same event with its number and time."""
        return self.model_copy(update={"sequence": sequence, "time_s": time_s})

    def to_json(self) -> str:
        """One line of a JSONL log; NaN and infinity are written as null."""
        return f'{{"kind":"{self.KIND}",{self.model_dump_json()[1:]}'


def counted(fields: Any, column: str) -> Any:
    """Fill in ``num_learners`` before the list of them, ``column``, is cut."""
    if isinstance(fields, dict) and isinstance(ids := fields.get(column), tuple | list):
        return {"num_learners": len(ids), **fields}
    return fields
