"""The one place that decides between Keras 3 and tf-keras.

tf-keras if TF_USE_LEGACY_KERAS is set, the rule of TensorFlow itself; else Keras 3 on its TensorFlow backend.
"""

import os
import sys

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")

if LEGACY:
    try:
        import tf_keras as keras
    except ModuleNotFoundError as error:
        if error.name != "tf_keras":
            raise
        raise ImportError(
            "TF_USE_LEGACY_KERAS is set and tf-keras is not installed: unset it for Keras 3, or "
            'pip install "keras_rtrl[agents]".'
        ) from None

    # Weights keep their own dtype under mixed precision: traces must not be accumulated in float16.
    NO_AUTOCAST = {"experimental_autocast": False}
else:
    _NEEDED = (
        "keras_rtrl needs Keras on its TensorFlow backend, and Keras {}: set the environment variable "
        "KERAS_BACKEND=tensorflow before keras is imported."
    )
    # Checked first: with another backend Keras may fail obscurely, for example if that backend's package is missing.
    _backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if "keras" in sys.modules or _backend == "tensorflow":
        try:
            import keras
        except (ImportError, ValueError) as error:  # ~/.keras/keras.json may name another backend
            raise ImportError(_NEEDED.format(f"cannot be imported ({error})")) from error
        _backend = keras.backend.backend()
    if _backend != "tensorflow":
        raise ImportError(_NEEDED.format(f"runs on {_backend!r}"))
    NO_AUTOCAST = {"autocast": False}

register = keras.saving.register_keras_serializable(package="keras_rtrl")


def deserialize(config, custom_objects=None):
    """The object of a config made by `keras.saving.serialize_keras_object`.

    It also works while tf-keras loads an HDF5 file or a SavedModel: there tf-keras looks for bare class names, under
    which nothing is registered.
    """
    if LEGACY:
        known = keras.saving.get_registered_object(config.get("registered_name"), custom_objects)
        if known is not None:
            return known.from_config(config["config"])
        if hasattr(keras.layers, config["class_name"]):
            return keras.layers.deserialize({name: config[name] for name in ("class_name", "config")}, custom_objects)
    return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)


__all__ = ["LEGACY", "NO_AUTOCAST", "deserialize", "keras", "register"]
