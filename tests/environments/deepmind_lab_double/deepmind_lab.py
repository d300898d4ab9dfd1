"""A double of the module `deepmind_lab`: its interface, its errors and its habits, on a world of a heading and a lamp.

The player turns on the spot. The image is a wall that shades from left to right, with a lamp at one heading; walking
while the lamp is in view gives a reward of 1 a second. Episodes end by time. What the double and the real module share
is what tests/environments/test_dmlab.py asserts of both.

The renderer is a library in `runfiles_path()`, if there is one: an instance opens a copy of it, whose own library must
not call into TensorFlow's LLVM, or the first reset ends the process as the real one's does.

A step ends the process, as a failed check of the real one does, where the environment variable
DEEPMIND_LAB_DOUBLE_ABORT names a file that exists. The first process to see the file takes it away.
"""

import ctypes
import os
import shutil
import signal
import tempfile
import weakref
import zlib

import numpy as np

_SECONDS = {
    "explore_goal_locations_large": 120,
    "explore_goal_locations_small": 90,
    "explore_object_locations_large": 120,
    "explore_object_locations_small": 90,
    "explore_object_rewards_few": 90,
    "explore_object_rewards_many": 120,
    "explore_obstructed_goals_large": 120,
    "explore_obstructed_goals_small": 90,
    "language_answer_quantitative_question": 60,
    "language_execute_random_task": 120,
    "language_select_described_object": 60,
    "language_select_located_object": 120,
    "lasertag_one_opponent_large": 240,
    "lasertag_one_opponent_small": 240,
    "lasertag_three_opponents_large": 240,
    "lasertag_three_opponents_small": 240,
    "natlab_fixed_large_map": 120,
    "natlab_varying_map_randomized": 120,
    "natlab_varying_map_regrowth": 120,
    "psychlab_arbitrary_visuomotor_mapping": 300,
    "psychlab_continuous_recognition": 300,
    "psychlab_sequential_comparison": 300,
    "psychlab_visual_search": 150,
    "rooms_collect_good_objects_test": 60,
    "rooms_collect_good_objects_train": 60,
    "rooms_exploit_deferred_effects_test": 60,
    "rooms_exploit_deferred_effects_train": 60,
    "rooms_keys_doors_puzzle": 60,
    "rooms_select_nonmatching_object": 12,
    "rooms_watermaze": 120,
    "skymaze_irreversible_path_hard": 90,
    "skymaze_irreversible_path_varied": 90,
}
_COMPILED = ("explore_", "skymaze_")  # a new map for each episode
_FOLDER = "contributed/dmlab30/"
_ACTIONS = [
    ("LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", -512, 512),
    ("LOOK_DOWN_UP_PIXELS_PER_FRAME", -512, 512),
    ("STRAFE_LEFT_RIGHT", -1, 1),
    ("MOVE_BACK_FORWARD", -1, 1),
    ("FIRE", 0, 1),
    ("JUMP", 0, 1),
    ("CROUCH", 0, 1),
]
_DEFAULTS = {"width": "320", "height": "240", "fps": "60"}
_SETTINGS = {*_DEFAULTS, "allowHoldOutLevels", "datasetPath", "episodeLengthSeconds", "mixerSeed", "logLevel"}
_TURN = 4096  # pixels of look in a turn


def runfiles_path():
    return os.environ.get("DEEPMIND_LAB_DOUBLE_RUNFILES") or os.path.dirname(os.path.abspath(__file__))


def _engine(renderer, folder):
    """The renderer's library under a name never seen before, as each instance of the real one has its own."""
    path = os.path.join(runfiles_path(), f"libdmlab_headless_{renderer[0]}w.so")
    if not os.path.exists(path):
        return None
    return ctypes.CDLL(shutil.copy(path, os.path.join(folder, "engine.so")), os.RTLD_NOW | os.RTLD_LOCAL)


