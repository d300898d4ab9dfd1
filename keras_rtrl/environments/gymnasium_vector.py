"""Any gymnasium environment whose spaces are numbers and choices as a batched PyEnvironment."""

import importlib
import math

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl._checks import fits_memory, one_of, shown, whole_number
from keras_rtrl.environments import envpool_vector, mujoco, opengl, spaces
from keras_rtrl.environments.registry import is_installed, unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

STREAM_BYTES = 3 * 2**10  # at least
ENGINES = ("auto", "envpool", "gymnasium")


def make(name, num_envs, seed, *, engine="auto", **options):
    """The gymnasium environment `name`, stepped `num_envs` at a time; `options` go to `gymnasium.make`.

    `engine` is "gymnasium", or "envpool" for MuJoCo's tasks without options. "auto" is EnvPool if it is installed.

    Raises:
      ValueError: an unknown name, options that it does not take, an engine that does not have it, or spaces that
        `GymnasiumVector` does not take.
      ImportError: a module or package that is missing or does not import.
    """
    module, colon, identifier = name.rpartition(":")
    if colon:  # as in gymnasium.make: the module registers the environment
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise ImportError(f"{name} needs a module that cannot be imported: {error}") from error
    name = identifier
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise unknown_name(name, gymnasium.registry) from error

    one_of("engine", engine, ENGINES)
    task, see = mujoco.in_envpool(name)
    if engine == "envpool" and (task is None or options):
        raise ValueError(
            f"engine must be 'auto' or 'gymnasium' for {name}{' with options' if task else ''}: EnvPool "
            f"{f'takes none of {shown(options)}' if task else 'steps the v5 tasks of MuJoCo alone'}."
        )
    if task and not options and (engine == "envpool" or (engine == "auto" and is_installed("envpool"))):
        limit = gymnasium.spec(name).max_episode_steps
        return GymnasiumVector(
            envpool_vector.EnvPoolVector(task, num_envs, see=see, max_episode_steps=limit), seed=seed
        )

    if options.get("max_episode_steps") is not None:
        options["max_episode_steps"] = whole_number("max_episode_steps", options["max_episode_steps"])

    if _may_draw(gymnasium.spec(name), options):
        opengl.load_mesa()

    def build():
        try:
            return gymnasium.make(name, **options)
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"{name} needs a package that is not installed: {error}") from error
        except Exception as error:
            if not options:
                raise
            message = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{name} does not take the options {shown(options)}: {message}") from error

    return vector(build, num_envs, seed)


def _may_draw(spec, options):
    """Whether an environment may draw by OpenGL: one told to render, or one that gymnasium has not written."""
    ours = isinstance(spec.entry_point, str) and spec.entry_point.startswith(("gymnasium.", "keras_rtrl."))
    return not ours or {**spec.kwargs, **options}.get("render_mode") is not None


def vector(build, num_envs, seed):
    """`num_envs` of the environments that `build()` makes, stepped one after the other.

    Raises:
      ValueError: spaces that `GymnasiumVector` does not take, or more streams than this machine can hold.
    """

    def checked():
        env = build()
        spec, _ = spaces.observation_spec(env.observation_space), spaces.action_spec(env.action_space)
        fits_memory(f"num_envs={num_envs}", 2 * num_envs * math.prod(spec.shape) * spec.dtype.itemsize)
        return env

    return GymnasiumVector(SyncVectorEnv([checked] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP), seed=seed)


class GymnasiumVector(VectorEnvironment):
    """A gymnasium vector environment as a batched PyEnvironment.

    Observations of a Box keep their shape and dtype, except that float64 becomes float32. Those of Discrete,
    MultiDiscrete and MultiBinary spaces, and of a Tuple or Dict of such spaces and Boxes, become one float32 vector,
    with choices one-hot. Discrete actions are int64 from 0 to n - 1, MultiDiscrete actions are vectors of them.
    Floating-point actions are clipped to their bounds before the simulator sees them. Rewards are float32 [B];
    `finished_games` sums them in float64.

    Args:
      vector_env: a gymnasium.vector.VectorEnv whose metadata["autoreset_mode"] is NEXT_STEP.
      seed: a non-negative int or None; the seed of each stream is drawn from it.

    Raises:
      ValueError: a space that is not taken, or another autoreset mode.
    """

    def __init__(self, vector_env: VectorEnv, *, seed: int | np.ndarray | None = None):
        mode = vector_env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
            raise ValueError(
                "vector_env must reset a stream in the step after its episode's end: its metadata['autoreset_mode'] "
                f"must be {AutoresetMode.NEXT_STEP}, got {shown(mode)}"
            )
        self._env = vector_env
        self._observation_space = vector_env.single_observation_space
        super().__init__(
            vector_env.num_envs,
            spaces.observation_spec(self._observation_space),
            spaces.action_spec(vector_env.single_action_space),
        )
        self._action_start = getattr(vector_env.single_action_space, "start", 0)
        self._seeds = stream_seeds(seed, vector_env.num_envs).tolist()

    def _reset(self):
        observation, _ = self._env.reset(seed=self._seeds)
        self._seeds = None  # later resets continue the generators
        self._forget_games()
        return self._first(spaces.encoded(self._observation_space, observation))

    def _step(self, action):
        first = self._current_time_step.step_type == StepType.LAST
        action = self._checked(action)
        if np.issubdtype(action.dtype, np.floating):
            action = np.clip(action, self._action_spec.minimum, self._action_spec.maximum)
        observation, reward, terminated, truncated, _ = self._env.step(action + self._action_start)
        reward, over = np.where(first, 0.0, reward), terminated | truncated
        self._count(reward, ~first, over)
        step_type = np.where(first, StepType.FIRST, np.where(over, StepType.LAST, StepType.MID)).astype(np.int32)
        discount = np.where(terminated, 0.0, 1.0).astype(np.float32)
        observation = spaces.encoded(self._observation_space, observation)
        return TimeStep(step_type, reward.astype(np.float32), discount, observation)

    def close(self):
        self._env.close()
