"""`make`: from an environment's name to the family that builds it."""

import contextlib
import difflib
import functools
import importlib.util
import inspect
from typing import Any

import gymnasium
from tf_agents.environments import py_environment, tf_environment

from keras_rtrl._checks import fits_memory, shown, whole_number

# The first family whose prefix fits builds the environment; all else is gymnasium's. A family is a module of this
# package with make(name, num_envs, seed, *, its options), and in_graph(name, engine) if it has tasks that run inside
# TensorFlow's graph. With it stands the package whose entry points are its own:
# an id that begins alike and that gymnasium knows with another entry point is somebody else's.
_FAMILIES = (
    ("ALE/", "atari", "ale_py"),
    ("dmlab:", "dmlab", None),
    ("CartPole-P-v", "cartpole", "gymnasium"),
    ("TMaze-v", "tmaze", "keras_rtrl"),
    ("MemoryChain-v", "memory_chain", "keras_rtrl"),
    ("TraceConditioning-v", "conditioning", "keras_rtrl"),
    ("TracePatterning-v", "conditioning", "keras_rtrl"),
    ("popgym-", "popgym", "popgym"),
    ("procgen:", "procgen", None),
    ("Vizdoom", "vizdoom", "vizdoom"),
    ("MiniGrid-", "minigrid", "minigrid"),
)
_STREAM_BYTES = 50  # at least, of a stream; a family whose streams take more says so by STREAM_BYTES
_WORKER_BYTES = 10 * 2**20


def make(
    name: str, num_envs: int = 1, *, seed: int | None = None, workers: int | None = None, **options: Any
) -> py_environment.PyEnvironment | tf_environment.TFEnvironment:
    """Builds a batched TF-Agents environment of `num_envs` streams.

    ```python
    env = keras_rtrl.environments.make("ALE/Breakout-v5", num_envs=16, seed=0)
    ```

    Args:
      name: "ALE/<Game>-v5" for any game of ale-py; an in-graph task, "TMaze-v0", "MemoryChain-v0",
        "TraceConditioning-v0", "TracePatterning-v0" or "CartPole-P-v1", which hides the velocities; any of POPGym's 42,
        such as "popgym-RepeatFirstEasy-v0"; masked MuJoCo, "Ant-P-v5", "Ant-V-v5" (also HalfCheetah, Hopper, Walker2d)
        or "Reacher-PO-v5"; a level of DMLab-30, such as "dmlab:rooms_watermaze"; any of ProcGen's 16 games, such as
        "procgen:chaser"; a task of ViZDoom, such as "VizdoomMyWayHome-v1", or of MiniGrid, such as
        "MiniGrid-MemoryS13Random-v0"; or any other id registered with gymnasium whose actions are Box, Discrete or
        MultiDiscrete, also "module:Id-v0", for which the module is imported first.
      num_envs: number of streams, at least 1.
      seed: a non-negative int from which each stream's own seed is drawn, or None for seeds never used before.
      workers: number of processes to split a simulator's streams over (`WorkerVector`), 0 for none; the same seed plays
        the same games. Two or more make two halves, which `RolloutDriver` steps in turn. None is the family's choice:
        one process for each stream for DMLab, else no workers. Workers import the main program, so it must do its work
        under `if __name__ == "__main__":`.
      **options: options of the family. Atari: `training=True`, `max_frames=108_000`, `sticky_actions=False`. T-maze:
        `corridor=40`. Memory chain: `length=32`. POPGym, MiniGrid and CartPole-P: `engine="auto"`, which is "graph" (a
        twin inside TensorFlow's graph) if there is one, else "gymnasium". MiniGrid: `moves_only=False`, True for turn
        left, turn right and forward as the only actions. MuJoCo's v5 tasks, masked or not:
        `engine="auto"`, which is "envpool" (C++ threads) if EnvPool is installed, else "gymnasium". DMLab: `height=72`,
        `width=96`, `frames_per_step=4`, `level_cache=None`, `renderer="software"`, `dataset_path=None`. ProcGen:
        `engine="auto"`, which is "procgen" (procgen2) if that is installed, else "envpool"; `distribution="hard"`,
        `num_levels=500`, `start_level=0`. gymnasium: those of `gymnasium.make`.

    Returns:
      A PyEnvironment for simulators (wrap it in TFPyEnvironment for stock drivers), a TFEnvironment for in-graph tasks.

    Raises:
      ValueError: `name` or an option is unknown; the value of an option does not fit; `num_envs` is below 1, or needs
        more memory than the machine has; `seed` is not a non-negative int; `workers` is not an int from 0 to num_envs,
        or is given for an in-graph task; a space or the autoreset mode is not supported.
      ImportError: the family's simulator is not installed, or cannot be imported; the message says which.
      RuntimeError: the simulator does not run on this machine.
    """
    if not isinstance(name, str):
        raise ValueError(f"name must be a string such as 'ALE/Breakout-v5', got {shown(name)}.")
    num_envs = whole_number("num_envs", num_envs)
    seed = None if seed is None else whole_number("seed", seed, low=0)
    workers = None if workers is None else whole_number("workers", workers, low=0, high=num_envs)
    module = importlib.import_module(f"keras_rtrl.environments.{family(name)}")
    fits_memory(f"num_envs={num_envs}", num_envs * getattr(module, "STREAM_BYTES", _STREAM_BYTES))
    fits_memory(f"workers={workers}", (workers or 0) * _WORKER_BYTES)
    build = module.make
    _check_options(name, build, options)
    if workers and in_graph(name, options.get("engine", "auto")):
        raise ValueError(f"workers must be None or 0 for {described_in_graph(name)}, got {workers}.")
    if workers is None and hasattr(module, "default_workers"):
        workers = module.default_workers(num_envs)
    if not workers:
        return build(name, num_envs, seed, **options)
    from keras_rtrl.environments.workers import in_workers

    return in_workers(functools.partial(build, name, **options), num_envs, seed, workers)


