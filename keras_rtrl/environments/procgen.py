"""ProcGen (Cobbe et al., arXiv 1912.01588): its 16 games. Each level is drawn from its own seed."""

import os
import sys

import numpy as np
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl._checks import one_of, shown, whole_number
from keras_rtrl.environments.envpool_vector import EnvPoolVector
from keras_rtrl.environments.gymnasium_vector import GymnasiumVector
from keras_rtrl.environments.registry import is_installed, needing, unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

STREAM_BYTES = 2 * 64 * 64 * 3  # at least
# Steps after which a game ends by itself; from the source, github.com/openai/procgen, procgen/src/games.
_TIME_LIMITS = {
    "bigfish": 6000,
    "bossfight": 4000,
    "caveflyer": 1000,
    "chaser": 1000,
    "climber": 1000,
    "coinrun": 1000,
    "dodgeball": 1000,
    "fruitbot": 1000,
    "heist": 1000,
    "jumper": 1000,
    "leaper": 500,
    "maze": 500,
    "miner": 1000,
    "ninja": 1000,
    "plunder": 4000,
    "starpilot": 1000,
}
_JUMPER_MEMORY_TIME_LIMIT = 2000
# ProcGen ends the process if a game has no levels of the distribution.
_DISTRIBUTIONS = {
    "easy": set(_TIME_LIMITS),
    "hard": set(_TIME_LIMITS),
    "extreme": {"chaser", "dodgeball", "leaper", "starpilot"},
    "memory": {"caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"},
}
_MOST_LEVELS = 2**31 - 1
ENGINES = ("auto", "envpool", "procgen")
_ACTIONS = 15
_NO_OP = 4
_RESET = -1  # ProcGen begins a new level


def make(name, num_envs, seed, *, engine="auto", distribution="hard", num_levels=500, start_level=0):
    """The game "procgen:<game>".

    `engine` is "procgen", the package procgen2, or "envpool", whose games are the same but have edges that are drawn a
    little differently. "auto" is procgen2 if it is installed: it is faster, and draws what the benchmark draws.

    The levels trained on are `start_level` to `start_level + num_levels - 1`, as the benchmark has them. Held-out
    levels: `num_levels=0, start_level=500` are all those from 500 on.
    """
    game = name.partition(":")[2]
    if game not in _TIME_LIMITS:
        raise unknown_name(name, [f"procgen:{known}" for known in _TIME_LIMITS])
    known = [mode for mode, games in _DISTRIBUTIONS.items() if game in games]
    if not isinstance(distribution, str) or distribution not in known:
        raise ValueError(f"distribution must be one of {', '.join(known)} for {name}, got {shown(distribution)}.")
    num_levels = whole_number("num_levels", num_levels, low=0, high=_MOST_LEVELS - 1)
    start_level = whole_number("start_level", start_level, low=0, high=_MOST_LEVELS - 1)
    if start_level + num_levels > _MOST_LEVELS:
        raise ValueError(f"start_level + num_levels must be at most {_MOST_LEVELS}, got {start_level} + {num_levels}.")
    # num_levels=0 would make ProcGen draw from all levels, for any start_level.
    num_levels = num_levels or _MOST_LEVELS - start_level
    one_of("engine", engine, ENGINES)
    if engine == "envpool" or (engine == "auto" and not is_installed("procgen") and is_installed("envpool")):
        return _in_envpool(game, num_envs, seed, distribution, num_levels=num_levels, start_level=start_level)
    how = "pip install 'keras_rtrl[procgen]'" if sys.version_info < (3, 12) else "its wheels are for Python 3.11"
    with needing(name, ["procgen"], f"EnvPool (pip install 'keras_rtrl[envpool]') or procgen2 ({how})."):
        import procgen  # noqa: F401
    return ProcgenEnvironment(
        game, num_envs, seed=seed, distribution=distribution, num_levels=num_levels, start_level=start_level
    )


def _in_envpool(game, num_envs, seed, distribution, **levels):
    task = f"{game.capitalize()}{distribution.capitalize()}-v0"
    return GymnasiumVector(EnvPoolVector(task, num_envs, channel_first=False, **levels), seed=seed)


