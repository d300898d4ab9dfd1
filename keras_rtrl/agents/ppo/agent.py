"""PPO with a recurrent core trained by RTRL (Elelimy et al., NeurIPS 2024)."""

import collections
from typing import Any

import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.typing import types

from keras_rtrl._keras import keras
from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.agents.experience import is_finite, only_if, played
from keras_rtrl.agents.ppo import losses
from keras_rtrl.agents.ppo.config import PPOConfig
from keras_rtrl.distributed.replicas import all_sum, on_host
from keras_rtrl.engine import Carry
from keras_rtrl.networks import ActorCriticNetwork
from keras_rtrl.networks.normalizer import clipped

PPOExtra = collections.namedtuple("PPOExtra", [*losses.PPOTerms._fields, "gradient_norm"])

# All that a minibatch is made of, one entry a chunk: leading dimensions [chunks, C], of the carry [chunks].
PPOBatch = collections.namedtuple(
    "PPOBatch", ["carry", "observation", "reset", "boundary", "action", "log_probability", "value", "advantage"]
)


class RTRLPPOAgent(RolloutAgent):
    """Clipped PPO over an endless rollout of B streams, on any core.

    A rollout of T steps is cut into chunks of C. What is stored of the recurrence is the carry at each chunk's start
    alone: state, and traces under gradient="rtrl", with which the gradient of a chunk reaches back over all the
    stream's history. Minibatches are shuffled chunks. The stored carry is that of the acting parameters (stale as the
    epochs go by) unless the config asks to compute it again.

    The agent owns the learner's carry of each stream: row b of every batch must be stream b, and each rollout must
    begin with the frame the last one ended with.
    """

    config_class = PPOConfig
    extra_class = PPOExtra

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
        seed = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64)
        seed = self._streams.from_first(seed)
        self._generator = on_host(lambda: tf.random.Generator.from_seed(seed))

    def store_bytes(self, num_steps: int) -> int:
        """Bytes of the carries stored of a rollout of `num_steps` steps: one a chunk and stream.

        Raises:
          ValueError: chunks that do not fit into the rollout, or minibatches into the chunks.
        """
        return self._num_chunks(num_steps) * sum(int(tf.size(v)) * v.dtype.size for v in self._carry)

    def _num_chunks(self, num_steps):
        """Chunks a stream."""
        config = self._config
        if num_steps % config.chunk:
            raise ValueError(f"chunk must divide the rollout's {num_steps} steps, got chunk={config.chunk}")
        count = num_steps // config.chunk
        if self._num_streams * count % config.num_minibatches:
            raise ValueError(
                f"num_minibatches must divide the {self._num_streams * count} chunks of a rollout ({self._num_streams} "
                f"streams x {num_steps} steps / {config.chunk}), got num_minibatches={config.num_minibatches}"
            )
        return count

    def _checked(self, experience, weights):
        experience = super()._checked(experience, weights)
        if experience.step_type.shape[1] is None:
            raise ValueError("experience must be [B, T + 1, ...] with T known, since chunks are cut from it")
        self._num_chunks(experience.step_type.shape[1] - 1)
        return experience

    def prepare(
        self, experience: trajectory.Trajectory, carry: tuple[Carry, ...] | None = None
    ) -> tuple[PPOBatch, tuple[Carry, ...]]:
        """What the epochs learn from, under the current parameters; assigns nothing.

        Args:
          experience: Trajectory [B, T + 1].
          carry: before it; None: the agent's own.

        Returns:
          PPOBatch of all B T / C chunks, constants all, and the carry after frame T - 1.
        """
        step, boundary = played(experience)
        carry = self._by_stream.values() if carry is None else carry
        starts, values, last_value, carry = self._unroll(experience, carry)
        reward, discount = tf.cast(self._reward(step), values.dtype), tf.cast(step.discount, values.dtype)
        if self._reward_scaler is not None:
            reward = self._reward_scaler(reward)
        advantage = losses.gae(
            reward, self._config.gamma * discount, values, last_value, boundary, self._config.lambda_value
        )
        actions = self._network.actions
        frames = PPOBatch(
            carry=(),
            observation=step.observation,
            reset=tf.equal(step.step_type, ts.StepType.FIRST),
            boundary=boundary,
            action=step.action,
            log_probability=actions.log_probability(actions.from_info(step.policy_info), step.action),
            value=values,
            advantage=advantage,
        )
        chunks = tf.nest.map_structure(lambda x: tf.reshape(x, [-1, self._config.chunk, *x.shape[2:]]), frames)
        return chunks._replace(carry=starts), carry

    def _reward(self, step):
        limit = self._config.reward_clipping
        return step.reward if limit is None else clipped(step.reward, -limit, limit)

    def _unroll(self, experience, start):
        """Runs the network over a rollout from the carry `start`, chunk by chunk.

        Returns:
          (carry at each chunk's start [B T / C, ...], values [B, T], value [B] of frame T, carry after frame T - 1),
          constants all.
        """
        network, size, streams = self._network, self._config.chunk, self._streams.replica
        reset = tf.equal(experience.step_type, ts.StepType.FIRST)
        features = tf.stop_gradient(network.encode(experience.observation, reset))
        count = (features.shape[1] - 1) // size

        def chunks_first(x):
            """[B, T + 1, ...] to [chunks a stream, B, C, ...], without frame T."""
            x = tf.reshape(x[:, :-1], [streams, count, size, *x.shape[2:]])
            return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])

        def streams_first(x):
            """[chunks a stream, B, ...] to [B chunks, ...]."""
            x = tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
            return tf.reshape(x, [streams * count, *x.shape[2:]])

        inputs = chunks_first(features), chunks_first(reset)

        def body(i, carry, ys, starts):
            starts = tf.nest.map_structure(lambda array, part: array.write(i, part), starts, carry)
            y, carry = network.core(inputs[0][i], inputs[1][i], carry)
            return i + 1, tf.nest.map_structure(tf.stop_gradient, carry), ys.write(i, tf.stop_gradient(y)), starts

        y_shape = [streams, size, network.recurrent_core.output_size]
        _, carry, ys, starts = tf.while_loop(
            lambda i, *_: i < count,
            body,
            (
                tf.constant(0),
                start,
                tf.TensorArray(features.dtype, count, element_shape=y_shape),
                tf.nest.map_structure(lambda part: tf.TensorArray(part.dtype, count, element_shape=part.shape), start),
            ),
            maximum_iterations=count,
            parallel_iterations=1,
        )
        starts = tf.nest.map_structure(lambda array: streams_first(array.stack()), starts)
        y = tf.reshape(streams_first(ys.stack()), [streams, count * size, y_shape[-1]])
        last_y, _ = network.core(features[:, -1:], reset[:, -1:], network.state_of(carry))
        _, values = network.heads(y)
        _, last_value = network.heads(last_y)
        return starts, tf.stop_gradient(values), tf.stop_gradient(last_value[:, 0]), carry

    def batch_loss(self, batch: PPOBatch) -> tuple[tf.Tensor, losses.PPOTerms]:
        """Loss of a minibatch, differentiable with respect to the network's parameters.

        Args:
          batch: PPOBatch.

        Returns:
          (loss, PPOTerms), scalars: policy_loss + value_pred_loss_coef value_loss - entropy_regularization entropy.
        """
        return self._loss_of(batch, self._outputs(batch))

    def core_cotangents(self, experience: trajectory.Trajectory, carry: tuple[Carry, ...]) -> tf.Tensor:
        batch, _ = self.prepare(experience, carry)
        y = self._outputs(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            loss, _ = self._loss_of(batch, y)
        return tf.reshape(tape.gradient(loss, y), [self._streams.replica, -1, y.shape[-1]])

    def _outputs(self, batch):
        """The core's outputs [chunks, C, W]."""
        features = self._network.encode(batch.observation, batch.reset)
        return self._network.core(features, batch.reset, batch.carry)[0]

    def _loss_of(self, batch, y):
        """(loss, PPOTerms) of a minibatch, from the core's outputs."""
        config, actions = self._config, self._network.actions
        outputs, values = self._network.heads(y)
        terms = losses.ppo_terms(
            actions.log_probability(outputs, batch.action) - batch.log_probability,
            actions.entropy(outputs),
            values,
            batch.value,
            batch.advantage,
            batch.advantage + batch.value,
            batch.boundary,
            config.importance_ratio_clipping,
            config.value_clipping,
        )
        loss = (
            terms.policy_loss
            + config.value_pred_loss_coef * terms.value_loss
            - config.entropy_regularization * terms.entropy
        )
        return loss, terms

    def _minibatch(self, batch):
        """Numbers of a LossInfo and the clipped gradients of a minibatch; `batch` is this replica's part of it."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._trained)
            loss, terms = self.batch_loss(batch)
        gradients = tape.gradient(loss, self._trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients, loss, terms = all_sum((gradients, loss, terms))
        norm = tf.linalg.global_norm(gradients)
        if self._config.gradient_clipping is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._config.gradient_clipping, use_norm=norm)
        return tf.stack([loss, *terms, norm]), gradients

    def _train(self, experience, weights=None):
        experience = self._checked(experience, weights)
        config, streams = self._config, self._streams
        rows = streams.split(experience)
        before = self._kept_values()
        first, carry, start = streams.run(self._begin, rows)
        chunks = self._num_streams * (experience.step_type.shape[1] - 1) // config.chunk

        # MirroredStrategy sums over replicas outside loops only: they are around the replicas' functions, not inside
        def epoch(i, sums):
            batch = first
            if not (config.stale_gradient and config.stale_target):
                batch = streams.run(self._refreshed, i, rows, first)
            # Philox bits by name: a generator's own numbers differ under XLA
            seed = self._generator.make_seeds()[:, 0]
            bits = tf.random.stateless_uniform([chunks], seed, None, None, tf.int32, alg="philox")
            order = tf.reshape(tf.argsort(bits, stable=True), [config.num_minibatches, -1])

            def step(j, sums):
                return j + 1, sums + streams.one(streams.run(self._step, batch, order[j]))

            _, sums = tf.while_loop(lambda j, _: j < config.num_minibatches, step, (0, sums), parallel_iterations=1)
            return i + 1, sums

        sums = tf.zeros([len(self.loss_names)], streams.one(first.value).dtype) + streams.one(start)
        _, sums = tf.while_loop(lambda i, _: i < config.num_epochs, epoch, (0, sums), parallel_iterations=1)
        only_if(is_finite(tf.unstack(sums)), lambda: streams.run(self._end, rows, carry), lambda: self._restore(before))
        self.train_step_counter.assign_add(1)
        return _loss_info(sums / config.optimizer_steps)

    def _begin(self, experience):
        """`prepare`, the rewards' scale brought up to date before; and 0, or NaN if a carry is not finite."""
        if self._reward_scaler is not None:
            step, boundary = played(experience)
            self._reward_scaler.update(self._reward(step), boundary)
        batch, carry = self.prepare(experience)
        return batch, carry, all_sum(self._zero_if_finite(carry, batch.value.dtype))

    def _changed(self):
        """Variables that train() changes before it knows whether all of its steps are finite."""
        scaler = () if self._reward_scaler is None else self._reward_scaler.statistics.variables
        return (*self._trained, *self._optimizer.variables, *scaler)

    def _kept_values(self):
        """Values to go back to: those of `_changed`, and the returns under way as every replica has them."""
        returns = None if self._reward_scaler is None else self._streams.run(self._reward_scaler.by_stream.values)
        return [variable.value() for variable in self._changed()], returns

    def _restore(self, before):
        values, returns = before
        for variable, value in zip(self._changed(), values, strict=True):
            variable.assign(value)
        if returns is not None:
            self._streams.run(self._reward_scaler.by_stream.assign, returns)

    def _refreshed(self, epoch, experience, first):
        """The PPOBatch of an epoch: `first`, and from the second epoch on what is not to be stale made anew."""

        def anew():
            batch, (new, _) = first, self.prepare(experience)
            if not self._config.stale_gradient:
                batch = batch._replace(carry=new.carry)
            if not self._config.stale_target:
                batch = batch._replace(value=new.value, advantage=new.advantage)
            return batch

        return tf.cond(epoch > 0, anew, lambda: first)

    def _step(self, batch, order):
        """One step of the optimiser on the chunks `order`, numbers among those of all streams."""
        if self._streams.replica < self._num_streams:
            count = batch.reset.shape[0]
            order -= count * tf.distribute.get_replica_context().replica_id_in_sync_group
            order = tf.boolean_mask(order, (order >= 0) & (order < count))  # this replica's, any number of them
        numbers, gradients = self._minibatch(tf.nest.map_structure(lambda x: tf.gather(x, order), batch))
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True), skip_gradients_aggregation=True)
        return numbers

    def _end(self, experience, carry):
        self._by_stream.assign(carry)
        self._network.update_normalizer(tf.nest.map_structure(lambda x: x[:, :-1], experience.observation))

    def _loss(self, experience, weights=None, training=False):
        del training
        experience = self._checked(experience, weights)
        streams = self._streams
        numbers = streams.run(lambda rows: self._minibatch(self.prepare(rows)[0])[0], streams.split(experience))
        return _loss_info(streams.one(numbers))


def _loss_info(numbers):
    loss, *extra = tf.unstack(numbers)
    return tf_agent.LossInfo(loss, PPOExtra(*extra))
