"""Loads what test_fresh_process.py saved, in a process of its own with two virtual CPUs.

    python fresh_process.py FOLDER

FOLDER holds a folder for each layer and kind, named after both. What fails is printed as one line of JSON at the end.
"""

import json
import pathlib
import sys

import conftest  # the cell of the list's own
import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import native
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.layers import ELSTM

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def keras_file(folder, data):
    return keras.models.load_model(folder / "model.keras")(data["x"])


def weights(folder, data):
    model = keras.models.model_from_json((folder / "model.json").read_text())
    model.load_weights(folder / "model.weights.h5")
    return model(data["x"])


def saved_model(folder, data):
    if LEGACY:
        model = keras.models.load_model(folder / "model")
        assert "keras_rtrl" in type(model.layers[0]).__module__, "a stand-in was loaded in the layer's place"
        return model(data["x"])
    loaded = tf.saved_model.load(folder / "model")
    served = loaded.signatures["serving_default"]
    (name,) = served.structured_input_signature[1]
    (y,) = served(**{name: tf.constant(data["x"])}).values()
    return y


def export(folder, data):
    loaded = tf.saved_model.load(folder / "model")
    return loaded.serve(data["x"])


def mirrored(folder, data):
    """The weights after two steps, each replica with half of the streams."""
    given = {name: value for name, value in data.items() if name not in ("target", "y")}
    # The default, collective operations, takes one model a process.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        with pytest.raises(ValueError, match="stateful must be False under a strategy of 2 replicas"):
            ELSTM(3, stateful=True)(keras.Input((5, 4), batch_size=4))
        model = keras.models.load_model(folder / "model.keras")
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(tf.data.Dataset.from_tensors((given, data["target"])).repeat(2), verbose=0)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def main(root):
    native.info()  # SavedModels that hold the native op load once its library is there
    failed = {}
    for folder in sorted(root.iterdir()):
        with np.load(folder / "data.npz") as file:
            data = dict(file)
        try:
            got = globals()[folder.name.rsplit("-", 1)[1]](folder, data)
            np.testing.assert_allclose(got, data["y"], rtol=1e-5, atol=1e-6)
        except Exception as error:  # the others are still to be loaded
            failed[folder.name] = f"{type(error).__name__}: {error}"
    print(json.dumps(failed))


if __name__ == "__main__":
    assert conftest.LAYERS
    main(pathlib.Path(sys.argv[1]))
