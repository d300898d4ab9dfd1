"""What agents share that learn from one stream, with an update at every step."""

import collections
from typing import Any

import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.typing import types

from keras_rtrl._checks import whole_number
from keras_rtrl._keras import keras
from keras_rtrl.agents.base import ActorCriticAgent
from keras_rtrl.agents.experience import is_finite, keep_if, only_if, played
from keras_rtrl.engine import Carry, streaming
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.networks.cores import RTRLCore

# Of the present frame: policy outputs [1, P], value (a scalar), state after it, and what the learner needs later.
Forward = collections.namedtuple("Forward", ["outputs", "value", "state", "pending"])


class StreamingAgent(ActorCriticAgent):
    """Base of agents whose train() takes one transition of one stream, experience [1, 2].

        z = k gamma lambda z + gradient,   parameters += learning rate * delta z

    with a trace z for each of the agent's objectives, k = 0 if an episode starts, and delta the TD error of the
    network's value, whose v(s') is that of the same parameters. A frame between two episodes (LAST to FIRST) gives no
    update; a truncated episode bootstraps from its last observation.

    The gradient of the recurrent core is the network's: gradient="rtrl" reaches back over the stream's whole history;
    "instant" stays inside the step; "tbptt" goes back over the last `config.window` observations. Under "rtrl" the
    encoder is trained by the instantaneous gradient. The agent owns the learner's carry, the eligibility traces too:
    each call must begin with the frame the last one ended with.
    """

    frames_needed = 2
    objectives = ()  # what there is an eligibility trace for

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        network: ActorCriticNetwork,
        optimizer: keras.optimizers.Optimizer,
        *,
        num_streams: int,
        **arguments: Any,
    ):
        """As `ActorCriticAgent`, with num_streams 1; a tf-keras optimiser or `ObGD` is given the gradient -delta z."""
        if whole_number("num_streams", num_streams) != 1:
            name = type(self).__name__
            raise ValueError(f"num_streams must be 1: {name} has a TD error a stream, got {num_streams}")
        super().__init__(time_step_spec, action_spec, network, optimizer, num_streams=1, **arguments)
        config = self._config
        core = network.recurrent_core
        gradients = core.gradients if isinstance(core, RTRLCore) else ("tbptt",)
        if len(gradients) > 1 and set(gradients) != {"tbptt"}:
            raise ValueError(
                f"network: {type(self).__name__} takes a core of one RTRL layer, got a stack of {len(gradients)} with "
                f"gradients {', '.join(gradients)}; R2AC and PPO take it, or give its layers gradient='tbptt'"
            )
        if gradients[0] == "rtrl":
            self._learner = _Exact(network, self._trained)
        else:
            self._learner = _Truncated(network, self._trained, 1 if gradients[0] == "instant" else config.window)
        # with lambda = 0 the gradient itself
        self._eligibility = tuple(
            tuple(tf.Variable(tf.zeros_like(v), trainable=False, name=f"eligibility_{name}") for v in self._trained)
            for name in (self.objectives if config.lambda_value > 0 else ())
        )

    @property
    def carry(self) -> types.NestedVariable:
        """The learner's carry of non-trainable variables [1, ...]; without exact gradients what BPTT looks back at."""
        return self._learner.carry

    @property
    def eligibility(self) -> dict[str, tuple[tf.Variable, ...]]:
        """The eligibility traces: {objective: tuple of variables, one for each trainable one of the network}.

        Empty if lambda is 0.
        """
        return dict(zip(self.objectives, self._eligibility, strict=False))

    def reset_carry(self) -> None:
        """Zeroes the carry and the eligibility traces."""
        super().reset_carry()
        for variable in tf.nest.flatten(self._eligibility):
            variable.assign(tf.zeros_like(variable))

    # What an agent gives.

    def _objectives(self, forward, action, td_error):
        """Scalars, in the order of `objectives`, whose gradients are collected; td_error is a constant."""
        raise NotImplementedError

    def _direction(self, td_error, traces):
        """The gradient that the optimiser is given, from the eligibility traces."""
        raise NotImplementedError

    def _extra(self, forward, td_error):
        raise NotImplementedError

    def _take_in(self, observation, reward, boundary):
        """Brings running statistics up to date, before anything else is computed; reward and boundary are [1]."""
        del reward, boundary
        self._network.update_normalizer(observation)

    def _scaled(self, reward):
        return reward

    # One transition.

    def _train(self, experience, weights=None):
        info, finite = self.transition(self._checked(experience, weights))
        self.train_step_counter.assign_add(1)
        return info._replace(loss=tf.where(finite, info.loss, float("nan")))

    def transition(
        self, experience: trajectory.Trajectory, *, frozen: tf.Tensor | None = None
    ) -> tuple[tf_agent.LossInfo, tf.Tensor]:
        """Learns one transition as train() does, without its checks and its counter.

        Args:
          experience: Trajectory of tensors [1, 2], as train() takes it; its policy info may be ().
          frozen: bool []: if true, the carry and the eligibility traces move, and weights, optimiser and running
            statistics stay. None: false.

        Returns:
          (LossInfo, bool []: whether the update was finite. If not, nothing has changed.)
        """
        step, boundary = played(experience)
        step, boundary = tf.nest.map_structure(lambda x: x[:, 0], (step, boundary))
        before = [(variable, variable.value()) for variable in self._statistics()]

        def take_in():
            self._take_in(step.observation, self._reward(step), boundary)

        learns = ~boundary[0]
        if frozen is None:
            take_in()
        else:
            learns &= ~frozen
            only_if(~frozen, take_in)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            forward, td_error = self._forward(experience, step, boundary, tape)
            scores = self._objectives(forward, step.action, td_error)
        gradients = self._learner.tape_gradients(tape, scores, forward)
        info = self._loss_info(forward, td_error)
        finite = is_finite((info, forward.state, gradients))

        def update():
            advanced = self._learner.advance(gradients, forward)
            traces = self._accumulate(advanced, tf.equal(step.step_type[0], ts.StepType.FIRST), finite)
            direction = zip(self._direction(td_error, traces), self._trained, strict=True)
            weights = (*self._trained, *self._optimizer.variables)
            keep_if(finite & learns, lambda: self._optimizer.apply_gradients(direction), weights)

        keep_if(finite, update, tf.nest.flatten(self.carry), before)
        return info, finite

    def _loss(self, experience, weights=None, training=False):
        del training
        experience = self._checked(experience, weights)
        step, boundary = tf.nest.map_structure(lambda x: x[:, 0], played(experience))
        return self._loss_info(*self._forward(experience, step, boundary, None))

    def _statistics(self):
        """Variables that `_take_in` changes."""
        parts = (self._network.normalizer, self._reward_scaler)
        return [variable for part in parts if part is not None for variable in part.variables]

    def _forward(self, experience, step, boundary, tape):
        """Forward of frame t, and the TD error, a constant; 0 on a boundary frame."""
        first = tf.equal(step.step_type, ts.StepType.FIRST)
        now, then = (tf.nest.map_structure(lambda x, t=t: x[:, t : t + 1], experience.observation) for t in range(2))
        forward = self._learner.forward(now, first, tape)
        state = tf.nest.map_structure(tf.stop_gradient, forward.state)
        reset = tf.equal(experience.step_type[:, 1:], ts.StepType.FIRST)
        y, _ = self._network.core(self._network.encode(then, reset), reset, state)
        next_value = tf.stop_gradient(self._network.heads(y)[1][0, 0])
        discount = self._config.gamma * tf.cast(step.discount[0], next_value.dtype)
        later = tf.math.multiply_no_nan(next_value, discount)
        td_error = self._scaled(self._reward(step))[0] + later - tf.stop_gradient(forward.value)
        return forward, tf.where(boundary[0], tf.zeros_like(td_error), td_error)

    def _reward(self, step):
        return tf.cast(step.reward, keras.backend.floatx())

    def _accumulate(self, gradients, first, finite):
        """The eligibility traces after `gradients`, or as they were unless `finite`."""
        if not self._eligibility:
            return gradients
        decay = self._config.gamma * self._config.lambda_value
        return [
            [
                z.assign(tf.where(finite, tf.where(first, tf.zeros_like(z), decay * z) + gradient, z))
                for z, gradient in zip(trace, grads, strict=True)
            ]
            for trace, grads in zip(self._eligibility, gradients, strict=True)
        ]

    def _loss_info(self, forward, td_error):
        return tf_agent.LossInfo(0.5 * tf.square(td_error), self._extra(forward, td_error))


