"""What a rule adds to training: FedProx's term and SCAFFOLD's correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from broker_fl.frameworks.keras.backend import keras
from broker_fl.frameworks.keras.weights import as_array, weights_of
from broker_fl.model import Array, Arrays


class Proximal:
    """FedProx: ``μ/2 ‖w − w_t‖²`` as a regularizer of each trained weight, beside the one it may have.

    As with every regularizer of Keras, the metric ``loss`` of training is with it; of evaluation it is
    without, since μ is 0 there. What Keras compiled before knows nothing of it and is compiled anew, once.
    """

    def __init__(self, model: keras.Model) -> None:
        self._mu = keras.Variable(0.0, trainable=False, name="proximal_mu")
        self._received = [
            # Of an array: made of the weight itself, it would be the same variable.
            (weight, keras.Variable(np.zeros(weight.shape), dtype=weight.dtype, trainable=False))
            for weight in model.trainable_variables
        ]
        for weight, received in self._received:
            weight.regularizer = self._regularizer(weight.regularizer, received)
        model.train_function = model.test_function = None

    @contextmanager
    def hold(self, mu: float) -> Iterator[None]:
        """Hold training at the weights of this moment."""
        for weight, received in self._received:
            received.assign(weight.value)
        self._mu.assign(mu)
        try:
            yield
        finally:
            self._mu.assign(0.0)

    def _regularizer(self, own: Callable[[Any], Any] | None, received: Any) -> Callable[[Any], Any]:
        def penalty(weight: Any) -> Any:
            change = keras.ops.cast(keras.ops.subtract(weight, received), "float32")
            term = self._mu * 0.5 * keras.ops.sum(keras.ops.square(change))
            return term if own is None else keras.ops.cast(own(weight), "float32") + term

        return penalty


class Control:
    """SCAFFOLD's ``c − c_k``, added to the gradients on their way into the optimizer; see ``control.py``.

    What Keras compiled before knows nothing of it and is compiled anew, once; without a job of SCAFFOLD it
    adds zeros.
    """

    def __init__(self, model: keras.Model) -> None:
        self._apply = model.optimizer.apply
        self._terms = {
            name: (_like(weight), _like(weight))
            for name, weight in weights_of(model).items()
            if weight.trainable
        }
        names = {id(weight): name for name, weight in weights_of(model).items()}
        self._names = [names[id(weight)] for weight in model.trainable_variables]
        model.optimizer.apply = self._apply_corrected
        model.train_function = None

    @contextmanager
    def correct(self, correction: Arrays) -> Iterator[None]:
        """Correct all gradients by this."""
        for name, (term, total) in self._terms.items():
            term.assign(correction[name])
            total.assign(np.zeros(total.shape))
        try:
            yield
        finally:
            for term, _ in self._terms.values():
                term.assign(np.zeros(term.shape))

    def result(self, num_batches: int) -> dict[str, Array]:
        """The mean of the gradients, as they were before."""
        return {name: as_array(total) / num_batches for name, (_, total) in self._terms.items()}

    def _apply_corrected(self, gradients: Any, variables: Any = None) -> Any:
        corrected = map(self._corrected, self._names, gradients)
        return self._apply(list(corrected), variables)

    def _corrected(self, name: str, gradient: Any) -> Any:
        if gradient is None:  # the loss does not depend on this weight
            return None
        (term, total), dense = self._terms[name], keras.ops.convert_to_tensor(gradient)
        total.assign_add(keras.ops.cast(dense, total.dtype))
        return dense + keras.ops.cast(term, dense.dtype)


def _like(weight: Any) -> Any:
    """Zeros in the type of a variate."""
    dtype = "float64" if keras.backend.standardize_dtype(weight.dtype) == "float64" else "float32"
    return keras.Variable(np.zeros(weight.shape), dtype=dtype, trainable=False)
