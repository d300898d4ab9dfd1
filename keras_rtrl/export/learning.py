"""A model that goes on learning where it is served: a SavedModel of stock TensorFlow operations.

```python
learner(model, optimizer="adam", loss="mse", batch_size=1).save("learns")  # in a process with keras_rtrl

learns = tf.saved_model.load("learns").signatures  # in any process with TensorFlow
out = learns["learn"](x=x, targets=targets, sample_weight=weights, reset=reset)
```
"""

from collections.abc import Callable

import tensorflow as tf

from keras_rtrl._checks import flag, number, shown
from keras_rtrl._keras import keras
from keras_rtrl.export.controls import Controlled, by_name, read
from keras_rtrl.export.module import concrete, stock_ops
from keras_rtrl.export.reading import NamedModel, unique
from keras_rtrl.export.updates import Update, loss_of, optimizer_of
from keras_rtrl.layers.recurrent import of_size

COUNTERS = ("steps", "updates", "skipped", "held")


class Learner(Controlled):
    """A model, its optimiser, and the carries of a batch of streams, as functions that any process can call.

    `learner` makes it. Every function takes and returns flat tensors by name; `save` writes them as signatures of the
    same names. No input is optional, since TensorFlow Serving and the C API know no defaults.

      predict(inputs, reset bool [B, T]) -> the prediction under the name of the model's output.
      learn(inputs, targets, sample_weight, reset bool [B, T]) -> loss float32 [], gradient_norm float32 [], applied
        bool [], and the prediction made before the update.
      reset(streams bool [B]): zeroes the carries of the streams that are true.
      get() -> all variables: weights, optimiser, carries, counters, snapshot. set(the same): puts them back.
      freeze(), thaw(): between them `learn` updates no weight.
      snapshot(): keeps weights and optimiser; rollback(): puts back what was kept last, at first what was exported.
      info() -> steps, updates, skipped, held int64 [], frozen bool [].
      start(batch_size int32 []): zero carries of as many streams. Only if the batch size is free.

    Those without outputs of their own return what `info` returns.

    `predict` and `learn` both move the carries, traces included. So the gradient of `learn` also reaches back through
    the steps that were only predicted, and each step is to be given to one of the two. The reset is true if a new
    episode starts with that step; it is no input if the model has an input for it.

    An update is skipped, and counted in `skipped`, if the loss or the global norm of the gradient is not finite, or the
    norm is above `max_gradient_norm`. It leaves weights and optimiser as they are, and the carries move all the same.
    If the new carry of a stream is not finite, that stream keeps the one before (zeros if the call had a reset for it),
    whatever becomes of the update; `held` counts these. Inputs of wrong shapes, dtypes or names raise TensorFlow's
    errors before anything is changed.

    Attributes:
      predict, learn, reset, get, set, freeze, thaw, snapshot, rollback, info: concrete functions, as above.
      start: concrete function, or None if the batch size is fixed.
    """

    functions = ("predict", "learn", "reset", "start")

    def __init__(self, named: NamedModel, update: Update, *, jit_compile: bool):
        """Makes the variables and traces; `learner` checks the arguments."""
        rows = named.batch_size or 1
        carries = {
            name: tf.Variable(
                tf.zeros((rows, *spec.shape[1:]), spec.dtype), trainable=False, name=name, shape=spec.shape
            )
            for name, spec in named.states.items()
        }
        super().__init__(
            COUNTERS,
            kept={**by_name("weight", update.model.weights), **by_name("optimizer", update.optimizer.variables)},
            carried={f"carry_{name}": variable for name, variable in carries.items()},
        )
        self._carries = carries
        inputs = {**named.inputs, **named.reset}
        with stock_ops(named.layers):
            self.predict = self._checked(lambda **given: self._predicted(named, given), inputs, jit_compile)
            self.learn = self._checked(
                lambda **given: self._learned(named, update, given), {**inputs, **update.inputs}, jit_compile
            )
        self._control(self.predict, self.learn)
        self.reset = concrete(self._zeroed, {"streams": tf.TensorSpec([named.batch_size], tf.bool)})
        free = {"batch_size": tf.TensorSpec([], tf.int32)}
        self.start = concrete(self._started, free) if named.batch_size is None else None

    # What is traced.

    def _checked(self, body, specs, jit_compile):
        """The concrete function, which checks shapes outside of what XLA compiles: that drops assertions."""
        run = tf.function(body, autograph=False, jit_compile=True) if jit_compile else body
        first = next(iter(self._carries.values()))

        def checked(**given):
            values = {}
            for name, value in given.items():
                value = tf.ensure_shape(value, specs[name].shape, name=f"{name}_checked")
                values[name] = of_size(value, first, 1, f"{name} must have as many rows as there are streams")
            with tf.control_dependencies(values.values()):  # no part may run while another's check fails
                values = {name: tf.identity(value) for name, value in values.items()}
            return run(**values)

        return concrete(checked, specs)

    def _predicted(self, named, given):
        outputs, carries, length = named({**given, **read(self._carries)})
        with tf.control_dependencies([*outputs.values(), *carries.values()]):
            self._move(carries, length, given)
        return outputs

    def _learned(self, named, update, given):
        with tf.GradientTape() as tape:
            outputs, carries, length = named({**given, **read(self._carries)}, training=True)
            ((name, prediction),) = outputs.items()
            loss = update.loss(given, prediction)
        gradients = update.gradients(tape, loss)
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32)
        sound = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        if update.max_gradient_norm is not None:
            sound &= norm <= update.max_gradient_norm
        applied = sound & ~self._frozen
        skipped = ~sound & ~self._frozen
        # Nothing is assigned before all is computed: a check in the model may still fail.
        with tf.control_dependencies([prediction, norm, *carries.values()]):
            tf.cond(applied, lambda: update.apply(gradients), lambda: False)
            self._counters["updates"].assign_add(tf.cast(applied, tf.int64))
            self._counters["skipped"].assign_add(tf.cast(skipped, tf.int64))
            self._move(carries, length, given)
        said = {"loss": loss, "gradient_norm": norm, "applied": applied}
        return {**said, unique(name, said): prediction}

    def _move(self, carries, length, given):
        """Assigns the new carries, those of a stream if they are finite."""
        reset = given.get("reset")
        if reset is not None and not (reset.dtype.is_bool and reset.shape.rank == 2):
            reset = None  # an input of the model that is only called so
        # A sum is finite only if its terms are: one pass, and no tensor of flags.
        sums = [tf.reduce_sum(value, range(1, value.shape.rank)) for value in carries.values()]
        sound = tf.reduce_all(tf.math.is_finite(tf.stack([tf.cast(value, tf.float32) for value in sums])), 0)

        def held():
            anew = ~sound if reset is None else ~sound & tf.reduce_any(reset, 1)
            kept = {}
            for name, value in carries.items():
                shape = [-1] + [1] * (value.shape.rank - 1)
                old = self._carries[name].read_value()
                if reset is not None:
                    old = tf.where(tf.reshape(anew, shape), tf.zeros_like(old), old)
                kept[name] = tf.where(tf.reshape(sound, shape), value, old)
            return kept

        for name, value in tf.cond(tf.reduce_all(sound), lambda: carries, held).items():
            self._carries[name].assign(value)
        self._counters["steps"].assign_add(tf.cast(length, tf.int64))
        self._counters["held"].assign_add(tf.reduce_sum(tf.cast(~sound, tf.int64)))

    def _zeroed(self, streams):
        first = next(iter(self._carries.values()))
        streams = tf.ensure_shape(streams, first.shape[:1], name="streams_checked")
        streams = of_size(streams, first, 1, "streams must have one flag a stream")
        for variable in self._carries.values():
            value = variable.read_value()
            anew = tf.reshape(streams, [-1] + [1] * (value.shape.rank - 1))
            variable.assign(tf.where(anew, tf.zeros_like(value), value))
        return self._told()

    def _started(self, batch_size):
        enough = tf.debugging.Assert(batch_size > 0, ["batch_size must be at least 1, got", batch_size])
        with tf.control_dependencies([enough]):
            batch_size = tf.identity(batch_size)
        zeros = {v.ref(): tf.zeros((batch_size, *v.shape[1:]), v.dtype) for v in self._carries.values()}
        return self._changed(zeros)


