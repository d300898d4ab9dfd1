"""ViZDoom (Kempka et al., arXiv 1605.02097): first-person tasks such as "VizdoomMyWayHome-v1"."""

import concurrent.futures
import os
import shlex
import subprocess
import tempfile

import gymnasium
import numpy as np
from absl import logging
from tf_agents.specs import array_spec
from tf_agents.trajectories.time_step import StepType, TimeStep

from keras_rtrl.environments.registry import needing, unknown_name
from keras_rtrl.environments.vector import VectorEnvironment, stream_seeds

STREAM_BYTES = 10 * 2**20  # at least: an engine is a process
_HEIGHT, _WIDTH = 72, 96
_TRIES = 3  # of a fresh engine, before it is taken that none can live

# The engine writes to its working directory, and left alone it outlives a parent that is killed. A process group of its
# own keeps what is typed at the terminal from it.
_LAUNCHER = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
if command -v setpriv >/dev/null && command -v setsid >/dev/null; then
    exec setpriv --pdeathsig KILL setsid {engine} "$@"
fi
exec {engine} "$@"
"""


def make(name, num_envs, seed):
    """ViZDoom's task `name` as a `VizdoomEnvironment`; tasks whose actions are Discrete alone."""
    with needing(name, ["cv2", "vizdoom"], 'vizdoom and OpenCV: pip install "keras_rtrl[vizdoom]".'):
        import cv2  # noqa: F401
        import vizdoom.gymnasium_wrapper  # noqa: F401  registers the tasks
    names = [known for known in gymnasium.registry if known.startswith("Vizdoom")]
    if name not in names:
        raise unknown_name(name, names)
    return VizdoomEnvironment(name, num_envs, seed=seed)


