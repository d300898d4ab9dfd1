"""DMLab-30: the 30 levels of Beattie et al. (arXiv 1612.03801), played as by Espeholt et al. (arXiv 1802.01561)."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
import zlib
from typing import Any

import numpy as np
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl._checks import shown, whole_number
from keras_rtrl.environments import opengl
from keras_rtrl.environments.registry import needing, unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

# Mean returns (of random actions, of people), Espeholt et al.'s: github.com/google-deepmind/scalable_agent, dmlab30.py.
# They score a level's training form by the numbers of its hold-out form.
_SCORES = {
    "rooms_collect_good_objects_train": (0.073, 10.0),
    "rooms_collect_good_objects_test": (0.073, 10.0),
    "rooms_exploit_deferred_effects_train": (8.501, 85.65),
    "rooms_exploit_deferred_effects_test": (8.501, 85.65),
    "rooms_select_nonmatching_object": (0.312, 65.9),
    "rooms_watermaze": (4.065, 54.0),
    "rooms_keys_doors_puzzle": (4.135, 53.8),
    "language_select_described_object": (-0.07, 389.5),
    "language_select_located_object": (1.929, 280.7),
    "language_execute_random_task": (-5.913, 254.05),
    "language_answer_quantitative_question": (-0.33, 184.5),
    "lasertag_one_opponent_small": (-0.224, 12.65),
    "lasertag_three_opponents_small": (-0.214, 18.55),
    "lasertag_one_opponent_large": (-0.083, 18.6),
    "lasertag_three_opponents_large": (-0.102, 31.5),
    "natlab_fixed_large_map": (2.173, 36.9),
    "natlab_varying_map_regrowth": (2.989, 24.45),
    "natlab_varying_map_randomized": (7.346, 42.35),
    "skymaze_irreversible_path_hard": (0.1, 100.0),
    "skymaze_irreversible_path_varied": (14.4, 100.0),
    "psychlab_arbitrary_visuomotor_mapping": (0.163, 58.75),
    "psychlab_continuous_recognition": (0.224, 58.3),
    "psychlab_sequential_comparison": (0.129, 39.5),
    "psychlab_visual_search": (0.085, 78.5),
    "explore_object_locations_small": (3.575, 74.45),
    "explore_object_locations_large": (4.673, 65.65),
    "explore_obstructed_goals_small": (6.76, 206.0),
    "explore_obstructed_goals_large": (2.61, 119.5),
    "explore_goal_locations_small": (7.66, 267.5),
    "explore_goal_locations_large": (3.14, 194.5),
    "explore_object_rewards_few": (2.073, 77.7),
    "explore_object_rewards_many": (2.438, 106.7),
}
SCORES = {f"dmlab:{level}": scores for level, scores in _SCORES.items()}
_HOLD_OUTS = {level for level in _SCORES if level.endswith("_test")}
_PHOTOGRAPHS = "see data/brady_konkle_oliva2008/README.md of https://github.com/google-deepmind/lab"
_FIRST_PHOTOGRAPH = "0001.png"
_WITH_PHOTOGRAPHS = {"psychlab_arbitrary_visuomotor_mapping", "psychlab_continuous_recognition"}

# Look left or right (pixels a frame), look down or up, strafe, move, fire, jump, crouch: the simulator's action_spec().
_ACTIONS = np.array(
    [
        [-20, 0, 0, 0, 0, 0, 0],
        [20, 0, 0, 0, 0, 0, 0],
        [0, 0, -1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, -1, 0, 0, 0],
        [-20, 0, 0, 1, 0, 0, 0],
        [20, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
    ],
    np.intc,
)
STREAM_BYTES = 20 * 2**20  # at least: an instance is a process
_LARGEST = 2**14  # side of an image: Mesa's renderer draws no larger one
_WORDS = 16  # of an instruction
_WORD_IDS = 1000


def default_workers(num_envs):
    """A process for each stream: a check that fails inside the simulator ends its process."""
    return num_envs


def make(
    name,
    num_envs,
    seed,
    *,
    height=72,
    width=96,
    frames_per_step=4,
    level_cache=None,
    renderer="software",
    dataset_path=None,
):
    """The level "dmlab:<level>" as a `LabEnvironment`, of one stream; more are worker processes' to run.

    A level's short name is its file's in contributed/dmlab30: "rooms_watermaze". Two levels have a training form and a
    hold-out form instead: "rooms_collect_good_objects_train" and "..._test", "rooms_exploit_deferred_effects_train" and
    "..._test".

    Args:
      name, num_envs, seed: as `environments.make`.
      height, width: of an image, in pixels.
      frames_per_step: frames that an action is held for.
      level_cache: folder that keeps compiled levels, which processes may share; None for none. explore_* and skymaze_*
        compile a maze for each episode.
      renderer: "software" or "hardware".
      dataset_path: folder of photographs, which two psychlab levels need.

    Raises:
      ValueError: an argument does not fit, or the simulator does not start with the settings.
      ImportError: the module `deepmind_lab` is missing.
    """
    if name not in SCORES:
        raise unknown_name(name, list(SCORES))
    if num_envs != 1:
        raise ValueError(f"workers must be num_envs, as it is by default: {name} runs one instance a process.")
    height, width = (whole_number(*size, high=_LARGEST) for size in (("height", height), ("width", width)))
    frames_per_step = whole_number("frames_per_step", frames_per_step, high=2**31 - 1)
    if renderer not in ("software", "hardware"):
        raise ValueError(f"renderer must be 'software' or 'hardware', got {shown(renderer)}.")
    level = name.partition(":")[2]
    config = _engine_settings(name, height, width, dataset_path)
    source = "see python/pip_package/README.md of https://github.com/google-deepmind/lab."
    with needing(name, ["deepmind_lab"], f"the module deepmind_lab, which is built from its own source: {source}"):
        import deepmind_lab
    load_renderer(renderer)
    cache = None if level_cache is None else LevelCache(level_cache)
    observations = ["RGB_INTERLEAVED", "INSTR"] if level.startswith("language_") else ["RGB_INTERLEAVED"]
    try:
        lab = deepmind_lab.Lab(f"contributed/dmlab30/{level}", observations, config, renderer, cache)
    except RuntimeError as error:
        raise ValueError(f"{name} does not start with renderer {renderer!r} and {config}: {error}") from error
    return LabEnvironment(
        lab,
        seed=stream_seeds(seed, 1)[0],
        shape=(height, width, 3),
        instructions="INSTR" in observations,
        frames_per_step=frames_per_step,
    )


def _engine_settings(name, height, width, dataset_path):
    """The simulator's config. Raises ValueError if `dataset_path` is not what the level `name` needs."""
    level = name.partition(":")[2]
    config = {"height": str(height), "width": str(width), "logLevel": "WARN"}
    if level in _HOLD_OUTS:
        config["allowHoldOutLevels"] = "true"
    if dataset_path is not None:
        if not isinstance(dataset_path, (str, os.PathLike)) or not os.path.isdir(dataset_path):
            raise ValueError(f"dataset_path must be None or a folder, got {shown(dataset_path)}.")
        if not os.path.isfile(os.path.join(dataset_path, _FIRST_PHOTOGRAPH)):  # the engine would end its process
            raise ValueError(
                f"dataset_path must be a folder of photographs, {_FIRST_PHOTOGRAPH} and so on, which "
                f"{shown(os.fspath(dataset_path))} has not: {_PHOTOGRAPHS}."
            )
        config["datasetPath"] = os.path.abspath(dataset_path)
    elif level in _WITH_PHOTOGRAPHS:
        raise ValueError(
            f"dataset_path must be the folder of the level's photographs for {name}, got None: {_PHOTOGRAPHS}."
        )
    return config


