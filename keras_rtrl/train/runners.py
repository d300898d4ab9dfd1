"""Ways to collect and to learn: with a simulator outside TensorFlow, or with a task inside its graph."""

import collections
import concurrent.futures

import numpy as np
import tensorflow as tf
from tf_agents.environments import tf_environment

from keras_rtrl import distributed
from keras_rtrl._errors import UsageError
from keras_rtrl.agents.base import RolloutAgent
from keras_rtrl.agents.policy import ActorCriticPolicy
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.environments import registry
from keras_rtrl.environments.halves import joined
from keras_rtrl.train import actors, config
from keras_rtrl.train.metrics import ERRORS

MUCH = 1.5e7  # steps times weights of an optimiser step, for `learns_natively`
HORIZON = 200  # cumulants that are summed to a return; its error is known so many steps later

Outcome = collections.namedtuple("Outcome", ["losses", "returns", "errors"])
Outcome.__doc__ = """The results of some updates.

losses: float array [updates, L] in the order of the agent's loss_names.
returns: list of the returns of finished games.
errors: float array [steps, E] in the order of the runner's error_names.
"""


def make_runner(env, agent, rollout_length, max_updates, acting=None):
    """The runner that fits: Prediction for an agent that predicts, else InGraph for a TFEnvironment, else Simulator.

    `acting`: a network like the agent's, to act while the agent learns: Overlapping instead of Simulator.

    Raises:
      UsageError: a rollout that the agent does not take, or, for an agent that predicts, an environment or settings
        that it cannot be scored with; an agent or an environment that `acting` is not for.
    """
    _check_length(agent, rollout_length)
    if acting is not None:
        if isinstance(env, tf_environment.TFEnvironment):
            what = registry.described_in_graph(config.text("environment.name", ""))
            raise UsageError(f"train.overlap must be False for {what}, got True")
        if not isinstance(agent, RolloutAgent):
            raise UsageError(f"train.overlap must be False for a {type(agent).__name__}, which learns at every step")
        return Overlapping(env, agent, rollout_length, acting)
    if agent.predicts:
        return Prediction(env, agent, rollout_length, max_updates)
    if isinstance(env, tf_environment.TFEnvironment):
        return InGraph(env, agent, rollout_length, max_updates)
    return Simulator(env, agent, rollout_length)


def _check_length(agent, rollout_length):
    length = agent.train_sequence_length
    if length not in (None, rollout_length + 1):
        raise UsageError(
            f"train.rollout_length must be {length - 1} for a {type(agent).__name__}, got {rollout_length}"
        )


def make_actors(env, agent, rollout_length, options, seed, same_actions):
    """The runner of actors on Ray; `env` is one of their environments.

    `same_actions`: the first actor draws the actions that the agent's own policy would draw.

    Raises:
      UsageError: an environment that cannot run in actors, an agent or a rollout that do not fit, no Ray, no cluster.
    """
    if isinstance(env, tf_environment.TFEnvironment):
        raise UsageError(
            f"actors.num_actors must be 0 for {registry.described_in_graph(config.text('environment.name', ''))}, got "
            f"{options.num_actors}"
        )
    if not isinstance(agent, RolloutAgent):
        raise UsageError(f"actors.num_actors must be 0 for a {type(agent).__name__}, which learns at every step")
    _check_length(agent, rollout_length)
    env.close()
    generator = agent.collect_policy.generator if same_actions else tf.random.Generator.from_seed(seed)
    return Actors(agent, options, rollout_length, seed, generator.state.numpy())


