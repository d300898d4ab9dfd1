"""Exact real-time recurrent learning for Keras and TF-Agents.

`keras_rtrl.layers` and `keras_rtrl.cells` need TensorFlow and Keras alone. `keras_rtrl.agents`, `.networks`,
`.drivers`, `.environments` and `.train` need the extra `agents` and are imported by name.
"""

from keras_rtrl import _keras  # noqa: F401, I001  Before TensorFlow is imported: its error comes at once.
from keras_rtrl import cells, data, diagnostics, engine, export, layers, testing
from keras_rtrl.engine import native

__version__ = "0.1.0"
__all__ = ["cells", "data", "diagnostics", "engine", "export", "layers", "native", "testing"]

_RENAMED = {"callbacks": "diagnostics", "utils": "data"}


def __getattr__(name):
    hint = f": it is keras_rtrl.{_RENAMED[name]} now" if name in _RENAMED else ""
    raise AttributeError(f"module 'keras_rtrl' has no attribute {name!r}{hint}")
