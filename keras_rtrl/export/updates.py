"""The update of a learner: a keras loss, its gradient, and a keras optimiser, checked to fit a model."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_rtrl._checks import shown
from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.export.reading import NamedModel
from keras_rtrl.layers.recurrent import of_size

OWN = ("targets", "sample_weight")  # inputs that `learn` has besides the model's


class Update:
    """The loss of a prediction, and what is done with its gradient.

    Attributes:
      model, optimizer: Keras' objects.
      inputs: TensorSpecs of targets and sample_weight by name.
      max_gradient_norm: float or None.
    """

    def __init__(
        self,
        model: keras.Model,
        named: NamedModel,
        *,
        optimizer: keras.optimizers.Optimizer,
        loss: keras.losses.Loss,
        targets: tf.TensorSpec | None,
        max_gradient_norm: float | None,
    ):
        self.model, self.max_gradient_norm = model, max_gradient_norm
        _check_model(model, named)
        self._trained = model.trainable_variables
        self.optimizer, self._loss = optimizer, loss
        if not getattr(optimizer, "_built" if LEGACY else "built", False):
            optimizer.build(self._trained)
        (prediction,) = named.outputs.values()
        self.inputs = {
            "targets": _targets(targets, prediction),
            "sample_weight": tf.TensorSpec(prediction.shape[:-1] if prediction.shape.rank > 1 else prediction.shape),
        }

    def loss(self, given: dict[str, tf.Tensor], prediction: tf.Tensor) -> tf.Tensor:
        """float32 []: of the targets and weights in `given`, with the model's own penalties; to be called on a tape."""
        self._check_nothing_written()
        sized = {}
        for name in OWN:
            axes = min(2, self.inputs[name].shape.rank, prediction.shape.rank - 1) or 1
            message = f"{name} must have the {('batch', '[batch, time]')[axes - 1]} of the prediction"
            sized[name] = of_size(given[name], prediction, axes, message)
        loss = self._loss(sized["targets"], prediction, sample_weight=sized["sample_weight"])
        if loss.shape.rank != 0:
            raise ValueError(f"loss must reduce to one number, got shape {tuple(loss.shape)} (reduction=None?).")
        return tf.add_n([tf.cast(value, tf.float32) for value in (loss, *self.model.losses)])

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        found = tape.gradient(loss, [value_of(variable) for variable in self._trained])
        without = [path_of(v) for v, gradient in zip(self._trained, found, strict=True) if gradient is None]
        if without:
            raise ValueError(
                f"model: the loss has no gradient of {', '.join(without)}: set trainable=False for the layer."
            )
        return found

    def apply(self, gradients: list[tf.Tensor]) -> bool:
        self.optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        return True

    def _check_nothing_written(self):
        """Refuses weights that the model assigned in this graph: they would change without an update, too."""
        graph = tf.compat.v1.get_default_graph()
        written = {id(op.inputs[0]) for op in graph.get_operations() if op.type.startswith("Assign")}
        handles = {id(outer) for outer, inner in graph.captures if id(inner) in written}
        changed = [path_of(weight) for weight in self.model.weights if id(value_of(weight).handle) in handles]
        if changed:
            raise ValueError(
                f"model: {', '.join(changed)} would change while the model runs, also at a skipped update. "
                "BatchNormalization does not if trainable=False; LayerNormalization has nothing of the kind."
            )


def value_of(variable: Any) -> tf.Variable:
    """TensorFlow's variable of Keras' one."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def path_of(variable: Any) -> str:
    """Keras' name of a variable."""
    return getattr(variable, "path", variable.name).removesuffix(":0")


def _check_model(model, named):
    for layer in named.layers:
        if isinstance(layer, keras.layers.RNN):
            raise ValueError(
                f"model: {layer.name} ({type(layer).__name__}) is a recurrent layer of Keras', which has no traces: "
                "no gradient would reach back before a call. Use an RTRL layer."
            )
    if len(named.outputs) != 1:
        raise ValueError(f"model must have one output, {model.name} has {sorted(named.outputs)}.")
    if not named.states:
        raise ValueError(
            f"model: {model.name} gives each RTRL layer its initial_state: the learner has no carry to keep."
        )
    for name in OWN:
        if name in named.inputs:
            raise ValueError(f"model: its input {name} is called as one of `learn`'s own: give it another name.")
    if not model.trainable_variables:
        raise ValueError(f"model must have trainable weights, {model.name} has none: inference_model serves it.")


def optimizer_of(optimizer: Any) -> keras.optimizers.Optimizer:
    """The keras optimizer that `optimizer` is or names."""
    try:
        found = keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer
    except ValueError as error:
        raise ValueError(f"optimizer must be a keras optimizer or its name, got {shown(optimizer)}.") from error
    if not isinstance(found, keras.optimizers.Optimizer):
        line = "tf-keras" if LEGACY else "Keras 3"
        raise TypeError(f"optimizer must be an optimizer of {line} or its name, got {shown(optimizer)}.")
    if "LossScale" in type(found).__name__:
        raise ValueError("optimizer must scale no loss: the learner itself skips updates that are not finite.")
    return found


def loss_of(loss: Any) -> keras.losses.Loss:
    """The keras loss that `loss` is or names, or of the function that it is."""
    try:
        found = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError as error:
        raise ValueError(f"loss must be a keras loss, its name or a function, got {shown(loss)}.") from error
    if isinstance(found, keras.losses.Loss):
        return found
    if not callable(found) or isinstance(found, type):
        raise TypeError(f"loss must be a keras loss, its name or a function, got {shown(loss)}.")
    return _Loss(found)


class _Loss(keras.losses.Loss):
    """A function of targets and prediction as a keras loss: the mean of its values, weighted."""

    def __init__(self, function: Callable):
        super().__init__(name="loss")
        self._function = function

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        values = self._function(y_true, y_pred)
        if values.shape.rank == 0:
            raise ValueError(
                "loss must give one value a sample, [B, T] or [B], and gave one number: leave the mean out."
            )
        return values


def _targets(targets, prediction):
    """TensorSpec of the targets, with the sizes of batch and time of the prediction."""
    dtype = tf.float32 if prediction.dtype.is_floating else prediction.dtype
    if targets is None:
        return tf.TensorSpec(prediction.shape, dtype)
    axes = min(2, prediction.shape.rank - 1) or 1
    common = prediction.shape[:axes]
    if targets.shape.rank is None or targets.shape.rank < axes or not common.is_compatible_with(targets.shape[:axes]):
        raise ValueError(f"targets must begin with the sizes {tuple(common)} of the prediction, got {targets.shape}.")
    return tf.TensorSpec(common.concatenate(targets.shape[axes:]), targets.dtype)
