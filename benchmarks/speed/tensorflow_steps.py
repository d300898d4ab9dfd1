"""TensorFlow's contestants: this project's layers and streaming form, and keras' LSTM and GRU.

Whole training steps, one tf.function each: core, head, mean square of its errors at every step, keras' RMSprop. All
cores are stateful: a step continues the one before.
"""

from functools import partial

import numpy as np
import tensorflow as tf

from benchmarks.common import Unavailable
from benchmarks.speed.contestants import LEARNING_RATE, OUTPUTS, STREAM_RATE, THREADS, WAYS, streaming_problem
from keras_rtrl import engine, native
from keras_rtrl._keras import keras
from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.engine import streaming
from keras_rtrl.layers import ELSTM, RTU


def _implementation(way):
    """The argument `implementation` of our layers and functions: "twin" and "xla" are TensorFlow alone."""
    if way == "native" and not native.info()["built"]:
        raise Unavailable(native.info()["why_not"])
    return {"xla": "tf", "twin": "tf"}.get(way, way)


def start():
    """Starts the runtime, so that it is part of no contestant's memory."""
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8)))


def _core(kind, size):
    common = {"return_sequences": True, "stateful": True}
    if kind in ("lstm", "gru"):
        return {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind](size.units, **common)
    layer, gradient, way = kind
    return layer(size.units, gradient=gradient, implementation=_implementation(way), **common)


