"""What agents are given to learn from."""

import tensorflow as tf
from tf_agents.trajectories import time_step as ts

from keras_rtrl.engine.native import traced_for_xla


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
