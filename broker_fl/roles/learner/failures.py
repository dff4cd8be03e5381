"""Why a task failed, in one line that the learner's site and the job's owner can make something of."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Collection
from pathlib import Path

from broker_fl.errors import BrokerFLError
from broker_fl.record.text import count, one_line
from broker_fl.wire.fields import MAX_REASON_CHARS, text

_MAX_NAMED = 5


def describe(error: BaseException, names: Collection[str] = ()) -> str:
    """One line: type, message, and where in the user's code it was raised. Where that asked the model, whose
    tensors have these ``names``, for another one, also what there is.
    """
    said = _said_by(error)
    words = text(f"{type(error).__name__}: {said}" if said else type(error).__name__)
    if isinstance(error, BrokerFLError):
        return words[:MAX_REASON_CHARS]
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).parent != Path(__file__).parent:
        words = f"{words[:800]} ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})"
        if isinstance(error, KeyError) and _asked_model(error, frames[-1], names):
            words += text(
                f": the job's model has no such tensor, but {_some(list(names))}; the job's app and this "
                "learner's seem to differ"
            )
    return words[:MAX_REASON_CHARS]


def _said_by(error: BaseException) -> str:
    """Its message; the user's own may fail to make one."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it is, the reason of a failure is told
        return "its message cannot be made"


def _asked_model(error: KeyError, place: traceback.FrameSummary, names: Collection[str]) -> bool:
    """Whether it was the model that was asked for what it has not, as in ``model["w"]``, and not the
    parameters, or data of the user's own.

    The place says so, and not the dictionary: of a class of our own it would be no tree for JAX.
    """
    if place.colno is None or place.lineno is None or not error.args or error.args[0] in names:
        return False
    line = linecache.getline(place.filename, place.lineno).encode()
    asked = line[place.colno :].decode(errors="replace").partition("[")[0].strip()
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    held = frame.f_locals.get(asked)
    return isinstance(held, dict) and held.keys() == set(names)


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    shown = ", ".join(one_line(name, 64) for name in names[:_MAX_NAMED])
    return f"{shown} and {count(more)} more" if more > 0 else shown
