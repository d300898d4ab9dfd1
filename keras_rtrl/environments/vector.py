"""What the environments of vectorised simulators share: specs, checks of actions, and the record of finished games."""

import contextvars

import numpy as np
from tf_agents.environments import py_environment
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl._checks import shown


def stream_seeds(seed, num_envs):
    """One seed a stream, int32 [num_envs] in 0..2^31-1, no two the same.

    Args:
      seed: a non-negative int, from which the seeds are drawn so that vectors with neighbouring ints share no game;
        None for seeds never used before; or an array of num_envs seeds, which comes back as it is.
      num_envs: number of streams.

    Raises:
      ValueError: an array that does not hold num_envs different seeds.
    """
    if isinstance(seed, np.ndarray):
        if seed.dtype != np.int32 or seed.shape != (num_envs,) or len(np.unique(seed)) != num_envs or seed.min() < 0:
            raise ValueError(f"seed must be {num_envs} int32 >= 0, all different, got {seed.dtype} {seed.tolist()}.")
        return seed
    drawn = (np.random.SeedSequence(seed).generate_state(2 * num_envs + 8) >> 1).astype(np.int32)
    seeds, spare = drawn[:num_envs], np.setdiff1d(drawn[num_envs:], drawn[:num_envs])
    repeated = np.setdiff1d(np.arange(num_envs), np.unique(seeds, return_index=True)[1])
    seeds[repeated] = spare[: len(repeated)]
    return seeds


def checked_action(action, spec, num_envs):
    """`action` as an array [num_envs, ...] of the spec.

    Raises:
      ValueError: another shape; integers of the spec that come as anything else, or out of its bounds; floats that are
        not finite numbers.
    """
    action = np.asarray(action)
    if action.shape != (num_envs, *spec.shape):
        raise ValueError(f"action must have shape {(num_envs, *spec.shape)}, got {action.shape}.")
    whole = np.issubdtype(spec.dtype, np.integer)
    if action.dtype.kind not in ("iu" if whole else "iuf"):
        raise ValueError(f"action must be {'integers' if whole else 'numbers'}, got {action.dtype}: {shown(action)}.")
    if whole and ((action < spec.minimum) | (action > spec.maximum)).any():
        raise ValueError(f"action must lie in {spec.minimum}..{spec.maximum}, got {shown(action)}.")
    action = action.astype(spec.dtype, copy=False)
    if not whole and not np.isfinite(action).all():
        raise ValueError(f"action must be finite numbers, got {shown(action)}.")
    return action


# The numbers of the streams that are being made, if they are a part of another environment.
stream_numbers = contextvars.ContextVar("stream_numbers", default=None)


class VectorEnvironment(py_environment.PyEnvironment):
    """A batched PyEnvironment that also keeps the return and length of whole games.

    Subclasses implement `_reset` and `_step`, and give every step they take to `_count`.
    """

    frames_per_step = 1

    def __init__(self, num_envs, observation_spec, action_spec):
        super().__init__()
        self._num_envs = num_envs
        self._stream_numbers = stream_numbers.get() or list(range(num_envs))  # as the log names the streams
        self._observation_spec = observation_spec
        self._action_spec = action_spec
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)
        self._finished = []

    @property
    def batched(self):
        return True

    @property
    def batch_size(self):
        return self._num_envs

    def observation_spec(self):
        return self._observation_spec

    def action_spec(self):
        return self._action_spec

    def finished_games(self):
        """Whole games that ended since the last call, as a list of (return, length in agent steps, stream).

        The returns are sums of the simulator's own rewards, never clipped. A game cut short by `reset` is not listed.
        """
        finished, self._finished = self._finished, []
        return finished

    def _count(self, reward, played, over):
        """Adds one step [B] to the games' records: its reward, whether it was played, whether it ended the game."""
        self._returns += reward
        self._lengths += played
        for stream in np.flatnonzero(over):
            self._finished.append((float(self._returns[stream]), int(self._lengths[stream]), int(stream)))
            self._returns[stream] = self._lengths[stream] = 0

    def _forget_games(self):
        self._returns[:] = 0
        self._lengths[:] = 0

    def _checked(self, action):
        return checked_action(action, self._action_spec, self._num_envs)

    def _first(self, observation):
        size = self._num_envs
        first = np.full(size, StepType.FIRST, np.int32)
        return TimeStep(first, np.zeros(size, np.float32), np.ones(size, np.float32), observation)
