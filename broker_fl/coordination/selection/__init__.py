"""Who takes part in a round: one file for each family of selectors."""

from __future__ import annotations

from broker_fl.coordination.selection.eligible import Eligible
from broker_fl.coordination.selection.power_of_choice import PowerOfChoice
from broker_fl.coordination.selection.rotation import Rotation
from broker_fl.coordination.selection.slow_aware import SlowAware
from broker_fl.coordination.selection.uniform import All, Random
from broker_fl.errors import AppError
from broker_fl.interfaces import Extensions, Selector
from broker_fl.wire.selectors import (
    AnySelector,
    OwnSelector,
    Selecting,
    SelectPowerOfChoice,
    SelectRandom,
    SelectRotation,
    SelectSlowAware,
)

__all__ = ["Eligible", "make_selector"]


def make_selector(
    settings: AnySelector, extensions: Extensions | None = None, *, at_least: int = 1
) -> Eligible:
    """The selector that a job's ``selector`` settings name; the user's own are among the ``extensions``.

    ``at_least`` is a round's quorum if it is a count: no learner is left out for being slow or for failing
    where the quorum could not be reached without it.

    Raises:
        AppError: it is the user's own, and there are no extensions.
    """
    if not isinstance(settings, OwnSelector):
        return Eligible(settings, _chooser(settings, at_least), at_least)
    if extensions is None:
        raise AppError(f"there is no selector {settings.selector!r}: no app file with such was given")
    return Eligible(settings, extensions.selector(settings.selector, settings.settings), at_least)


def _chooser(settings: Selecting, at_least: int) -> Selector:
    match settings:
        case SelectRandom():
            return Random(settings)
        case SelectRotation():
            return Rotation(settings)
        case SelectPowerOfChoice():
            return PowerOfChoice(settings)
        case SelectSlowAware():
            return SlowAware(settings, at_least)
        case _:
            return All()
