"""Encoders: Keras layers from raw observations [N, ...] to feature vectors [N, D].

An encoder of this package is one function in `ENCODERS` from the widths of its dense layers to a list of layers.
"""

import contextlib
from collections.abc import Sequence

import tensorflow as tf

from keras_rtrl._checks import one_of, shown, widths
from keras_rtrl._errors import one_line
from keras_rtrl._keras import keras, register
from keras_rtrl.networks.parts import copy_of, is_named, made_by_name

layers = keras.layers


def to_floats(observation, dtype=None):
    """uint8 to `dtype` (None: floatx) in [0, 1], divided by 255; any other dtype with values unchanged."""
    scale = 1.0 / 255.0 if observation.dtype == tf.uint8 else 1.0
    return tf.cast(observation, dtype or keras.backend.floatx()) * scale


@register  # as networks are pickled
class _ToFloat(layers.Layer):
    """`to_floats` as a layer."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, observation):
        return to_floats(observation, self.compute_dtype)


class _WithInstruction(layers.Layer):
    """Features of an image, and the mean of the embeddings, 20 wide, of an instruction's words.

    {"rgb": [N, H, W, C], "instruction": word ids [N, L], 0 for none} -> [N, D + 20]. The order of the words is lost;
    Espeholt et al. 2018 read them by an LSTM.
    """

    def __init__(self, encoder, word_ids, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.encoder = encoder
        self.embedding = layers.Embedding(word_ids, 20)

    def call(self, observation):
        words = observation["instruction"]
        given = tf.cast(words > 0, self.compute_dtype)[..., tf.newaxis]
        embedded = tf.reduce_sum(self.embedding(words) * given, axis=1)
        mean = tf.math.divide_no_nan(embedded, tf.reduce_sum(given, axis=1))
        return tf.concat([self.encoder(observation["rgb"]), mean], axis=-1)


@register
class _ResidualBlock(layers.Layer):
    """x + conv(relu(conv(relu(x)))), 3x3 convolutions of `channels` channels."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.first = layers.Conv2D(channels, 3, padding="same")
        self.second = layers.Conv2D(channels, 3, padding="same")

    def call(self, x):
        return x + self.second(tf.nn.relu(self.first(tf.nn.relu(x))))

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@register
class _MaxAndMean(layers.Layer):
    """Each channel's maximum and its mean over an image: [N, H, W, C] -> [N, 2C]."""

    def call(self, x):
        return tf.concat([tf.reduce_max(x, axis=[1, 2]), tf.reduce_mean(x, axis=[1, 2])], axis=-1)


def mlp(units):
    """Flatten, then a tanh layer for each of `units`; with no units the observation itself as a vector."""
    return [layers.Flatten(), *(layers.Dense(width, activation="tanh") for width in units)]


def nature_cnn(units):
    """The three convolutions of Mnih et al. 2015 for [H, W, C] images, then a ReLU layer for each of `units`."""
    return [
        layers.Conv2D(32, 8, 4, activation="relu"),
        layers.Conv2D(64, 4, 2, activation="relu"),
        layers.Conv2D(64, 3, 1, activation="relu"),
        layers.Flatten(),
        *(layers.Dense(width, activation="relu") for width in units),
    ]


def impala_shallow(units):
    """The two convolutions of Espeholt et al. 2018 for [H, W, C] images, then a ReLU layer for each of `units`."""
    return [
        layers.Conv2D(16, 8, 4, activation="relu"),
        layers.Conv2D(32, 4, 2, activation="relu"),
        layers.Flatten(),
        *(layers.Dense(width, activation="relu") for width in units),
    ]


def impala_deep(units):
    """The residual network of Espeholt et al. 2018 for [H, W, C] images, then a ReLU layer for each of `units`.

    Three sections of 16, 32 and 32 channels: 3x3 convolution, 3x3 max-pooling of stride 2, two residual blocks.
    """
    sections = []
    for channels in (16, 32, 32):
        sections += [
            layers.Conv2D(channels, 3, padding="same"),
            layers.MaxPool2D(3, 2, padding="same"),
            _ResidualBlock(channels),
            _ResidualBlock(channels),
        ]
    return [*sections, layers.ReLU(), layers.Flatten(), *(layers.Dense(width, activation="relu") for width in units)]


def pooled_cnn(units):
    """Three convolutions for [H, W, C] images, each channel's maximum and mean, then a ReLU layer for each of `units`.

    What it learns of one place holds for all. Trumpp et al. 2025 (arXiv 2503.05546) so pool a residual network, by the
    mean alone.
    """
    return [
        layers.Conv2D(16, 4, 2, padding="same", activation="relu"),
        layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        _MaxAndMean(),
        *(layers.Dense(width, activation="relu") for width in units),
    ]


