"""The program of an actor's process: some streams of an environment, and the network that acts for them."""

import collections
import itertools
import uuid

import gin
import numpy as np
import tensorflow as tf
import tf_keras

import keras_rtrl
from keras_rtrl.agents.policy import ActorCriticPolicy
from keras_rtrl.drivers import RolloutDriver
from keras_rtrl.train import building, games
from keras_rtrl.train.export import PolicyModule

Rollout = collections.namedtuple("Rollout", ["life", "start", "version", "state", "frames", "games"])
Rollout.__doc__ = """The message of an actor to the learner.

life: name of the time since the actor's process started; each new process has another.
start: steps of each stream since then, before this rollout.
version: version of the weights that acted.
state: the acting network's state before the first frame, of arrays [E, ...].
frames: Trajectory of arrays [E, T + 1, ...], as `RolloutDriver` gives it.
games: returns of the games that ended in this rollout.
"""

_DRAWS = 2**32  # of the policy's generator, between the starts of two processes of all actors


def environment_seed(seed, number, request):
    """The seed of an environment that an actor makes at a request: `seed` for the first of all, as on one machine."""
    if number == request == 0:
        return seed
    return int(np.random.SeedSequence([seed, number, request]).generate_state(1)[0])


def common_arguments(options):
    """The arguments of every actor after its number: this version, the loaded configuration, its number of threads."""
    return keras_rtrl.__version__, gin.config_str(), options.cpus


class Actor:
    """Base of what runs in Ray's hands.

    Args:
      number: which of the actors this is, from 0.
      version: of keras_rtrl, which must be the learner's.
      configuration: the gin configuration, as text.
      threads: of TensorFlow.

    Raises:
      RuntimeError: another version of keras_rtrl.
    """

    _number = None  # Ray asks for the repr of an actor that could not be made

    def __init__(self, number, version, configuration, threads):
        self._number = number
        if keras_rtrl.__version__ != version:
            raise RuntimeError(f"this node has keras_rtrl {keras_rtrl.__version__}, the learner {version}")
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        gin.clear_config()
        gin.parse_config(configuration)

    def __repr__(self):
        return f"{type(self).__name__}({self._number})"


class RolloutActor(Actor):
    """Makes rollouts of E streams on request.

    Args:
      number, version, configuration, threads: as Actor.
      num_actors: number of actors.
      num_streams: E.
      rollout_length: T.
      seed: the run's.
      generator: state of the generator that the first actor draws its first actions from.
    """

    def __init__(
        self, number, version, configuration, threads, num_actors, num_streams, rollout_length, seed, generator
    ):
        super().__init__(number, version, configuration, threads)
        self._num_actors, self._num_streams, self._rollout_length = num_actors, num_streams, rollout_length
        self._seed, self._generator = seed, generator
        self._version = self._driver = None

    def _begin(self, request):
        """Makes the environment, whose streams begin their first episodes, and the network."""
        seed = environment_seed(self._seed, self._number, request)
        tf_keras.utils.set_random_seed(seed)  # of simulators that draw from the process' own generators too
        env = building.environment(seed, streams=self._num_streams)
        self._network = building.network(env)
        policy = ActorCriticPolicy(env.time_step_spec(), env.action_spec(), self._network)
        policy.generator.reset(self._generator)
        policy.generator.skip((request * self._num_actors + self._number) % 2**30 * _DRAWS)
        self._env, self._frames = env, []
        self._driver = RolloutDriver(env, policy, [self._frames.append], num_steps=self._rollout_length)
        self._state = policy.get_initial_state(self._num_streams)
        # not the request, which another process may have begun with that nothing more is known of
        self._life, self._start = uuid.uuid4().hex, 0

    def rollout(self, request, version, weights):
        """The next rollout.

        Args:
          request: number of this call among those of this actor; a fresh process draws its seed from it.
          version: of the weights.
          weights: list of arrays, as the network's variables.

        Returns:
          Rollout.
        """
        if self._driver is None:
            self._begin(request)
        if version != self._version:
            for variable, value in zip(self._network.variables, weights, strict=True):
                variable.assign(value)
            self._version = version
        state, start = self._state, self._start
        _, self._state = self._driver.run(None, None)
        self._start += self._rollout_length
        frames = self._frames.pop()
        games = [game_return for game_return, _, _ in self._env.finished_games()]
        return Rollout(self._life, start, version, *_arrays((state, frames)), games)


class GameActor(Actor):
    """Plays whole games greedily, some steps on request.

    Args:
      number, version, configuration, threads: as Actor.
      seed: of the environment.
      quota: number of games of each stream.
      max_steps: agent steps after which a game is cut off.
    """

    def __init__(self, number, version, configuration, threads, seed, quota, max_steps):
        super().__init__(number, version, configuration, threads)
        self._env = building.environment(seed, streams=len(quota), evaluation=True)
        self._quota, self._max_steps, self._games, self._played = quota, max_steps, None, None

    def play(self, weights, steps):
        """Up to `steps` steps more.

        Args:
          weights: list of arrays, as the network's variables; the same in every call.
          steps: int.

        Returns:
          The games so far: a list of (return, length in agent steps, whether it was cut off) a stream.
        """
        if self._games is None:
            network = building.network(self._env)
            for variable, value in zip(network.variables, weights, strict=True):
                variable.assign(value)
            self._games = games.whole_games(self._env, PolicyModule(network), self._quota, self._max_steps)
        for played in itertools.islice(self._games, steps):
            self._played = played
        return self._played


def _arrays(nest):
    return tf.nest.map_structure(np.asarray, nest)
