"""Exact real-time recurrent learning for Keras and TF-Agents.

`keras_rtrl.layers` and `keras_rtrl.cells` need TensorFlow and Keras alone. `keras_rtrl.agents`, `.networks`,
`.drivers`, `.environments` and `.train` need the extra `agents` and are imported by name.
"""

from keras_rtrl import _keras  # noqa: F401, I001  Before TensorFlow is imported: its error comes at once.
from keras_rtrl import callbacks, cells, engine, export, layers, testing, utils
from keras_rtrl.engine import native

__version__ = "0.1.0"
__all__ = ["callbacks", "cells", "engine", "export", "layers", "native", "testing", "utils"]
