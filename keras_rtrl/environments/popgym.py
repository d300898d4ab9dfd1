"""POPGym (Morad et al., arXiv 2303.01859): its 42 tasks, "popgym-RepeatFirstEasy-v0" and so on.

21 of them also run inside TensorFlow's graph: games of cards (cards.py) and CartPole without velocities (cartpole.py).
"""

import gymnasium

from keras_rtrl.environments import gymnasium_vector
from keras_rtrl.environments.cards import GAMES
from keras_rtrl.environments.cartpole import CartPole
from keras_rtrl.environments.in_graph import runs_in_graph
from keras_rtrl.environments.registry import needing, unknown_name

STREAM_BYTES = 3 * 2**10  # at least
_IN_GRAPH = {f"popgym-{game}-v0": made for game, made in GAMES.items()}
_IN_GRAPH |= {
    f"popgym-PositionOnlyCartPole{level}-v0": (CartPole, (limit, 1 / limit))
    for level, limit in (("Easy", 200), ("Medium", 400), ("Hard", 600))
}


def in_graph(name, engine):
    return runs_in_graph(name, engine, _IN_GRAPH)


def make(name, num_envs, seed, *, engine="auto"):
    """The POPGym task `name`; in the graph if it has that form, unless `engine` is "gymnasium".

    Every observation comes as one float32 vector, each choice one-hot.
    """
    if in_graph(name, engine):
        task, arguments = _IN_GRAPH[name]
        return task(num_envs, seed, *arguments)
    with needing(name, ["popgym"], 'popgym: pip install "keras_rtrl[popgym]".'):
        import popgym.envs  # noqa: F401  registers the tasks
    names = [known for known in gymnasium.registry if known.startswith("popgym-")]
    if name not in names:
        raise unknown_name(name, names)

    def build():
        return gymnasium.make(name, disable_env_checker=True)

    return gymnasium_vector.vector(build, num_envs, seed)