def load_renderer(renderer):
    """Loads the simulator's renderer, "software" or "hardware", so that it works with TensorFlow (`opengl`).

    Call it before each `deepmind_lab.Lab`; otherwise the Lab dies at its first reset.
    """
    import deepmind_lab

    library = {"software": "libdmlab_headless_sw.so", "hardware": "libdmlab_headless_hw.so"}[renderer]
    with contextlib.suppress(AttributeError):  # a module without runfiles_path
        opengl.load_apart(os.path.join(deepmind_lab.runfiles_path(), library))


class LabEnvironment(VectorEnvironment):
    """One instance of the simulator as a batch of one stream.

    Observation: RGB, uint8 [1, height, width, 3]. If a level gives instructions, a dict of "rgb" and "instruction",
    int32 [1, 16]: the ids of the first 16 words, filled up with 0 (`word_ids`).

    Actions are int64 [1] in 0..8: look left, look right (20 pixels a frame), strafe left, strafe right, forward, back,
    forward and look left, forward and look right, fire; each is held for `frames_per_step` of 60 frames a second.

    Each episode starts with its own seed, drawn from that of the stream. The same `seed` gives the same episodes as far
    as the simulator repeats them; it promises that only for the first episode of an instance. At an episode's end the
    simulator shows nothing, and does not say why the episode ended; in most levels time was up. So LAST holds the last
    observation before the end, and its discount is 0.

    Args:
      lab: a `deepmind_lab.Lab` that gives RGB_INTERLEAVED, and INSTR if `instructions`.
      seed: of the generator of the episodes' seeds.
      shape: of an image, (height, width, 3).
      instructions: whether the observation has the instruction.
      frames_per_step: frames an action is held for.
    """

    def __init__(self, lab: Any, *, seed: int, shape: tuple[int, int, int], instructions: bool, frames_per_step: int):
        self.frames_per_step = int(frames_per_step)
        self._lab, self._instructions = lab, instructions
        self._generator = np.random.default_rng(seed)
        spec = array_spec.BoundedArraySpec(shape, np.uint8, 0, 255, name="rgb" if instructions else "observation")
        if instructions:
            words = array_spec.BoundedArraySpec((_WORDS,), np.int32, 0, _WORD_IDS, name="instruction")
            spec = {"rgb": spec, "instruction": words}
        actions = array_spec.BoundedArraySpec((), np.int64, 0, len(_ACTIONS) - 1, name="action")
        super().__init__(1, spec, actions)

    def _reset(self):
        self._forget_games()
        return self._begun()

    def _step(self, action):
        action = self._checked(action)
        if self._current_time_step.step_type[0] == StepType.LAST:
            return self._begun()
        reward = self._lab.step(_ACTIONS[action[0]], num_steps=self.frames_per_step)
        over = not self._lab.is_running()
        if not over:
            self._observation = self._observed()
        self._count(reward, True, [over])
        return TimeStep(
            np.array([StepType.LAST if over else StepType.MID], np.int32),
            np.array([reward], np.float32),
            np.array([0.0 if over else 1.0], np.float32),
            self._observation,
        )

    def _begun(self):
        self._lab.reset(seed=int(self._generator.integers(2**31 - 1)))  # an int of Python's: it takes no other
        self._observation = self._observed()
        return self._first(self._observation)

    def _observed(self):
        observations = self._lab.observations()
        rgb = observations["RGB_INTERLEAVED"][np.newaxis]
        return {"rgb": rgb, "instruction": word_ids(observations["INSTR"])[np.newaxis]} if self._instructions else rgb

    def close(self):
        self._lab.close()