class Simulator:
    """Steps a PyEnvironment by a RolloutDriver and trains on each rollout.

    A simulator cannot be saved: after a restore its streams begin new episodes, whose FIRST resets the carry.
    """

    max_updates = 1
    keeps_streams = False  # a restore does not restore them
    error_names = extra_names = ()
    carry = ()  # carries of streams that the agent does not hold

    def __init__(self, env, agent, rollout_length, policy=None):
        self._env = env
        self._train = tf.function(agent.train, autograph=False)
        self._rollouts = []
        observers = [self._rollouts.append]
        self._driver = RolloutDriver(env, policy or agent.collect_policy, observers, num_steps=rollout_length)
        self.extra = {}
        self.state = ()  # nothing to checkpoint

    def collect(self):
        """The next rollout, not learnt from."""
        return self._rollout()

    def run(self, updates, counters):
        """One update. Returns its Outcome."""
        del updates, counters
        rollout, returns = self._made()
        return Outcome(self._learned(rollout), returns, np.zeros([0, 0]))

    def close(self):
        self._env.close()

    def _rollout(self):
        self._driver.run()
        return self._rollouts.pop()

    def _made(self):
        """The next rollout, and the returns of the games that ended in it."""
        return self._rollout(), [game_return for game_return, _, _ in self._env.finished_games()]

    def _learned(self, rollout):
        loss_info = self._train(rollout)
        return np.array([[loss_info.loss, *loss_info.extra]], np.float32)


class Overlapping(Simulator):
    """As Simulator, but makes the next rollout while the agent learns from the last one.

    A network of its own acts, with the weights that the agent's had before the last update. So runs repeat exactly,
    however fast either side is.
    """

    def __init__(self, env, agent, rollout_length, network):
        specs, generator = (env.time_step_spec(), env.action_spec()), agent.collect_policy.generator
        super().__init__(env, agent, rollout_length, ActorCriticPolicy(*specs, network, generator=generator))
        self._weights = list(zip(network.variables, agent.network.variables, strict=True))
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._next = None

    def run(self, updates, counters):
        """As Simulator.run."""
        del updates, counters
        self._act_by_newest()
        rollout, returns = self._next or self._made()
        making = self._thread.submit(self._made)
        losses = self._learned(rollout)
        self._next = making.result()
        return Outcome(losses, returns, np.zeros([0, 0]))

    def collect(self):
        """As Simulator.collect."""
        self._act_by_newest()
        return super().collect()

    def close(self):
        """Waits for a rollout that is being made."""
        self._thread.shutdown()
        super().close()

    def _act_by_newest(self):
        for variable, newest in self._weights:
            variable.assign(newest)


class Actors:
    """Trains on the rollouts of actors on Ray, as `keras_rtrl.distributed` has them.

    Simulators cannot be saved: after a restore all actors are new, and their streams begin new episodes.
    """

    max_updates = 1
    keeps_streams = False
    error_names = ()
    extra_names = ("lag", "queue", "object_bytes", "restarts", "gaps")

    def __init__(self, agent, options, rollout_length, seed, generator):
        self._agent = agent
        self._count = agent.streams.worker // options.num_streams
        self._train = tf.function(agent.train, autograph=False)
        sizes = (options.num_actors, options.num_streams, rollout_length)
        self._bank = distributed.StreamBank(
            agent, num_actors=options.num_actors, num_streams=options.num_streams, rollout_length=rollout_length
        )
        arguments = (*actors.common_arguments(options), *sizes, seed, generator)
        try:
            self._fleet = distributed.Fleet(
                actors.RolloutActor,
                arguments,
                num_actors=options.num_actors,
                queue=options.queue,
                **options.for_ray(),
            )
        except (ImportError, distributed.ActorFailure) as error:
            raise UsageError(str(error)) from error
        self.carry = self._bank.variables
        self._started, self._failure = False, None
        self.extra = {}
        self.state = ()

    def run(self, updates, counters):
        """As Simulator.run."""
        del updates
        if self._failure is not None:
            raise self._failure
        if not self._started:  # by the weights that a checkpoint may have restored
            self._publish()
            self._fleet.start()
            self._started = True
        deliveries, waiting = self._fleet.take(self._count, self._bank.fits)
        numbers = [delivery.actor for delivery in deliveries]
        rollouts = [delivery.rollout for delivery in deliveries]
        self._bank.load(numbers, rollouts)
        loss_info = self._train(joined([rollout.frames for rollout in rollouts]))
        self._bank.store(numbers, rollouts)
        losses = np.array([[loss_info.loss, *loss_info.extra]], np.float32)
        lag = self._fleet.version - np.mean([rollout.version for rollout in rollouts])
        try:
            self._publish()
            self._fleet.request(numbers)
        except distributed.ActorFailure as error:  # this update counts, there will be no other
            self._failure = error
        sent = [x.nbytes for rollout in rollouts for x in tf.nest.flatten((rollout.frames, rollout.state))]
        weights = [x.shape.num_elements() * x.dtype.size for x in self._agent.network.variables]
        self.extra = {
            "lag": float(lag),
            "queue": waiting,
            "object_bytes": sum(sent) + sum(weights),
            "restarts": self._bank.restarts,
            "gaps": self._bank.gaps,
        }
        returns = [game_return for rollout in rollouts for game_return in rollout.games]
        return Outcome(losses, returns, np.zeros([0, 0]))

    def _publish(self):
        self._fleet.publish([variable.numpy() for variable in self._agent.network.variables])

    def close(self):
        """Ends the actors."""
        self._fleet.close()