class Lab:
    def __init__(self, level, observations, config={}, renderer="software", level_cache=None, temp_folder=None):  # noqa: B006
        for value, kind in ((level, str), (observations, list), (config, dict)):
            if not isinstance(value, kind):
                raise TypeError(f"{value!r} where a {kind.__name__} is wanted")
        if not all(isinstance(text, str) for text in (*config, *config.values(), *observations)):
            raise TypeError("settings and names are str")
        if renderer not in ("software", "hardware"):
            raise RuntimeError(f"no renderer {renderer}")
        self._level = level.removeprefix(_FOLDER)
        if not level.startswith(_FOLDER) or self._level not in _SECONDS:
            raise RuntimeError(f"no level {level}")
        for key, value in config.items():
            if key not in _SETTINGS:
                raise RuntimeError(f"no setting {key} (= {value})")
        config = {**_DEFAULTS, **config}
        if self._level.endswith("_test") and config.get("allowHoldOutLevels") != "true":
            raise RuntimeError(f"{level} is held out")
        self._config, self._cache, self._names = config, level_cache, observations
        self._height, self._width, self._fps = (int(config[key]) for key in ("height", "width", "fps"))
        self._status, self._frames, self._resets = "uninitialized", 0, 0
        self._folder = temp_folder or tempfile.mkdtemp(prefix="dmlab_temp_folder_")  # left behind by a killed process
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._engine = _engine(renderer, self._folder)
        known = {spec["name"] for spec in self.observation_spec()}
        for name in observations:
            if name not in known:
                raise ValueError(f"no observation {name}")

    def observation_spec(self):
        image = (self._height, self._width, 3)
        return [
            {"name": "RGB_INTERLEAVED", "shape": image, "dtype": np.uint8},
            {"name": "VEL.TRANS", "shape": (3,), "dtype": np.float64},
            {"name": "INSTR", "shape": (), "dtype": str},
        ]

    def action_spec(self):
        return [{"name": name, "min": low, "max": high} for name, low, high in _ACTIONS]

    def reset(self, episode=-1, seed=None):
        del episode
        if seed is not None and not isinstance(seed, int):
            raise ValueError(f"a seed that is no int: {seed!r}")
        if self._status == "closed":
            raise RuntimeError("reset after close")
        if self._level in ("psychlab_arbitrary_visuomotor_mapping", "psychlab_continuous_recognition"):
            if "datasetPath" not in self._config:
                raise RuntimeError("no photographs")
            if not os.path.exists(os.path.join(self._config["datasetPath"], "0001.png")):
                os.abort()
        if self._engine is not None and not self._engine.draws():
            os.kill(os.getpid(), signal.SIGSEGV)
        # What an instance has played before shows in its next episode, whatever the seed.
        past = list(os.urandom(8)) if self._resets or seed is None else []
        entropy = [zlib.crc32(self._level.encode()), (seed or 0) % 2**32, *past]
        self._random = np.random.default_rng(entropy)
        if self._level.startswith(_COMPILED) and self._cache is not None:
            self._compile(f"{self._level}-{seed}")
        self._lamp, self._heading = (int(x) for x in self._random.integers(_TURN, size=2))
        self._shade = self._random.integers(0, 100, 3)
        self._walked = 0
        self._resets += 1
        self._frames = 0
        self._status = "initialized"
        return True

    def _compile(self, key):
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"deepmind_lab_double_{os.getpid()}.pk3")
        try:
            if not self._cache.fetch(key, path):
                with open(path, "wb") as file:
                    file.write(key.encode() * 1000)
                self._cache.write(key, path)
            with open(path, "rb") as file:
                if file.read() != key.encode() * 1000:
                    raise RuntimeError(f"the map of {key} is damaged")
        finally:
            if os.path.exists(path):
                os.remove(path)

    def step(self, action, num_steps=1):
        if not isinstance(action, np.ndarray):
            raise TypeError(f"an action that is no array: {action!r}")
        if not self.is_running():
            raise RuntimeError(f"step while {self._status}")
        if action.shape != (len(_ACTIONS),):
            raise ValueError(f"an action of shape {action.shape}")
        if action.dtype != np.intc:
            raise ValueError(f"an action of dtype {action.dtype}")
        self._abort_on_demand()
        reward = 0.0
        limit = float(self._config.get("episodeLengthSeconds", _SECONDS[self._level])) * self._fps
        self._status = "running"
        for _ in range(num_steps):
            self._heading = (self._heading + int(action[0])) % _TURN
            self._walked += int(action[3] > 0 and self._in_view())
            if self._walked == self._fps:
                self._walked, reward = 0, reward + 1.0
        self._frames += num_steps
        if self._frames >= limit:
            self._status = "terminated"
        return reward

    def _in_view(self):
        return (self._lamp - self._heading) % _TURN < _TURN // 4

    def _abort_on_demand(self):
        path = os.environ.get("DEEPMIND_LAB_DOUBLE_ABORT")
        if path:
            try:
                os.remove(path)
            except FileNotFoundError:
                return
            os.abort()

    def observations(self):
        if not self.is_running():
            raise RuntimeError(f"observations while {self._status}")
        everything = {"RGB_INTERLEAVED": self._image, "VEL.TRANS": lambda: np.zeros(3), "INSTR": self._instruction}
        return {name: everything[name]() for name in self._names}

    def _image(self):
        columns = np.arange(self._width)
        heading = self._heading * self._width * 4 // _TURN  # a quarter of a turn is in view
        image = np.empty((self._height, self._width, 3), np.uint8)
        image[:] = ((columns + heading) % (4 * self._width) * 100 // (4 * self._width))[:, np.newaxis] + self._shade
        if self._in_view():
            column = (self._lamp - self._heading) % _TURN * self._width * 4 // _TURN
            image[:, column : column + 4] = 255
        return image

    def _instruction(self):
        return f"Pick the lamp at {self._lamp}" if self._level.startswith("language_") else ""

    def is_running(self):
        return self._status in ("initialized", "running")

    def num_steps(self):
        return self._frames

    def close(self):
        was_open = self._status != "closed"
        self._finalizer()
        self._status = "closed"
        return was_open
