"""Adapters that make a ``Learner`` of what the user has.

Two functions; a PyTorch module, a Keras model, a scikit-learn estimator, a JAX pytree, XGBoost's trees.
Importing this package imports no framework: each has a module of its own.
"""

from broker_fl.frameworks.control import ControlVariate
from broker_fl.frameworks.functions import FunctionLearner
from broker_fl.frameworks.local import LocalTask, train_alone
from broker_fl.frameworks.proximal import ProximalTerm

__all__ = ["ControlVariate", "FunctionLearner", "LocalTask", "ProximalTerm", "train_alone"]
