"""The weights of a Keras model as arrays, and back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from broker_fl.frameworks.fit import fitting
from broker_fl.frameworks.keras.backend import keras
from broker_fl.model import Array, Arrays, ModelError, ModelSpec, TensorSpec


def to_arrays(model: keras.Model, out: Arrays | None = None) -> dict[str, Array]:
    """A copy of every weight of ``model``, by a name that is the same wherever the model was built.

    With ``out``, values are written into those arrays, and they are what is returned.
    """
    if out is None:
        return {name: np.array(as_array(weight)) for name, weight in weights_of(model).items()}
    for name, weight in weights_of(model).items():
        np.copyto(out[name], as_array(weight), casting="no")
    return dict(out)


def load_arrays(model: keras.Model, arrays: Arrays) -> None:
    """Copy ``arrays`` into the weights of ``model``.

    Raises:
        ModelError: names, shapes or element types are not those of the model; nothing was changed.
    """
    weights = weights_of(model)
    expected = ModelSpec(tuple(_describe(name, weight) for name, weight in weights.items()))
    given = fitting(arrays, expected, "Keras model")
    for name, weight in weights.items():
        weight.assign(given[name])


def weights_of(model: keras.Model) -> dict[str, Any]:
    """The weights by their paths, with the numbers in automatic names counted anew.

    Keras numbers layers through the whole process: the second model that is built has ``dense_2`` where the
    first had ``dense``. Here the first at its place is always ``dense``, the next one ``dense_1``.
    """
    if not model.built:
        raise ModelError("the Keras model has no weights yet: give it an Input, or call build()")
    found: dict[str, Any] = {}
    names: dict[tuple[str, str], str] = {}
    numbers: dict[tuple[str, str], int] = {}
    for weight in model.weights:
        path = ""
        for part in weight.path.split("/"):
            if (path, part) not in names:
                base = re.sub(r"(_\d+)+$", "", part)
                number = numbers[path, base] = numbers.get((path, base), -1) + 1
                names[path, part] = f"{base}_{number}" if number else base
            path = f"{path}/{names[path, part]}" if path else names[path, part]
        while path in found:  # two weights with one path
            path += "_again"
        found[path] = weight
    return found


def _describe(name: str, weight: Any) -> TensorSpec:
    return TensorSpec(name, keras.backend.standardize_dtype(weight.dtype), tuple(weight.shape))


def as_array(weight: Any) -> Array:
    """The values of a weight, or of another variable; not to be written to."""
    return np.asarray(weight.value.numpy())