def word_ids(instruction):
    """Ids of the first 16 words of a string, int32 [16]: CRC-32 of each, modulo 1000, plus 1; then 0."""
    ids = [1 + zlib.crc32(word.encode()) % _WORD_IDS for word in instruction.split()[:_WORDS]]
    return np.array(ids + [0] * (_WORDS - len(ids)), np.int32)


class LevelCache:
    """Compiled levels in a folder that any number of processes may share, since no file there is ever seen unfinished.

    Args:
      folder: path; made if there is none.

    Raises:
      ValueError: a folder that takes no files.
    """

    def __init__(self, folder):
        try:
            self._folder = os.path.abspath(os.path.join("", folder))  # takes no bytes
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"level_cache must be None or a folder that takes files, got {shown(folder)}: {error}"
            ) from error

    def fetch(self, key, path):
        """Copies the level `key` to `path`; False if there is none."""
        try:
            shutil.copyfile(self._file(key), path)
        except FileNotFoundError:
            return False
        return True

    def write(self, key, path):
        """Keeps the file `path` as the level `key`."""
        unfinished = os.path.join(self._folder, f"{uuid.uuid4().hex}.unfinished")
        try:
            shutil.copyfile(path, unfinished)
            os.replace(unfinished, self._file(key))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(unfinished)
            raise

    def _file(self, key):
        return os.path.join(self._folder, f"{hashlib.sha256(key.encode()).hexdigest()}.pk3")
