"""Whether a model that came fits the user's own."""

from __future__ import annotations

import numpy as np

from broker_fl.model import Array, Arrays, ModelError, ModelSpec

_SHOWN = 5


def fitting(arrays: Arrays, spec: ModelSpec, owner: str) -> dict[str, Array]:
    """``arrays`` as numpy arrays.

    Raises:
        ModelError: names, shapes or element types are not those of ``spec``; ``owner`` says whose spec it is.
    """
    given = {name: np.asarray(array) for name, array in arrays.items()}
    if problems := spec.differences(ModelSpec.of(given)):
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(f"the model does not fit this {owner}: {'; '.join(problems[:_SHOWN])}{more}")
    return given