class VizdoomEnvironment(VectorEnvironment):
    """A batch of one ViZDoom task. Each stream has an engine in a separate process; the engines step at the same time.

    Observation: the screen alone as RGB, uint8 [B, 72, 96, 3], without a window. Actions are int64 [B] in 0..n-1, no
    button or one; each is held for 4 of 35 frames a second. A task's time limit truncates (LAST, discount 1); any other
    end terminates. ViZDoom shows no screen at the end, so LAST holds the one before it.

    An engine that dies is replaced, with a warning in the log, by a new one with a new seed. Its stream gets LAST with
    discount 1, reward 0 and the screen before it, then FIRST of the new engine. A stream that was due a FIRST gets it
    from the new engine at once. Other streams are not affected. The unfinished game is not in `finished_games`.

    If an engine dies while it starts, this process dies too, which is a fault of ViZDoom. With `workers` of `make` it
    is a worker that dies, and it is replaced. Engines end with `close`, with this object, and with this process.

    Args:
      name: "VizdoomMyWayHome-v1".
      num_envs: number of streams B.
      seed: as `stream_seeds`.

    Raises:
      ValueError: a task whose actions are not Discrete.
      RuntimeError: an engine that does not run here.
    """

    frames_per_step = 4

    def __init__(self, name: str, num_envs: int, *, seed: int | np.ndarray | None = None):
        import vizdoom

        self._name = name
        self._deaths = (
            vizdoom.MessageQueueException,
            vizdoom.SharedMemoryException,
            vizdoom.ViZDoomErrorException,
            vizdoom.ViZDoomIsNotRunningException,
            vizdoom.ViZDoomUnexpectedExitException,
        )
        self._folder = tempfile.TemporaryDirectory(prefix="keras_rtrl_vizdoom_")
        self._launcher = os.path.join(self._folder.name, "vizdoom")
        engine = os.path.join(os.path.dirname(vizdoom.__file__), "vizdoom")
        with open(self._launcher, "w") as file:
            file.write(_LAUNCHER.format(engine=shlex.quote(engine)))
        os.chmod(self._launcher, 0o700)
        self._check_runs()

        self._seeds = stream_seeds(seed, num_envs).tolist()  # of the next episode; None goes on from the last
        self._engines = [self._engine() for _ in range(num_envs)]
        actions = self._engines[0].action_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise ValueError(f"{name} must have Discrete actions, such as VizdoomBasic-v1 has, got {actions}.")
        super().__init__(
            num_envs,
            array_spec.BoundedArraySpec((_HEIGHT, _WIDTH, 3), np.uint8, 0, 255, name="observation"),
            array_spec.BoundedArraySpec((), np.int64, 0, int(actions.n) - 1, name="action"),
        )
        # ViZDoom gives up the interpreter's lock while an engine works.
        self._threads = concurrent.futures.ThreadPoolExecutor(min(num_envs, len(os.sched_getaffinity(0))))
        self._screens = self._begin_all()  # of the first reset

    def _check_runs(self):
        """Raises RuntimeError if the engine does not run at all: ViZDoom would end this process without a message."""
        try:
            result = subprocess.run(
                [self._launcher, "-version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
            )
            said = result.stdout + result.stderr
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if "ViZDoom" not in said.partition("\n")[0]:
            raise RuntimeError(f"{self._name}: ViZDoom's engine does not run here: {said.strip()}")

    def _engine(self):
        env = gymnasium.make(
            self._name,
            disable_env_checker=True,
            frame_skip=self.frames_per_step,
            screen_resolution="RES_160X120",
            screen_format="RGB24",
            vizdoom_path=self._launcher,
        )
        return env.unwrapped  # no wrapper may miss that an episode ends with its engine

    def _reset(self):
        screens, self._screens = self._screens or self._begin_all(), None
        self._forget_games()
        return self._first(np.stack(screens))

    def _step(self, action):
        before = self._current_time_step
        first = before.step_type == StepType.LAST
        action = self._checked(action)
        steps = self._threads.map(self._play, range(self._num_envs), action, first, before.observation)
        screens, reward, discount, over, died = zip(*steps, strict=True)
        over, died = np.array(over), np.array(died)
        self._count(reward, ~first, over & ~died)
        self._returns[died] = self._lengths[died] = 0
        step_type = np.where(first, StepType.FIRST, np.where(over, StepType.LAST, StepType.MID)).astype(np.int32)
        return TimeStep(step_type, np.array(reward, np.float32), np.array(discount, np.float32), np.stack(screens))

    def _play(self, stream, action, first, held):
        """One stream's step: screen, reward, discount, whether its episode is over, whether its engine has died."""
        if first:
            return self._begin(stream), 0.0, 1.0, False, False
        try:
            observation, reward, terminated, truncated, _ = self._engines[stream].step(action)
        except self._deaths as death:
            self._replace(stream, death)
            return held, 0.0, 1.0, True, True
        if truncated or terminated:  # the time limit is reported as both
            return held, reward, 1.0 if truncated else 0.0, True, False
        return _resized(observation["screen"]), reward, 1.0, False, False

    def _begin_all(self):
        return list(self._threads.map(self._begin, range(self._num_envs)))

    def _begin(self, stream):
        """Begins the stream's next episode, in a fresh engine if need be. Returns its first screen."""
        for _ in range(_TRIES):
            try:
                observation, _ = self._engines[stream].reset(seed=self._seeds[stream])
            except self._deaths as death:
                self._replace(stream, death)
            else:
                self._seeds[stream] = None
                return _resized(observation["screen"])
        raise RuntimeError(f"{self._name}: ViZDoom's engine dies as soon as it has started.")

    def _replace(self, stream, death):
        logging.warning(
            "A ViZDoom engine died (%s): stream %d begins a new episode in a fresh one.",
            death,
            self._stream_numbers[stream],
        )
        self._engines[stream].close()
        self._engines[stream] = self._engine()
        self._seeds[stream] = int(stream_seeds(None, 1)[0])

    def close(self):
        for engine in self._engines:
            engine.close()
        self._threads.shutdown()
        self._folder.cleanup()


def _resized(screen):
    import cv2

    return cv2.resize(screen, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
