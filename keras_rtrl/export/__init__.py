"""Models without this package: SavedModels of stock TensorFlow operations that any process with TensorFlow can load.

`inference_model` answers and carries no traces. `learner` goes on learning by the exact RTRL gradient.
"""

from keras_rtrl.export.inference import inference_model
from keras_rtrl.export.learning import Learner, learner
from keras_rtrl.export.module import StatefulModule, stock_ops

__all__ = ["Learner", "StatefulModule", "inference_model", "learner", "stock_ops"]
