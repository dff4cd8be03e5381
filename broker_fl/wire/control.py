"""SCAFFOLD's control variates on the wire: tensors ``control/<name>`` behind those of the model.

Each float tensor of the model has one, of its shape, in float64 for a float64 tensor and else in float32. In
a task they are the server's variate, in an update what changed in the learner's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker_fl.model import FLOATS, Array, Arrays, Model, ModelError, ModelSpec, TensorSpec

PREFIX = "control/"


def variate_spec(spec: ModelSpec, prefix: str = "") -> ModelSpec:
    """What a control variate of such a model looks like.

    Raises:
        ModelError: a name is too long with the prefix.
    """
    return ModelSpec(
        tuple(
            TensorSpec(prefix + one.name, "float64" if one.dtype == "float64" else "float32", one.shape)
            for one in spec.tensors
            if one.dtype in FLOATS
        )
    )


def joined_spec(spec: ModelSpec) -> ModelSpec:
    """The model's tensors, then those of its variate.

    Raises:
        ModelError: the model has a tensor that is called as those of a variate are, or a name too long.
    """
    if taken := [one.name for one in spec.tensors if one.name.startswith(PREFIX)]:
        raise ModelError(
            f"tensor {taken[0]!r}: names that begin with {PREFIX!r} are those of control variates"
        )
    return ModelSpec(spec.tensors + variate_spec(spec, PREFIX).tensors)


def joined(model: Model, variate: Arrays) -> Model:
    """Both in one; copied."""
    whole = Model.empty(joined_spec(model.spec))
    whole.buffer[: model.buffer.nbytes] = model.buffer
    for name, array in variate.items():
        whole[PREFIX + name][...] = array
    return whole


def parted(whole: Model) -> tuple[Model, dict[str, Array]]:
    """What ``joined`` was given, as views.

    Raises:
        ModelError: it is not made so.
    """
    spec = _model_part(whole.spec)
    model = Model(spec, whole.buffer[: spec.num_bytes])
    return model, {one.name: whole[PREFIX + one.name] for one in variate_spec(spec).tensors}


def zeros(spec: ModelSpec) -> Mapping[str, Array]:
    """The variate that all begin with."""
    return {
        one.name: np.zeros(one.shape, np.float64 if one.dtype == "float64" else np.float32)
        for one in variate_spec(spec).tensors
    }


def _model_part(spec: ModelSpec) -> ModelSpec:
    """The tensors before the first of a variate."""
    first = next((i for i, one in enumerate(spec.tensors) if one.name.startswith(PREFIX)), len(spec.tensors))
    model = ModelSpec(spec.tensors[:first])
    if joined_spec(model) != spec:
        raise ModelError("the tensors are not those of a model and of its control variate")
    return model