def learns_natively(agent, steps):
    """Whether updates on `steps` steps are faster with the native op than inside the XLA program that collects.

    XLA spares the start of each operation, which counts if an optimiser step learns little; the op is several times as
    fast at the traces, which counts if it learns much.
    """
    steps //= getattr(agent.config, "num_minibatches", 1)
    weights = sum(variable.shape.num_elements() for variable in agent.network.trainable_variables)
    return steps * weights >= MUCH and agent.network.recurrent_core.runs_natively()


class InGraph:
    """Runs up to `max_updates` rollouts and updates of a TFEnvironment in one call.

    XLA compiles all of it, or the rollouts alone if the agent `learns_natively`.
    """

    keeps_streams = True
    error_names = extra_names = carry = ()

    def __init__(self, env, agent, rollout_length, max_updates):
        self._env, self._agent = env, agent
        self.max_updates = max_updates
        rollout = RolloutDriver(env, agent.collect_policy, num_steps=rollout_length).rollout
        self._shape = (env.batch_size, rollout_length)
        self._policy_state = tuple(
            tf.Variable(part, trainable=False, name="policy_state")
            for part in tf.nest.flatten(agent.collect_policy.get_initial_state(env.batch_size))
        )
        native = learns_natively(agent, env.batch_size * rollout_length)
        self._rollout = tf.function(rollout, jit_compile=True, autograph=False) if native else rollout
        self._run = tf.function(self._updates, jit_compile=not native, autograph=False)
        self._collect = tf.function(self._next, autograph=False)
        self.extra = {}
        env.current_time_step()  # begins the streams, outside the compiled function
        self.state = (*env.variables, *self._policy_state)

    def collect(self):
        """As Simulator.collect."""
        return self._collect()

    def run(self, updates, counters):
        """As Simulator.run, for any `updates` up to max_updates."""
        losses, *records = (x.numpy()[:updates] for x in self._run(tf.constant(updates)))
        return self._outcome(losses, records, counters)

    def close(self):
        """There is nothing to end."""

    def _records(self):
        """(dtype, shape) of what `_record` gives."""
        return [(tf.float32, self._shape), (tf.bool, self._shape)]

    def _record(self, before, rollout):
        """What of one rollout leaves the compiled function; `before` is what `_before` gave."""
        del before
        return [rollout.reward[:, :-1], tf.equal(rollout.next_step_type[:, :-1], 2)]

    def _before(self):
        """What must be read before a rollout."""

    def _outcome(self, losses, records, counters):
        rewards, ends = records
        if not counters.running_returns:
            counters.running_returns = [0.0] * self._shape[0]
        returns = finished_returns(_in_time(rewards), _in_time(ends), counters.running_returns)
        return Outcome(losses, returns, np.zeros([0, 0]))

    def _next(self):
        rollout, _, state = self._rollout(self._env.current_time_step(), self._kept_state())
        self._keep_state(state)
        return rollout

    def _kept_state(self):
        spec = self._agent.collect_policy.policy_state_spec
        return tf.nest.pack_sequence_as(spec, [part.value() for part in self._policy_state])

    def _keep_state(self, state):
        for variable, value in zip(self._policy_state, tf.nest.flatten(state), strict=True):
            variable.assign(value)

    def _updates(self, updates):
        def body(i, time_step, policy_state, arrays):
            before = self._before()
            rollout, time_step, policy_state = self._rollout(time_step, policy_state)
            info = self._agent.train(rollout)
            losses = tf.stack([tf.cast(x, tf.float32) for x in (info.loss, *info.extra)])
            values = [losses, *self._record(before, rollout)]
            arrays = [array.write(i, value) for array, value in zip(arrays, values, strict=True)]
            return i + 1, time_step, policy_state, arrays

        arrays = [
            tf.TensorArray(dtype, self.max_updates, element_shape=shape)
            for dtype, shape in [(tf.float32, [len(self._agent.loss_names)]), *self._records()]
        ]
        _, _, state, arrays = tf.while_loop(
            lambda i, *_: i < updates,
            body,
            (tf.constant(0), self._env.current_time_step(), self._kept_state(), arrays),
            parallel_iterations=1,
        )
        self._keep_state(state)
        return tuple(array.stack() for array in arrays)


