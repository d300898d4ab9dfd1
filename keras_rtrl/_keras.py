"""The one place that decides between Keras 3 and tf-keras.

tf-keras is taken where TF_USE_LEGACY_KERAS is set, as TensorFlow itself does; else Keras 3 on its TensorFlow backend.
"""

import os

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")

if LEGACY:
    import tf_keras as keras

    # Weights keep their own dtype under mixed precision: traces must not be accumulated in float16.
    NO_AUTOCAST = {"experimental_autocast": False}
else:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"keras_rtrl needs Keras on its TensorFlow backend, and Keras runs on {keras.backend.backend()!r}: "
            "set KERAS_BACKEND=tensorflow before keras is imported."
        )
    NO_AUTOCAST = {"autocast": False}

register = keras.saving.register_keras_serializable(package="keras_rtrl")

__all__ = ["LEGACY", "NO_AUTOCAST", "keras", "register"]
