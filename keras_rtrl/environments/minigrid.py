"""MiniGrid (Chevalier-Boisvert et al., arXiv 2306.13831): "MiniGrid-MemoryS13Random-v0" and its other tasks.

The memory tasks also run inside TensorFlow's graph (memory_maze.py).
"""

import gymnasium
from gymnasium.wrappers import FilterObservation, TransformAction

from keras_rtrl._checks import flag
from keras_rtrl.environments import gymnasium_vector
from keras_rtrl.environments.in_graph import runs_in_graph
from keras_rtrl.environments.memory_maze import MemoryMaze
from keras_rtrl.environments.registry import needing, unknown_name

STREAM_BYTES = 5 * 2**10  # at least
_MOVES = gymnasium.spaces.Discrete(3)  # turn left, turn right, forward
_IN_GRAPH = [f"MiniGrid-Memory{size}-v0" for size in ("S7", "S9", "S11", "S13", "S13Random", "S17Random")]


def in_graph(name, engine):
    return runs_in_graph(name, engine, _IN_GRAPH)


def make(name, num_envs, seed, *, engine="auto", moves_only=False):
    """The MiniGrid task `name`; in the graph if it has that form, unless `engine` is "gymnasium".

    An observation is one float32 vector: the agent's direction, one-hot of 4, then each cell of its view in turn, its
    object, colour and state one-hot. The mission's text is left out; a task that says there what is wanted is refused.
    """
    moves_only = flag("moves_only", moves_only)
    with needing(name, ["minigrid"], 'minigrid: pip install "keras_rtrl[minigrid]".'):
        import minigrid  # noqa: F401  registers the tasks
        from minigrid.wrappers import OneHotPartialObsWrapper
    names = [known for known in gymnasium.registry if known.startswith("MiniGrid-")]
    if name not in names:
        raise unknown_name(name, names)

    def build():
        try:
            env = gymnasium.make(name, disable_env_checker=True)
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"{name} needs a package that is not installed: {error}") from error
        if env.observation_space["mission"].ordered_placeholders:
            raise ValueError(
                f"{name} must have one mission for all its episodes, as MiniGrid-MemoryS13Random-v0 has, got one that "
                f"varies: the agents here do not read {env.observation_space['mission'].sample()!r}."
            )
        env = FilterObservation(OneHotPartialObsWrapper(env), ["direction", "image"])
        return TransformAction(env, lambda action: action, _MOVES) if moves_only else env

    if in_graph(name, engine):
        return MemoryMaze(num_envs, seed, build())
    return gymnasium_vector.vector(build, num_envs, seed)
