"""What a new layer's weights are: their means and spreads, by width of input and of layer."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import layers

D, N = 60, 400
NORMAL, ZEROS = (0.0, 0.1), (0.0, 0.0)
LECUN, GLOROT = (0.0, D**-0.5), (0.0, (2 / (D + N)) ** 0.5)
WEIGHTS = {
    "EGRU": {
        "kernel": LECUN, "w_r": NORMAL, "w_z": NORMAL, "w_h": NORMAL, "b_r": ZEROS, "b_z": ZEROS, "b_h": ZEROS
    },
    "ELSTM": {
        "kernel": NORMAL, "w_f": NORMAL, "w_z": NORMAL, "b_f": (3.0, 0.1), "b_z": NORMAL, "output_kernel": GLOROT,
        "output_recurrent_kernel": (0.0, (2 / (N + N)) ** 0.5), "output_bias": ZEROS,
    },
    "LRU": {
        "kernel": (0.0, (2 * D) ** -0.5), "C_re": (0.0, (2 * N) ** -0.5), "C_im": (0.0, (2 * N) ** -0.5), "D": LECUN
    },
    "MinGRU": {"kernel": LECUN, "b_z": ZEROS, "b_h": ZEROS},
    "RTU": {"kernel": LECUN},
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_means_and_spreads(name):
    tf.random.set_seed(0)
    layer = getattr(layers, name)(N, **({"forget_bias": 3.0} if name == "ELSTM" else {}))
    layer.build((None, None, D))
    for weight, (mean, std) in WEIGHTS[name].items():
        values = np.array(getattr(layer, weight), "float64")
        sure = 5 / values.size**0.5
        np.testing.assert_allclose(values.mean(), mean, atol=sure * std, err_msg=weight)
        np.testing.assert_allclose(values.std(), std, rtol=sure, err_msg=weight)


def test_shapes_of_distributions():
    """LeCun's normal is cut off at two deviations; Glorot's is uniform."""
    tf.random.set_seed(0)
    layer, gates = layers.MinGRU(N), layers.ELSTM(N)
    layer.build((None, None, D))
    gates.build((None, None, D))
    deviation = D**-0.5 / 0.87962566
    assert 1.98 * deviation < np.abs(layer.kernel).max() <= 2.001 * deviation
    limit = (6 / (D + N)) ** 0.5
    assert 0.99 * limit < np.abs(gates.output_kernel).max() <= limit