# name: (function, widths of its dense layers if none are given, rank of one observation or None for any)
ENCODERS = {
    "mlp": (mlp, (64,), None),
    "nature_cnn": (nature_cnn, (512,), 3),
    "impala_shallow": (impala_shallow, (256,), 3),
    "impala_deep": (impala_deep, (256,), 3),
    "pooled_cnn": (pooled_cnn, (256,), 3),
}


def make_encoder(
    encoder: str | layers.Layer,
    observation_spec: tf.TensorSpec | dict[str, tf.TensorSpec],
    *,
    units: Sequence[int] | None = None,
    dtype: str | None = None,
) -> layers.Layer:
    """Makes an encoder.

    Args:
      encoder: a key of `ENCODERS`; or "module:name" of a function or class that makes a layer, of `units` if they are
        given; or the layer itself, not built yet, which is copied. Such a layer maps [N, ...], uint8 divided by 255, to
        [N, D]; an observation of parts comes to it as it is.
      observation_spec: TensorSpec of one raw observation (no batch dimension); uint8 is divided by 255. Or a dict of
        it, "rgb", and of "instruction", a BoundedTensorSpec [L] of word ids, 0 if there is no word.
      units: widths of the dense layers; None for the encoder's own.
      dtype: "bfloat16" computes in it, with weights and their gradients in float32 (Keras' policy mixed_bfloat16);
        None in Keras' floatx. A layer that is given has a policy of its own.

    Returns:
      A Keras layer from [N, ...] to floats [N, D], of `dtype`; D is 20 more with an instruction.

    Raises:
      ValueError: unknown name or dtype, a width below 1, an observation of a rank or of parts that the encoder does
        not take, or of images whose channels seem to come first; a layer that was built, or whose output has another
        rank.
    """
    units = None if units is None else widths("encoder_units", units)
    one_of("encoder_dtype", dtype, (None, "bfloat16"))
    if not isinstance(encoder, str):
        for name, value in (("encoder_units", units), ("encoder_dtype", dtype)):
            if value is not None:
                raise ValueError(f"{name} must be None if encoder is a layer, got {shown(value)}")
        return _around(encoder, observation_spec)
    with _computing_in(dtype):
        if is_named(encoder):
            return _around(made_by_name("encoder", encoder, *([] if units is None else [units])), observation_spec)
        if encoder not in ENCODERS:
            raise ValueError(
                f"encoder must be one of {sorted(ENCODERS)}, 'module:name' or a layer, got {shown(encoder)}"
            )
        return _named(encoder, observation_spec, units)


@contextlib.contextmanager
def _computing_in(dtype):
    """Layers made inside compute in `dtype`; None: as outside."""
    if dtype is None:
        yield
        return
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(f"mixed_{dtype}")
    try:
        yield
    finally:
        # None: that of floatx, whatever floatx becomes
        keras.mixed_precision.set_global_policy(None if policy.name == keras.backend.floatx() else policy)


def _around(encoder, observation_spec):
    """A user's layer as an encoder."""
    if not isinstance(encoder, layers.Layer):
        raise ValueError(f"encoder must be a name or a layer of {keras.__name__}, got {shown(encoder)}")
    encoder = copy_of("encoder", encoder)
    if not isinstance(observation_spec, dict):
        encoder = keras.Sequential([_ToFloat(), encoder], name=f"{encoder.name}_of_floats")
    zeros = tf.nest.map_structure(lambda spec: tf.zeros([1, *spec.shape], spec.dtype), observation_spec)
    try:
        shape = encoder(zeros).shape
    except Exception as error:  # of any kind
        raise ValueError(f"encoder {encoder.name} does not take observations: {one_line(error)}") from error
    if shape.rank != 2 or shape[1] is None:
        raise ValueError(f"encoder must map [N, ...] to features [N, D], that of {encoder.name} are {shape}")
    return encoder


def _named(name, observation_spec, units):
    function, default_units, rank = ENCODERS[name]
    units = default_units if units is None else units
    if isinstance(observation_spec, dict):
        if set(observation_spec) != {"rgb", "instruction"}:
            raise ValueError(f"an observation of parts must have rgb and instruction, got {sorted(observation_spec)}")
        words = int(observation_spec["instruction"].maximum) + 1
        return _WithInstruction(_named(name, observation_spec["rgb"], units), words)
    if rank is not None and observation_spec.shape.rank != rank:
        raise ValueError(f"encoder {name!r} takes observations of rank {rank}, got shape {observation_spec.shape}")
    if rank == 3 and _channels_first(observation_spec.shape):
        raise ValueError(
            f"encoder {name!r} takes images [H, W, C], the channels last, got shape {tuple(observation_spec.shape)}, "
            "which looks like [C, H, W]: let the environment move its first axis to the end"
        )
    return keras.Sequential([_ToFloat(), *function(units)], name=name)


def _channels_first(shape):
    """Whether an image looks like [C, H, W]: few rows, and columns and channels several times as many."""
    first, second, third = shape
    return first <= 16 and min(second, third) >= 4 * first