class _Exact(tf.Module):
    """Gradient of the core by RTRL, of what lies above by the tape, and below by the instantaneous gradient."""

    def __init__(self, network, trained):
        super().__init__()
        self._network, self._layer = network, network.recurrent_core.layer
        names = {weight.ref(): name for name, weight in self._layer.recurrent_weights().items()}
        self._trained = tuple((names.get(variable.ref()), variable) for variable in trained)
        self._others = tuple(variable for name, variable in self._trained if name is None)
        (zero,) = network.get_initial_carry(1)
        self._carry = tuple(
            tf.Variable(part, trainable=False, name=f"carry_{name}") for name, part in zero._asdict().items()
        )

    @property
    def carry(self):
        return (Carry(*self._carry),)

    def forward(self, observation, first, tape):
        layer = self._layer
        if tape is not None:
            tape.watch(self._others)
        features = self._network.encode(observation, first[:, tf.newaxis])[:, 0]
        weights = {name: tf.cast(w, layer.trace_dtype) for name, w in layer.recurrent_weights().items()}
        state, pending = streaming.forward(
            layer.cell,
            weights,
            Carry(*self._carry),
            tf.cast(features, layer.trace_dtype),
            first,
            implementation=layer.implementation,
        )
        if tape is not None:
            tape.watch(state)
        outputs, value = self._network.heads(layer.read_out(features, state))
        return Forward(outputs, value[0], (Carry(state),), pending)

    def tape_gradients(self, tape, scores, forward):
        """For each score the gradients that a tape gives: of the state, and of what is not the core's recurrence."""
        (carry,) = forward.state
        return [
            tape.gradient(score, [carry.state, *self._others], unconnected_gradients=tf.UnconnectedGradients.ZERO)
            for score in scores
        ]

    def advance(self, by_tape, forward):
        """For each score the gradients of the trained variables; advances the carry."""
        cotangents = tf.stack([cotangent for cotangent, *_ in by_tape])
        core = streaming.update(Carry(*self._carry), forward.pending, cotangents)
        gradients = []
        for k, (_, *others) in enumerate(by_tape):
            others = iter(others)
            gradients.append(
                [next(others) if name is None else tf.cast(core[name][k], v.dtype) for name, v in self._trained]
            )
        return gradients