class Prediction(InGraph):
    """As InGraph, for an agent that predicts the return of a task without games: scores each step's prediction.

    With v_t the prediction before step t's update and G_t = sum over k >= 0 of gamma^k c_{t+k}, c_t the reward that
    follows observation t, the errors of a step are

      return_error: (v_t - G_t)^2,
      mean_predictor_error: (mean of G - G_t)^2,
      floor_error: (best prediction from the observations up to t - G_t)^2,

    each reported HORIZON steps late, when as many cumulants are known; the last steps of a run never are.
    """

    error_names = ERRORS

    def __init__(self, env, agent, rollout_length, max_updates):
        gamma = agent.config.gamma
        if not hasattr(env, "ideal_prediction"):
            raise UsageError("environment.name must be a prediction task such as TraceConditioning-v0 for this agent")
        if gamma**HORIZON > 1e-3:
            raise UsageError(f"gamma must be at most 0.96: returns are sums over {HORIZON} steps, got {gamma}")
        self._weights = gamma ** np.arange(HORIZON)
        self._prediction = agent.loss_names.index("prediction")
        super().__init__(env, agent, rollout_length, max_updates)

    def _records(self):
        return [(tf.float32, []), (tf.float32, [])]

    def _before(self):
        return self._env.ideal_prediction()

    def _record(self, before, rollout):
        return [rollout.reward[0, 0], before[0]]

    def _outcome(self, losses, records, counters):
        rewards, ideal = records
        steps = np.stack([losses[:, self._prediction], ideal, rewards], axis=1).astype(np.float64)
        steps = np.concatenate([np.reshape(counters.unscored, [-1, 3]), steps])
        scored = max(len(steps) - HORIZON, 0)
        counters.unscored = steps[scored:].tolist()
        if not scored:
            return Outcome(losses, [], np.zeros([0, 3]))
        windows = np.lib.stride_tricks.sliding_window_view(steps[:, 2], HORIZON)[:scored]
        returns = (windows * self._weights).sum(axis=1)  # as any other cut into calls sums it
        guesses = [steps[:scored, 0], np.full(scored, self._env.mean_return), steps[:scored, 1]]
        return Outcome(losses, [], np.square(np.stack(guesses, axis=1) - returns[:, np.newaxis]))


def _in_time(x):
    """[K, B, T] to [B, K T]."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def finished_returns(rewards, ends, running):
    """Returns of the episodes that end in rewards [B, T], in order; ends [B, T] is true at the step that ends one.

    `running`, a list of the returns so far of the B unfinished episodes, is updated.
    """
    finished = []
    for stream, (reward, end) in enumerate(zip(rewards, ends, strict=True)):
        total = running[stream] + np.cumsum(reward, dtype=np.float64)
        before = 0.0
        for t in np.flatnonzero(end):
            finished.append((t, stream, float(total[t] - before)))
            before = total[t]
        running[stream] = float(total[-1] - before)
    return [game_return for _, _, game_return in sorted(finished)]
