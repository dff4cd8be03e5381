"""Keras, imported; its absence or another backend is told in a sentence."""

from __future__ import annotations

import os

from broker_fl.errors import SettingError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start would fill the screen; read at import
try:
    import keras
except ModuleNotFoundError as error:
    raise SettingError("Keras or TensorFlow is not installed: pip install 'broker-fl[tensorflow]'") from error
if keras.backend.backend() != "tensorflow":
    raise SettingError(
        f"Keras uses {keras.backend.backend()} here; set the environment variable KERAS_BACKEND=tensorflow"
    )

__all__ = ["keras"]