def _check_options(name, build, options):
    """Raises ValueError for an option that the family's `build` does not take."""
    parameters = inspect.signature(build).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            choices = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no option {option!r}; {choices}.")


def family(name):
    """The module of this package that builds the environment `name`; it alone knows whether there is such a one."""
    spec = gymnasium.registry.get(name)
    for prefix, module, package in _FAMILIES:
        if name.startswith(prefix) and (spec is None or _package(spec) == package):
            return module
    return "gymnasium_vector"


def in_graph(name, engine="auto"):
    """Whether `make` with this option makes the environment inside TensorFlow's graph: a TFEnvironment."""
    module = importlib.import_module(f"keras_rtrl.environments.{family(name)}")
    return hasattr(module, "in_graph") and module.in_graph(name, engine)


def described_in_graph(name):
    """For messages: an environment's name, that it runs in the graph, and how it would not."""
    module = importlib.import_module(f"keras_rtrl.environments.{family(name)}")
    unless = " unless engine is 'gymnasium'" if "engine" in inspect.signature(module.make).parameters else ""
    return f"{name}, which runs inside TensorFlow's graph{unless}"


def _package(spec):
    """The package that the entry point of a gymnasium EnvSpec lies in."""
    entry_point = spec.entry_point or spec.vector_entry_point
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return module.partition(":")[0].partition(".")[0]


def normalized_score(name, mean_return):
    """(mean_return - random) / (human - random), 0 for random play and 1 for a human's.

    Args:
      name: as `make`.
      mean_return: mean return of whole games, or None.

    Returns:
      A float; None without a mean return, and if the family has no scores for the environment (`SCORES`, a dict from
      names to (random, human)).
    """
    random, human = _scores(name)
    return None if random is None or mean_return is None else (mean_return - random) / (human - random)


def random_return(name):
    """The mean return of random play, None if it is not known (`SCORES`)."""
    return _scores(name)[0]


def _scores(name):
    module = importlib.import_module(f"keras_rtrl.environments.{family(name)}")
    return getattr(module, "SCORES", {}).get(name, (None, None))


def unknown_name(name, names):
    """The ValueError for a name that is none of `names`, with the closest of them."""
    close = difflib.get_close_matches(name[:200], list(names), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return ValueError(f"no environment is called {shown(name)}{hint}")


def is_installed(package):
    """Whether a package can be found; it is not imported."""
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def needing(name, packages, how):
    """If the block raises an ImportError, says what `name` needs: a package that is missing, or one that is broken.

    Args:
      name: name of the environment.
      packages: the modules that may be missing; `how` says how to install them. If another module cannot be imported,
        one of these packages is broken, and the message names the module.
      how: "ale-py: pip install ...".
    """
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in packages:
            raise ImportError(f"{name} needs {how}") from error
        found = " and ".join(packages)
        raise ImportError(f"{name} needs {found}, which is there and cannot be imported: {error}") from error
