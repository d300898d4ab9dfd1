"""What agents are given to learn from."""

import numpy as np
import tensorflow as tf
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl._checks import shown
from keras_rtrl.engine.native import traced_for_xla


def checked(experience, spec, frames=None):
    """`experience` as a Trajectory of tensors that fit the specs, [B, T + 1, ...] each.

    Parts, dtypes and shapes are always checked. Values are checked if there are any, that is eagerly, and not inside a
    tf.function: step types, discounts and actions that no environment gives. NaN and infinity pass: an update that is
    not finite is not applied.

    Args:
      experience: Trajectory of tensors or arrays.
      spec: Trajectory of the specs of one frame.
      frames: T + 1, or None for any number of at least 2.

    Raises:
      TypeError: no Trajectory, or parts of another dtype.
      ValueError: missing parts, others than there should be, shapes or values that do not fit.
    """
    if not isinstance(experience, trajectory.Trajectory):
        raise TypeError(f"experience must be a Trajectory of tensors [B, T + 1, ...], got {shown(experience)}")
    fields = {name: _fitted(f"experience.{name}", value, getattr(spec, name)) for name, value in _fields(experience)}
    experience = trajectory.Trajectory(**fields)
    shape = experience.step_type.shape
    if frames is not None and shape[1] not in (None, frames):
        raise ValueError(f"experience must hold {frames} frames of each stream, got step_type of shape {shape}")
    if shape[1] is not None and shape[1] < 2:
        raise ValueError(f"experience must hold at least 2 frames (T + 1), got {shape[1]}")
    for name, value in _fields(experience):
        for leaf in tf.nest.flatten(value):
            if not leaf.shape[:2].is_compatible_with(shape):
                raise ValueError(f"experience.{name} must have step_type's shape {shape} in front, got {leaf.shape}")
    if tf.executing_eagerly():
        _check_values(experience, spec)
    return experience


def _fields(experience):
    return experience._asdict().items()


def _fitted(name, value, spec):
    """`value` as a nest of tensors that fit `spec`."""
    if isinstance(spec, dict):
        if not isinstance(value, dict) or set(value) != set(spec):
            got = sorted(map(str, value)) if isinstance(value, dict) else shown(value)
            raise ValueError(f"{name} must have the parts {sorted(spec)}, got {got}")
        return {key: _fitted(f"{name}.{key}", value[key], spec[key]) for key in spec}
    try:
        tensor = tf.convert_to_tensor(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be a tensor of {spec.dtype.name}, got {shown(value)}") from error
    if tensor.dtype != spec.dtype:
        raise TypeError(f"{name} must be of {spec.dtype.name}, got {tensor.dtype.name}")
    if tensor.shape.rank != spec.shape.rank + 2 or not tensor.shape[2:].is_compatible_with(spec.shape):
        raise ValueError(f"{name} must have shape {('B', 'T + 1', *spec.shape)}, got {tensor.shape}")
    return tensor


def _check_values(experience, spec):
    step_type = experience.step_type.numpy()
    _check_range("step_type", step_type, 0, 2)
    used = step_type[:, :-1] != ts.StepType.LAST  # of boundary frames and frame T these mean nothing
    discount = experience.discount.numpy()[:, :-1][used]
    _check_range("discount", discount[np.isfinite(discount)], 0, 1)
    if spec.action.dtype.is_integer:
        _check_range("action", experience.action.numpy()[:, :-1][used], spec.action.minimum, spec.action.maximum)


def _check_range(name, values, low, high):
    beyond = values[(values < low) | (values > high)]
    if beyond.size:
        low, high = np.array(low).tolist(), np.array(high).tolist()
        raise ValueError(f"experience.{name} must lie in {low}..{high}, got {beyond[0]}")


def played(experience):
    """Frames 0 .. T - 1 of an experience [B, T + 1], and which of them are boundaries.

    A boundary frame, of step type LAST, ends an episode; the next frame starts another. Its action was ignored, and the
    reward and discount that came after it belong to no step. They and its policy info come as zeros, whatever the
    experience holds there, NaN included: what is computed of them later needs no care. Of frame T only observation and
    step type mean anything; it is left out.

    Returns:
      (Trajectory [B, T, ...], without next_step_type; bool [B, T]).
    """
    step = tf.nest.map_structure(lambda x: x[:, :-1], experience._replace(next_step_type=()))
    boundary = tf.equal(step.step_type, ts.StepType.LAST)

    def select(x):
        where = tf.reshape(boundary, tf.concat([tf.shape(boundary), [1] * (x.shape.rank - 2)], 0))
        return tf.where(where, tf.zeros_like(x), x)

    names = ("action", "policy_info", "reward", "discount")
    zeroed = {name: tf.nest.map_structure(select, getattr(step, name)) for name in names}
    return step._replace(**zeroed), boundary


def is_finite(tensors):
    """Whether the scalars in a nest of floating tensors, and the norms of all others, are finite: a bool scalar."""
    # a norm is one pass, and nothing is stored
    scalars = [x if x.shape.rank == 0 else tf.nn.l2_loss(x) for x in tf.nest.flatten(tensors)]
    return tf.reduce_all(tf.math.is_finite(tf.stack([tf.cast(x, tf.float64) for x in scalars])))


def only_if(finite, apply, otherwise=None):
    """Runs apply() if `finite`, a bool scalar, else otherwise(); their values are dropped."""

    def done(function):
        if function is not None:
            function()
        return tf.constant(True)

    tf.cond(finite, lambda: done(apply), lambda: done(otherwise))


def keep_if(finite, apply, changed, before=()):
    """As `only_if`, for updates so small that under XLA a condition costs more than a copy of what they change.

    Args:
      finite: bool scalar.
      apply: what updates the variables `changed`, and no others.
      changed: variables, which keep their values unless `finite`.
      before: pairs of another variable and the value that it goes back to unless `finite`.
    """
    if traced_for_xla():
        before = [*before, *((variable, variable.value()) for variable in changed)]
        apply()
        for variable, value in before:
            variable.assign(tf.where(finite, variable, value))
    else:
        only_if(finite, apply, lambda: [variable.assign(value) for variable, value in before])