class _Truncated(tf.Module):
    """Gradient by BPTT through the last `window` observations, from the state before them.

    The first frame of all counts as an episode's start.

    Carry: the state before each frame of the window and the next, oldest first; the window's observations and whether
    an episode starts with them; whether there was any frame yet.
    """

    def __init__(self, network, trained, window):
        super().__init__()
        self._network, self._trained = network, tuple(trained)

        def ring(shape, dtype, name):
            return tf.Variable(tf.zeros([1, window, *shape], dtype), trainable=False, name=name)

        self._states = tuple(ring(s.shape, s.dtype, "carry_state") for s in tf.nest.flatten(network.state_spec))
        self._frames = tf.nest.map_structure(
            lambda s: ring(s.shape, s.dtype, "carry_frames"), network.input_tensor_spec
        )
        self._resets = ring([], tf.bool, "carry_resets")
        self._seen = tf.Variable([False], trainable=False, name="carry_seen")

    @property
    def carry(self):
        return (*self._states, *tf.nest.flatten(self._frames), self._resets, self._seen)

    def forward(self, observation, first, tape):
        if tape is not None:
            tape.watch(self._trained)
        frames = tf.nest.map_structure(_pushed, self._frames, observation)
        # what the window holds from before the first frame is cut off there
        resets = _pushed(self._resets, (first | ~self._seen)[:, tf.newaxis])
        start = tuple(Carry(states[:, 0]) for states in self._states)
        y, state = self._network.core(self._network.encode(frames, resets), resets, start)
        outputs, value = self._network.heads(y[:, -1])
        return Forward(outputs, value[0], state, (frames, resets))

    def tape_gradients(self, tape, scores, forward):
        """For each score the gradients of the trained variables."""
        del forward
        return [
            tape.gradient(score, self._trained, unconnected_gradients=tf.UnconnectedGradients.ZERO) for score in scores
        ]

    def advance(self, gradients, forward):
        """`gradients` as they came; advances the carry."""
        frames, resets = forward.pending
        for states, carry in zip(self._states, forward.state, strict=True):
            states.assign(_pushed(states, carry.state[:, tf.newaxis]))
        tf.nest.map_structure(lambda variable, value: variable.assign(value), self._frames, frames)
        self._resets.assign(resets)
        self._seen.assign([True])
        return gradients


def _pushed(ring, value):
    """`ring` [1, K, ...] without its oldest entry and with `value` [1, 1, ...] as its newest."""
    return tf.concat([ring[:, 1:], tf.cast(value, ring.dtype)], axis=1)
