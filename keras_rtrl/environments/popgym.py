"""POPGym (Morad et al., arXiv 2303.01859): its 42 tasks, "popgym-RepeatFirstEasy-v0" and so on."""

import gymnasium

from keras_rtrl.environments import gymnasium_vector
from keras_rtrl.environments.registry import needing, unknown_name

STREAM_BYTES = 3 * 2**10  # at least


def make(name, num_envs, seed):
    """The POPGym task `name`.

    Every observation comes as one float32 vector, each choice one-hot.
    """
    with needing(name, ["popgym"], 'popgym: pip install "keras_rtrl[popgym]".'):
        import popgym.envs  # noqa: F401  registers the tasks
    names = [known for known in gymnasium.registry if known.startswith("popgym-")]
    if name not in names:
        raise unknown_name(name, names)

    def build():
        return gymnasium.make(name, disable_env_checker=True)

    return gymnasium_vector.vector(build, num_envs, seed)