def _training(kind, size):
    tf.keras.utils.set_random_seed(0)
    core = _core(kind, size)
    head = keras.layers.Dense(OUTPUTS)
    optimizer = keras.optimizers.RMSprop(LEARNING_RATE)
    # Arguments, not constants: of those TensorFlow would work out ahead what it can.
    x = tf.random.normal((size.batch, size.steps, size.inputs))
    target = tf.random.normal((size.batch, size.steps, OUTPUTS))
    head(core(x))
    variables = [*core.trainable_variables, *head.trainable_variables]
    optimizer.build(variables)

    @tf.function(jit_compile=kind[-1] == "xla")
    def train(x, target):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((head(core(x)) - target) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: float(train(x, target))


_LAYERS = {"elstm": ELSTM, "rtu": RTU}
STEPS = {
    **{f"{cell}_{way}": partial(_training, (_LAYERS[cell], *way.split("_"))) for cell in _LAYERS for way in WAYS},
    "keras_lstm": partial(_training, "lstm"),
    "keras_gru": partial(_training, "gru"),
}


def _long_context(kind, chunked, size, context):
    """An update that learns from `context` steps: in chunks of the size's T steps with carried traces, or in one."""
    step = _training(kind, size if chunked else size._replace(steps=context))
    for _ in range(context // size.steps if chunked else 0):
        step()
    return step


CONTEXT = {
    "elstm_rtrl": partial(_long_context, (ELSTM, "rtrl", "auto"), True),
    "elstm_tbptt": partial(_long_context, (ELSTM, "tbptt", "auto"), False),
    "keras_lstm": partial(_long_context, "lstm", False),
    "keras_gru": partial(_long_context, "gru", False),
}


def _update(with_forward, size, updates):
    """engine.streaming.update, K = 1: of what one `forward` has left, or each with its `forward`."""
    cell, rng = ELSTMCell(size.units), np.random.default_rng(0)

    def variable(*shape):
        return tf.Variable(rng.normal(0, 0.1, shape).astype(np.float32))

    carry = engine.Carry(*(variable(size.batch, *shape) for shape in engine.carry_shapes(cell, size.inputs)))
    params = {name: variable(size.units) for name in cell.unit_names}
    params["kernel"] = variable(size.inputs, len(cell.gates) * size.units)
    x = tf.random.normal((size.batch, size.inputs))
    cotangents = tf.random.normal((1, size.batch, size.units, 1))
    _, left = streaming.forward(cell, params, carry, x)

    @tf.function
    def loop(x, cotangents):
        total = tf.zeros(())
        for _ in tf.range(updates):
            pending = streaming.forward(cell, params, carry, x)[1] if with_forward else left
            total += streaming.update(carry, pending, cotangents)["kernel"][0, 0, 0]
        return total

    return lambda: loop(x, cotangents).numpy()


UPDATE = {"update": partial(_update, False), "forward_update": partial(_update, True)}


def _streaming(way, size, steps):
    """The whole loop in one tf.function."""
    start, x, target = streaming_problem(size, steps)
    cell, implementation = RTUCell(size.units), _implementation(way)
    params = {"kernel": np.concatenate([start["w1"], start["w2"]], axis=1)}
    params |= {name: start[name] for name in cell.unit_names}
    params = {name: tf.Variable(value) for name, value in params.items()}
    head = tf.Variable(start["head"].T)  # [N, 2]
    carry = engine.Carry(*map(tf.Variable, engine.zero_carry(cell, size.batch, tf.float32, size.inputs)))
    rate = tf.constant(STREAM_RATE)

    def descend(variable, gradient):
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)

    def step(x, target):
        state, pending = streaming.forward(cell, params, carry, x, implementation=implementation)
        h = tf.nn.relu(state)  # [1, N, 2]
        error = tf.reduce_sum(head * h) - target
        slope = 2 * error
        e = tf.raw_ops.ReluGrad(gradients=(slope * head)[None], features=h)
        for name, gradient in streaming.update(carry, pending, e[None]).items():
            descend(params[name], tf.squeeze(gradient, 0))
        descend(head, tf.squeeze(slope * h, 0))
        return error * error

    @tf.function(jit_compile=way == "xla")
    def loop(x, target):
        losses = tf.TensorArray(tf.float32, steps)
        for t in tf.range(steps):
            losses = losses.write(t, step(tf.gather(x, t), tf.gather(target, t)))  # one op where x[t] is five
        return losses.stack()

    x, target = tf.constant(x[:, None]), tf.constant(target)
    return lambda: loop(x, target).numpy()


def _streaming_bptt(layer, size, steps):
    """keras' layer with one step of BPTT and an update at every step."""
    _, x, target = streaming_problem(size, steps)
    core = layer(size.units, stateful=True)
    core(tf.zeros((size.batch, 1, size.inputs)))
    head = tf.Variable(tf.random.normal((size.units, 1), 0, size.units**-0.5))
    variables = [*core.trainable_variables, head]
    values = [v if isinstance(v, tf.Variable) else v.value for v in variables]  # keras 3 wraps TensorFlow's

    @tf.function
    def loop(x, target):
        losses = tf.TensorArray(tf.float32, steps)
        for t in tf.range(steps):
            with tf.GradientTape() as tape:
                loss = (tf.reduce_sum(core(tf.gather(x, t)) @ head) - tf.gather(target, t)) ** 2
            for value, gradient in zip(values, tape.gradient(loss, values), strict=True):
                value.assign_sub(STREAM_RATE * gradient)
            losses = losses.write(t, loss)
        return losses.stack()

    x, target = tf.constant(x[:, None, None]), tf.constant(target)
    return lambda: loop(x, target).numpy()


STREAMING = {
    **{f"stream_{way}": partial(_streaming, way) for way in ("auto", "native", "twin", "xla")},
    "keras_lstm": partial(_streaming_bptt, keras.layers.LSTM),
    "keras_gru": partial(_streaming_bptt, keras.layers.GRU),
}


def _limit_gemm(size):
    a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
    multiply = tf.function(tf.linalg.matmul)
    return lambda: multiply(a, b)


def _limit_trace(batch, steps, inputs, width):
    x, a = tf.random.normal((batch, steps, inputs)), tf.random.normal((batch, steps, width))
    multiply = tf.function(lambda x, a: tf.linalg.matmul(x, a, transpose_a=True))
    return lambda: multiply(x, a)


def _limit_copy(elements):
    source = tf.random.normal((elements,))
    copy = tf.function(lambda x: tf.raw_ops.DeepCopy(x=x))
    return lambda: copy(source)


LIMITS = {"gemm": _limit_gemm, "copy": _limit_copy, "trace": _limit_trace}
