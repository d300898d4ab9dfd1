"""What all agents share: an actor-critic network, its policies, an optimiser, settings."""

from typing import Any

import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.policies import greedy_policy
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.typing import types

from keras_rtrl._checks import fits_memory, shown
from keras_rtrl._keras import keras
from keras_rtrl.agents.experience import checked, is_finite
from keras_rtrl.agents.policy import ActorCriticPolicy, check_network
from keras_rtrl.agents.reward_scaler import RewardScaler
from keras_rtrl.distributed.replicas import Streams, StreamVariables
from keras_rtrl.networks import ActorCriticNetwork


class ActorCriticAgent(tf_agent.TFAgent):
    """Base of agents on an `ActorCriticNetwork`.

    A subclass names its `config_class`, a dataclass with `gamma`, `optimizer_steps` and maybe `normalize_rewards`, and
    its `extra_class`, the namedtuple of scalars that a LossInfo's `extra` is. It owns the learner's carry of B streams:
    row b of every batch of experience must be stream b, and each must begin with the frame that the last one ended
    with.

    Made in the scope of a tf.distribute strategy, as network and optimiser before it, the agent learns on all of its R
    replicas. Replica k has the streams k B / R to (k + 1) B / R - 1, their experience and their carry; gradients are
    summed, and all that one device computes from the whole batch is computed from the whole batch. train() and loss()
    are called outside the replicas' functions, in every process with the rows of its own streams.
    """

    config_class = None
    extra_class = None
    frames_needed = None  # frames of every experience, None for any number
    predicts = False  # returns of a task without games, by `prediction` in a LossInfo's `extra`

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        network: ActorCriticNetwork,
        optimizer: keras.optimizers.Optimizer,
        *,
        num_streams: int,
        config: Any = None,
        train_step_counter: tf.Variable | None = None,
        name: str | None = None,
    ):
        """Creates the agent, the network's variables, the optimiser's and the carry.

        Args:
          time_step_spec: TimeStep of specs; the observation is the history dict of `ActorCriticNetwork`.
          action_spec: BoundedTensorSpec, as the network's.
          network: `keras_rtrl.networks.ActorCriticNetwork`.
          optimizer: a tf-keras optimiser; takes `config.optimizer_steps` steps a call of train().
          num_streams: B, number of streams of every batch of experience; under a strategy those of all replicas.
          config: the agent's settings; None for the defaults.
          train_step_counter: int64 variable, counts calls of train(); None for the global step.
          name: the agent's name, as of any tf.Module; None: from the class.

        Raises:
          ValueError: num_streams that is no whole number of at least 1 or no multiple of the strategy's replicas, an
            action that the agent does not take, or a network or an optimiser made in another scope.
          TypeError: settings of another agent, or an argument of another kind.
        """
        tf.Module.__init__(self, name=name)
        _check_parts(time_step_spec, action_spec, network, optimizer, train_step_counter)
        self._streams = Streams(num_streams)
        self._num_streams = self._streams.count
        self._config = self.config_class() if config is None else config
        if not isinstance(self._config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {shown(config)}")
        network.create_variables()
        row = sum(part.shape.num_elements() * part.dtype.size for part in tf.nest.flatten(network.get_initial_carry(1)))
        fits_memory(f"num_streams={self._num_streams}: the carry", self._streams.worker * row)
        collect_policy = ActorCriticPolicy(time_step_spec, action_spec, network, name="collect_policy")
        super().__init__(
            time_step_spec,
            action_spec,
            greedy_policy.GreedyPolicy(collect_policy, name="policy"),
            collect_policy,
            train_sequence_length=self.frames_needed,
            train_step_counter=train_step_counter,
        )
        self._network = network
        self._optimizer = optimizer
        self._trained = tuple(self._trained_variables())
        scaled = getattr(self._config, "normalize_rewards", False)
        self._reward_scaler = RewardScaler(self._config.gamma, num_streams) if scaled else None
        self._part_noise()
        collect_policy.reward_scaler = self._reward_scaler  # the unit of the values is saved with the policy
        optimizer.build(self._trained)  # here, since no variable can be made inside a compiled function
        made_here = tf.distribute.get_strategy().extended.variable_created_in_scope
        for name, variables in [("network", network.variables), ("optimizer", [optimizer.iterations])]:
            if not all(made_here(variable) for variable in variables):
                raise ValueError(f"{name} must be made in the strategy's scope that the agent is made in")

    def _trained_variables(self):
        return self._network.trainable_variables

    @property
    def config(self) -> Any:
        """The agent's settings."""
        return self._config

    @property
    def network(self) -> ActorCriticNetwork:
        """The actor-critic network."""
        return self._network

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The optimiser."""
        return self._optimizer

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the scalars in the LossInfo of train(): the loss, then the fields of its `extra`."""
        return ("loss", *self.extra_class._fields)

    @property
    def streams(self) -> Streams:
        """Where the streams are: `count` of all, those of each `replica`, of this `worker` process; `is_chief`."""
        return self._streams

    @property
    def carry(self) -> types.NestedVariable:
        """The learner's carry, as `ActorCriticNetwork.get_initial_carry`, of non-trainable variables [B, ...].

        With several replicas copies of what these have, as of the last `gather_streams`.
        """
        raise NotImplementedError

    @property
    def reward_scaler(self) -> RewardScaler | None:
        """The `RewardScaler`, None without one."""
        return self._reward_scaler

    def reset_carry(self) -> None:
        """Zeroes the carry of all streams, and the returns under way."""
        for variable in tf.nest.flatten(self.carry):
            variable.assign(tf.zeros_like(variable))
        if self._reward_scaler is not None:
            self._reward_scaler.reset()

    def gather_streams(self) -> None:
        """Brings the carry and the returns under way, as checkpoints hold them, up to date.

        To be called before saving, by every process; nothing to do with one replica.
        """
        if self._reward_scaler is not None:
            self._reward_scaler.gather()

    def scatter_streams(self) -> None:
        """Gives each replica its streams' part of what was restored; by every process, after restoring."""
        self._part_noise()
        if self._reward_scaler is not None:
            self._reward_scaler.scatter()

    def _part_noise(self):
        """Lets every process draw other actions, from one generator's state: each far ahead of the one before."""
        if self._streams.worker_index:
            self.collect_policy.generator.skip(self._streams.worker_index * 2**40)

    def _checked(self, experience, weights):
        """The experience as tensors; raises ValueError or TypeError if it does not fit."""
        if weights is not None:
            raise ValueError(
                f"{type(self).__name__} takes no weights: row b of the batch is stream b, each counted once"
            )
        experience = checked(experience, self.collect_data_spec, self.frames_needed)
        rows = experience.step_type.shape[0]
        if rows not in (None, self._streams.worker):
            raise ValueError(f"experience must hold num_streams={self._streams.worker} streams, got {rows}")
        return experience


def _check_parts(time_step_spec, action_spec, network, optimizer, counter):
    check_network(time_step_spec, action_spec, network)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer must be an optimiser of tf_keras.optimizers, got {shown(optimizer)}")
    if counter is not None and not (isinstance(counter, tf.Variable) and counter.dtype.is_integer):
        raise TypeError(f"train_step_counter must be an integer tf.Variable or None, got {shown(counter)}")


class RolloutAgent(ActorCriticAgent):
    """Base of agents that learn from rollouts of B streams, experience [B, T + 1]; the carry is the core's."""

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: types.NestedTensorSpec,
        network: ActorCriticNetwork,
        optimizer: keras.optimizers.Optimizer,
        **arguments: Any,
    ):
        """As `ActorCriticAgent`."""
        super().__init__(time_step_spec, action_spec, network, optimizer, **arguments)
        rows = tf.nest.map_structure(lambda part: part[0], network.get_initial_carry(1))
        names = [f"carry_{i}" for i in range(len(tf.nest.flatten(rows)))]
        self._by_stream = StreamVariables(self._streams, names, rows)
        self._carry = self._by_stream.whole  # for checkpoints

    @property
    def carry(self) -> types.NestedVariable:
        return self._by_stream.packed(self._carry)

    def reset_carry(self) -> None:
        self._by_stream.reset()
        if self._reward_scaler is not None:
            self._reward_scaler.reset()

    def gather_streams(self) -> None:
        self._by_stream.gather()
        super().gather_streams()

    def scatter_streams(self) -> None:
        self._by_stream.scatter()
        super().scatter_streams()

    def core_cotangents(self, experience: trajectory.Trajectory, carry: types.NestedTensor) -> tf.Tensor:
        """Gradient [B, T, W] of train()'s loss, before clipping, with respect to the core's outputs; assigns nothing.

        PPO's is that of all its minibatches as one, before the first step on them.

        Args:
          experience: Trajectory of tensors [B, T + 1], as train() takes it. There must be one replica.
          carry: before it, in the structure of `carry`, or without traces.
        """
        raise NotImplementedError

    def stream_values(self) -> types.NestedTensor:
        """Tensors [streams, ...] for this process' streams: the carry, and the returns so far if rewards are scaled."""
        return tuple(kept.local() for kept in self._kept())

    def assign_stream_values(self, values: types.NestedTensor) -> None:
        """Puts values as `stream_values` gives them in the place of those."""
        for kept, value in zip(self._kept(), values, strict=True):
            kept.assign_local(value)

    def _zero_if_finite(self, carry, dtype):
        """0, or NaN if the carry after a rollout is not finite; to be added to what is reported.

        Traces of the kernel are not looked at: they are large, and if they are not finite no gradient is.
        """
        finite = is_finite([(part.state, part.r) for part in carry])
        return tf.where(finite, tf.zeros([], dtype), tf.constant(float("nan"), dtype))

    def _kept(self):
        return (self._by_stream, *(() if self._reward_scaler is None else (self._reward_scaler.by_stream,)))

    def _checked(self, experience, weights):
        experience = super()._checked(experience, weights)
        # of use only if the static shape is unknown
        dynamic = tf.shape(experience.step_type)
        tf.debugging.assert_equal(dynamic[0], self._streams.worker, "experience must hold num_streams streams")
        tf.debugging.assert_greater(dynamic[1], 1, "experience must hold at least 2 frames (T + 1)")
        return experience