def _time_limit(game, distribution):
    return _JUMPER_MEMORY_TIME_LIMIT if (game, distribution) == ("jumper", "memory") else _TIME_LIMITS[game]


class ProcgenEnvironment(VectorEnvironment):
    """A batch of one ProcGen game; the simulator steps it in threads.

    Observation: RGB, uint8 [B, 64, 64, 3]. Actions are int64 [B] in 0..14, ProcGen's. One action is one frame.

    The step that ends a level begins the next one in ProcGen, and shows only the new level. So LAST holds the
    observation before it. FIRST shows the first observation of the new level; the action given then is undone. So the
    games are those that ProcGen plays without these two steps. If the time limit ends a game, it is truncated (LAST,
    discount 1), even if something else ended it in the same step. Any other end terminates.

    Args:
      game: "chaser".
      num_envs: number of streams B.
      seed: as for `stream_seeds`; each stream draws its levels with its own seed.
      distribution: "easy", "hard", "extreme" or "memory".
      num_levels: number of levels, at least 1.
      start_level: number of the first level.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int | np.ndarray | None,
        distribution: str,
        num_levels: int,
        start_level: int,
    ):
        from procgen import ProcgenGym3Env
        from procgen.env import MAX_STATE_SIZE

        def simulator(streams, stream_seed, threads):
            return ProcgenGym3Env(
                streams,
                game,
                distribution_mode=distribution,
                num_levels=num_levels,
                start_level=start_level,
                rand_seed=stream_seed,
                num_threads=threads,
            )

        seeds = stream_seeds(seed, num_envs).tolist()
        threads = min(num_envs, len(os.sched_getaffinity(0)))
        self._env = simulator(num_envs, seeds[0], threads if threads > 1 else 0)
        # A simulator draws the seeds of its streams from one. Here each stream gets its own, in a vector of any size.
        for stream, stream_seed in enumerate(seeds):
            alone = simulator(1, stream_seed, 0)
            self._restore(stream, alone.get_state()[0])
            alone.close()
        self._time_limit = _time_limit(game, distribution)
        self._buffer = np.empty(MAX_STATE_SIZE, np.uint8)
        import cffi  # procgen2 brings it

        self._address = cffi.FFI().from_buffer("char[]", self._buffer)
        self._begun = {}  # stream: (state, observation) of the level that its next step shows first
        self._played = False
        super().__init__(
            num_envs,
            array_spec.BoundedArraySpec((64, 64, 3), np.uint8, 0, 255, name="observation"),
            array_spec.BoundedArraySpec((), np.int64, 0, _ACTIONS - 1, name="action"),
        )

    def _reset(self):
        if self._played:
            self._env.act(np.full(self._num_envs, _RESET, np.int32))
        self._played = True
        self._begun = {}
        self._forget_games()
        _, observation, _ = self._env.observe()
        return self._first(observation["rgb"])

    def _step(self, action):
        before = self._current_time_step
        first = before.step_type == StepType.LAST
        action = np.where(first, _NO_OP, self._checked(action))
        self._env.act(action.astype(np.int32))
        reward, observation, ended = self._env.observe()
        observation = observation["rgb"]
        for stream, (state, seen) in self._begun.items():
            self._restore(stream, state)
            observation[stream], reward[stream], ended[stream] = seen, 0.0, False
        self._begun = {stream: (self._state(stream), observation[stream].copy()) for stream in np.flatnonzero(ended)}
        observation[ended] = before.observation[ended]

        timed_out = ended & (self._lengths + 1 >= self._time_limit)
        self._count(reward, ~first, ended)
        step_type = np.where(first, StepType.FIRST, np.where(ended, StepType.LAST, StepType.MID)).astype(np.int32)
        discount = np.where(ended & ~timed_out, 0.0, 1.0).astype(np.float32)
        return TimeStep(step_type, reward, discount, observation)

    def _state(self, stream):
        size = self._env.call_c_func("get_state", int(stream), self._address, len(self._buffer))
        return self._buffer[:size].tobytes()

    def _restore(self, stream, state):
        self._env.call_c_func("set_state", int(stream), state, len(state))

    def close(self):
        self._env.close()
