"""The one check that TF-Agents can be imported: it lives on tf-keras, which TensorFlow picks by a variable."""

import importlib.util
import os
import sys

# TF-Agents' metadata asks for older versions than the extra brings. Its code runs with these. It imports gym.
INSTALL = 'pip install "keras_rtrl[agents]" && pip install --no-deps tf-agents==0.19.0 gym==0.26.2'


def require_legacy_keras():
    """Raises one clear error if TF-Agents cannot work; call it before importing `tf_agents`.

    Raises:
      ImportError: if TF-Agents is not installed, if TF_USE_LEGACY_KERAS is not 1, true or True, or if it was set after
        TensorFlow had already chosen Keras 3.
    """
    if importlib.util.find_spec("tf_agents") is None:
        raise ImportError(f"TF-Agents is not installed: {INSTALL}")
    set_it = (
        "set the environment variable TF_USE_LEGACY_KERAS=1 before TensorFlow is imported: TF-Agents needs tf-keras"
    )
    value = os.environ.get("TF_USE_LEGACY_KERAS")
    if value not in ("1", "true", "True"):
        raise ImportError(f"{set_it} (TF_USE_LEGACY_KERAS is {'not set' if value is None else repr(value)}).")
    import tensorflow as tf

    version = getattr(tf.keras, "__version__", "2")  # tf-keras has none under this name
    if not version.startswith("2"):
        raise ImportError(f"{set_it} (it was set too late: tf.keras is already Keras {version}).")
    if "gym" not in sys.modules:
        sys.modules.setdefault("gym_notices", None)  # else gym prints that nobody maintains it
