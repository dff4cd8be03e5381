"""Keras 3 on TensorFlow: a learner made of a compiled model and data; the two conversions, for other loops.

A model here is ``model.weights``, so that the moving statistics of batch normalisation travel with the rest.
"""

from broker_fl.frameworks.keras.feed import DEFAULT_BATCH_SIZE, Data
from broker_fl.frameworks.keras.learner import KerasLearner
from broker_fl.frameworks.keras.weights import load_arrays, to_arrays

__all__ = ["DEFAULT_BATCH_SIZE", "Data", "KerasLearner", "load_arrays", "to_arrays"]
