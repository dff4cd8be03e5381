"""A model: ordered named arrays, and the one flat little-endian buffer that they are views of.

``spec.py`` says what a model looks like and where its tensors lie, ``model.py`` has the values; names are
imported from here.
"""

from broker_fl.model.model import Model
from broker_fl.model.spec import (
    DTYPES,
    FLOATS,
    MAX_DIMENSIONS,
    MAX_NAME_CHARS,
    Array,
    Arrays,
    ModelError,
    ModelSpec,
    Place,
    Run,
    TensorSpec,
    parts,
)

__all__ = [
    "DTYPES",
    "FLOATS",
    "MAX_DIMENSIONS",
    "MAX_NAME_CHARS",
    "Array",
    "Arrays",
    "Model",
    "ModelError",
    "ModelSpec",
    "Place",
    "Run",
    "TensorSpec",
    "parts",
]
