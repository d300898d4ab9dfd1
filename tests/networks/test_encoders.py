"""Encoders: shapes, scaling of images, errors."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import BoundedTensorSpec

from keras_rtrl._keras import keras
from keras_rtrl.networks import ENCODERS, make_encoder


@pytest.mark.parametrize(
    ("name", "shape", "units", "width"),
    [
        ("mlp", (5,), (7, 3), 3),
        ("mlp", (2, 3), (), 6),
        ("mlp", (), (4,), 4),
        ("nature_cnn", (84, 84, 4), None, 512),
        ("nature_cnn", (84, 84, 4), (100,), 100),
        ("impala_shallow", (64, 64, 3), None, 256),
        ("impala_deep", (84, 84, 4), None, 256),
        ("impala_deep", (64, 64, 3), (32,), 32),
        ("pooled_cnn", (64, 64, 3), None, 256),
        ("pooled_cnn", (84, 84, 4), (), 64),
    ],
)
def test_shapes(name, shape, units, width):
    dtype = tf.uint8 if len(shape) == 3 else tf.float32
    encoder = make_encoder(name, tf.TensorSpec(shape, dtype), units=units)
    y = encoder(tf.ones([2, *shape], dtype))
    assert y.shape == (2, width)
    assert y.dtype == tf.float32


def test_every_encoder_has_a_width_of_its_own():
    for name, (_, units, rank) in ENCODERS.items():
        spec = tf.TensorSpec((84, 84, 1) if rank == 3 else (4,), tf.uint8)
        assert make_encoder(name, spec)(tf.zeros([1, *spec.shape], tf.uint8)).shape == (1, units[-1])


def test_parameter_counts_are_the_papers():
    nature = make_encoder("nature_cnn", tf.TensorSpec((84, 84, 4), tf.uint8))
    nature(tf.zeros([1, 84, 84, 4], tf.uint8))
    # 8*8*4*32+32, 4*4*32*64+64, 3*3*64*64+64, 7*7*64*512+512
    assert nature.count_params() == 8224 + 32832 + 36928 + 1606144
    shallow = make_encoder("impala_shallow", tf.TensorSpec((84, 84, 4), tf.uint8))
    shallow(tf.zeros([1, 84, 84, 4], tf.uint8))
    assert shallow.count_params() == (8 * 8 * 4 * 16 + 16) + (4 * 4 * 16 * 32 + 32) + (9 * 9 * 32 * 256 + 256)
    impala = make_encoder("impala_deep", tf.TensorSpec((84, 84, 4), tf.uint8))
    impala(tf.zeros([1, 84, 84, 4], tf.uint8))
    # per section of c channels from d: 9dc+c and four of 9cc+c; then 11*11*32*256+256
    sections = sum(9 * d * c + c + 4 * (9 * c * c + c) for d, c in [(4, 16), (16, 32), (32, 32)])
    assert impala.count_params() == sections + 11 * 11 * 32 * 256 + 256


def test_a_pooled_network_sees_a_thing_alike_wherever_it_stands():
    image = np.zeros((3, 64, 64, 3), np.float32)
    thing = np.random.default_rng(0).normal(size=(6, 6, 3))
    for one, (row, column) in zip(image[:2], [(20, 20), (40, 28)], strict=True):  # further by whole strides of 4
        one[row : row + 6, column : column + 6] = thing
    pooled = make_encoder("pooled_cnn", tf.TensorSpec((64, 64, 3), tf.float32))(image).numpy()
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)
    assert np.abs(pooled[0] - pooled[2]).max() > 0.01
    flat = make_encoder("nature_cnn", tf.TensorSpec((64, 64, 3), tf.float32))(image).numpy()
    assert np.abs(flat[0] - flat[1]).max() > 0.01


def test_bytes_are_divided_by_255_and_other_dtypes_are_not():
    x = np.array([[0, 51, 255]])
    as_bytes = make_encoder("mlp", tf.TensorSpec((3,), tf.uint8), units=())(tf.constant(x, tf.uint8))
    np.testing.assert_allclose(as_bytes, [[0.0, 0.2, 1.0]], rtol=1e-6)
    as_ints = make_encoder("mlp", tf.TensorSpec((3,), tf.int64), units=())(tf.constant(x, tf.int64))
    np.testing.assert_array_equal(as_ints, x.astype(np.float32))


def test_instructions_are_read_beside_the_image():
    spec = {"rgb": tf.TensorSpec((4, 4, 3), tf.uint8), "instruction": BoundedTensorSpec((4,), tf.int32, 0, 9)}
    encoder = make_encoder("mlp", spec, units=(3,))
    words = tf.constant([[1, 0, 0, 0], [9, 0, 0, 0], [1, 9, 0, 0], [9, 1, 0, 0], [0, 0, 0, 0]])
    y = encoder({"rgb": tf.fill([5, 4, 4, 3], tf.constant(7, tf.uint8)), "instruction": words})
    assert y.shape == (5, 3 + 20)
    np.testing.assert_array_equal(y[:, :3], np.tile(y[:1, :3], (5, 1)))
    one, nine, both, swapped, none = y[:, 3:].numpy()
    assert np.abs(one - nine).max() > 0
    np.testing.assert_allclose(both, (one + nine) / 2, rtol=1e-6)
    np.testing.assert_array_equal(both, swapped)
    assert not none.any()


def test_an_observation_of_other_parts():
    with pytest.raises(ValueError, match=r"must have rgb and instruction, got \['depth', 'rgb'\]"):
        make_encoder("mlp", {"rgb": tf.TensorSpec((4, 4, 3), tf.uint8), "depth": tf.TensorSpec((4, 4), tf.uint8)})


@pytest.mark.parametrize(
    ("name", "shape", "units", "message"),
    [
        ("resnet", (5,), None, "encoder must be one of"),
        ("nature_cnn", (5,), None, "rank 3"),
        ("mlp", (5,), (0,), "encoder_units"),
        ("nature_cnn", (4, 84, 84), None, r"\[H, W, C\], the channels last, got shape \(4, 84, 84\), .* \[C, H, W\]"),
        ("impala_shallow", (3, 72, 96), None, "the channels last"),
        ("impala_deep", (1, 64, 64), None, "the channels last"),
        ("impala_deep", (12, 64, 64), None, "the channels last"),
        ("impala_deep", (16, 64, 64), None, "the channels last"),
    ],
)
def test_bad_arguments(name, shape, units, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(name, tf.TensorSpec(shape, tf.float32), units=units)


@pytest.mark.parametrize("shape", [(7, 7, 20), (5, 9, 16), (16, 16, 3), (9, 9, 40), (84, 84, 4)])
def test_grids_are_no_images_with_their_channels_first(shape):
    assert make_encoder("impala_deep", tf.TensorSpec(shape, tf.uint8))(tf.zeros((1, *shape), tf.uint8)).shape == (
        1,
        256,
    )


def test_layer_is_copied_and_sees_images_as_floats():
    given = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    one, other = (make_encoder(given, tf.TensorSpec((2, 2, 1), tf.uint8)) for _ in range(2))
    assert not given.built
    image = tf.fill([1, 2, 2, 1], tf.constant(255, tf.uint8))
    kernel, bias = one.get_weights()
    np.testing.assert_allclose(one(image), kernel.sum(0, keepdims=True) + bias, rtol=1e-6)
    assert np.any(kernel != other.get_weights()[0])


def test_layers_of_a_layer_need_not_be_registered():
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    encoder = make_encoder(keras.Sequential([Twice()]), tf.TensorSpec((2,), tf.float32))
    np.testing.assert_array_equal(encoder(tf.ones([1, 2])), [[2.0, 2.0]])


def test_layer_gets_an_observation_of_parts_as_it_is():
    class Sum(keras.layers.Layer):
        def call(self, parts):
            return tf.cast(parts["a"], tf.float32) + parts["b"]

    encoder = make_encoder(Sum(), {"a": tf.TensorSpec((2,), tf.int32), "b": tf.TensorSpec((2,), tf.float32)})
    np.testing.assert_allclose(encoder({"a": tf.ones([1, 2], tf.int32), "b": tf.ones([1, 2])}), [[2.0, 2.0]])


@pytest.mark.parametrize(
    ("encoder", "units", "says"),
    [
        (lambda: keras.layers.Dense(3), (4,), "encoder_units must be None"),
        (lambda: keras.layers.Reshape((2, 2)), None, r"must map \[N, ...\] to features \[N, D\]"),
        (lambda: keras.layers.Conv2D(3, 3), None, "does not take observations"),
        (lambda: 7, None, "encoder must be a name or a layer"),
        (lambda: "math:pi", None, "encoder must name a class or a function"),
        (lambda: "math:no", None, "encoder: cannot import 'math:no'"),
    ],
)
def test_wrong_layers(encoder, units, says):
    with pytest.raises(ValueError, match=says):
        make_encoder(encoder(), tf.TensorSpec((4,), tf.float32), units=units)


def test_a_layer_has_a_dtype_of_its_own():
    with pytest.raises(ValueError, match="encoder_dtype must be None if encoder is a layer, got 'bfloat16'"):
        make_encoder(keras.layers.Dense(3), tf.TensorSpec((4,), tf.float32), dtype="bfloat16")


IMAGES = {"rgb": tf.TensorSpec((36, 36, 3), tf.uint8), "instruction": BoundedTensorSpec((4,), tf.int32, 0, 9)}


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_bfloat16_is_near_float32_and_trains_float32_weights(name, parts):
    spec = IMAGES if parts else IMAGES["rgb"]
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, (2, 36, 36, 3)), tf.uint8)
    x = {"rgb": image, "instruction": tf.constant([[1, 2, 0, 0], [0, 0, 0, 0]])} if parts else image
    low, full = (make_encoder(name, spec, dtype=dtype) for dtype in ("bfloat16", None))
    assert (low(x).dtype, full(x).dtype) == (tf.bfloat16, tf.float32)
    low.set_weights(full.get_weights())
    np.testing.assert_allclose(tf.cast(low(x), tf.float32), full(x), atol=0.02 * float(tf.reduce_max(tf.abs(full(x)))))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(low(x))
    gradients = tape.gradient(loss, low.trainable_variables)
    assert {part.dtype for part in (*low.trainable_variables, *gradients)} <= {tf.float32}
    assert keras.mixed_precision.global_policy().name == "float32"
    keras.backend.set_floatx("float64")
    try:
        assert keras.layers.Dense(1).compute_dtype == "float64"
    finally:
        keras.backend.set_floatx("float32")