def learner(
    model: keras.Model,
    *,
    optimizer: keras.optimizers.Optimizer | str,
    loss: keras.losses.Loss | Callable | str,
    targets: tf.TensorSpec | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    max_gradient_norm: float | None = None,
    jit_compile: bool = False,
) -> Learner:
    """A model that goes on learning, as a tf.Module that needs neither Keras nor keras_rtrl.

    Its `learn` makes one update by the exact RTRL gradient: of the loss on this call's steps, reaching back through all
    that the carries have seen since their reset, at constant memory and time a step (docs/rtrl-math.md, sections 2 and
    3; as with any online RTRL, traces were accumulated under the weights of their time). A stack's gradient is that of
    `RTRLStack`; layers with gradient="tbptt" or "instant" learn what they say. Feed-forward layers below an RTRL layer
    learn from this call's steps alone. Penalties of regularisers are added to the loss, and constraints apply.

    The learner shares the model's weights and the optimiser's variables: to learn in Python trains the model, and an
    optimiser that has trained it goes on. Carries start from zeros, also those of stateful layers. `learn` runs the
    model with training=True, so with Dropout the prediction that it returns is one of training.

    Args:
      model: as of `inference_model`, with one output besides states and traces. Names of inputs as there.
      optimizer: a keras optimizer or its name; it is built for the model's trainable weights if it is not yet.
      loss: a keras loss, its name, or a function of targets and prediction that gives one value a sample [B, T] or [B].
      targets: TensorSpec [B, T, ...] or [B, ...] of the targets; None: shape and dtype of the prediction, float32 if
        that is floating.
      batch_size: B, the number of streams; None: free: one stream at first, and `start` makes another number.
      steps: T; None: free.
      max_gradient_norm: updates by a gradient of a larger global norm are skipped; None: no bound.
      jit_compile: whether `predict` and `learn` are compiled by XLA, which needs `batch_size` and `steps`.

    Returns:
      A `Learner`. `sample_weight` float32 has the prediction's shape without the last axis; it weighs the loss as in
      Keras.

    Raises:
      TypeError: `model`, `optimizer`, `loss` or `targets` is of another kind.
      ValueError: another argument, or the model, does not fit: as of `inference_model`; or the model gives each RTRL
        layer its initial_state, or has a recurrent layer of Keras, weights that change while it runs
        (BatchNormalization), trainable weights without a gradient or none at all, several outputs, or an input called
        as one of `learn`'s own.
    """
    jit_compile = flag("jit_compile", jit_compile)
    if jit_compile and None in (batch_size, steps):
        raise ValueError("jit_compile must be False unless batch_size and steps are given: XLA compiles for one shape.")
    if max_gradient_norm is not None:
        max_gradient_norm = number("max_gradient_norm", max_gradient_norm, above=0)
    if not (targets is None or isinstance(targets, tf.TensorSpec)):
        raise TypeError(f"targets must be a tf.TensorSpec or None, got {shown(targets)}.")
    optimizer, loss = optimizer_of(optimizer), loss_of(loss)
    named = NamedModel(model, batch_size=batch_size, steps=steps, traces=True)
    update = Update(model, named, optimizer=optimizer, loss=loss, targets=targets, max_gradient_norm=max_gradient_norm)
    return Learner(named, update, jit_compile=jit_compile)
