"""What a run's policy reaches: whole games, played greedily, and a film of the first."""

import contextlib
import errno
import itertools
import os
import zlib

import numpy as np
import tensorflow as tf
from tf_agents.environments import py_environment
from tqdm import tqdm

from keras_rtrl import distributed
from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError
from keras_rtrl.environments import registry
from keras_rtrl.train import actors, building, checkpoints, config, games
from keras_rtrl.train.export import PolicyModule
from keras_rtrl.train.run_folder import replacing

_VIDEO_FORMATS = (".mp4", ".avi")
_FILM_STEPS = 1500  # of a film that ends a training: 100 seconds


def load_network(run, env, reward_scaler=None):
    """The network of a run with the weights of its newest checkpoint; the run's configuration must be loaded.

    Also restores the statistics of `reward_scaler`, if there is one.
    """
    building.check_memory(env.batch_size, 0)
    network = building.network(env)
    checkpoints.restore_network(run, network, reward_scaler)
    return network


def evaluate(run, episodes=30, seed=1, video=None, repeats=1, max_steps=100_000):
    """Plays whole games greedily, the same number in each stream, or one more, so that short games count no more than
    long ones.

    The environment is the configured one: to play levels held out from training, change its options in the
    configuration.

    Args:
      run: RunFolder; its configuration must be loaded.
      episodes: number of games of each repeat, at least 1.
      seed: int, of the first repeat's environment; the others have seed + 1, seed + 2, ...
      video: path of an .mp4 or .avi for the first game, None for none. Needs image observations.
      repeats: number of times the games are played, in a fresh environment each time, at least 1.
      max_steps: agent steps after which a game is cut off; its score is that of the part that was played.

    Returns:
      (result, film): a dict, and the Video still to be written, None without one. The dict: mean and std (n in the
      denominator) over all games; means, one a repeat, and std_of_means, None for one repeat; human_normalized, of the
      mean, None if no scores are known; returns and lengths (agent steps) by game, and cut_off, whether the game
      was; environment and options, episodes, repeats, seed, max_steps, and updates learnt from.

    Raises:
      UsageError: arguments that do not fit.
    """
    for name, value in (("episodes", episodes), ("repeats", repeats), ("max_steps", max_steps)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    streams = min(episodes, 16)
    quota = [episodes // streams + (stream < episodes % streams) for stream in range(streams)]
    seeds, options = [seed + repeat for repeat in range(repeats)], building.actors()
    if options and video is not None:
        raise UsageError(f"actors cannot make a video: leave out --video {video} or --actors")
    film = None
    with _Progress(episodes * repeats) as bar:
        if options:
            played, updates = _played_by_actors(run, quota, seeds, max_steps, options, bar)
        else:
            played, updates, film = _played_here(run, quota, seeds, max_steps, video, bar)
    returns = [game_return for game_return, _, _ in played]
    means = np.reshape(returns, [repeats, episodes]).mean(axis=1)
    environment = config.value("environment.name", None)
    result = {
        "environment": environment,
        "options": config.value("environment.options", None),
        "episodes": episodes,
        "repeats": repeats,
        "seed": seed,
        "max_steps": max_steps,
        "updates": updates,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "means": means.tolist(),
        "std_of_means": float(np.std(means)) if repeats > 1 else None,
        "human_normalized": registry.normalized_score(environment, float(np.mean(returns))),
        "returns": returns,
        "lengths": [length for _, length, _ in played],
        "cut_off": [cut for _, _, cut in played],
    }
    return result, film


def film(run, path):
    """Films the beginning of one game, its actions drawn as in training; None if there are no images to film.

    Args:
      run: RunFolder; its configuration must be loaded.
      path: of the film, an .mp4.

    Returns:
      The game's return, of what was played.

    Raises:
      OSError: the film could not be written.
    """
    with _environment(1, 1) as env:
        if not shows_images(env) or hasattr(env, "ideal_prediction"):
            return None
        video, network = Video(path, env), building.network(env)
        checkpoints.restore_network(run, network)
        actions, step = network.actions, itertools.count()

        def drawn(outputs):
            return actions.sample(actions.from_info(outputs), tf.constant([1, next(step)]))

        with _Progress(1) as bar:
            for played in games.whole_games(env, PolicyModule(network), [1], _FILM_STEPS, video, drawn):
                bar.show(played, [1], 1)
    video.write()
    return played[0][0][0]


class _Progress(tqdm):
    """A bar of steps, with the number of games that are over; no bar if stderr is no terminal."""

    def __init__(self, wanted):
        super().__init__(unit=" steps", unit_scale=True, mininterval=0.5, disable=None)
        self._wanted, self._before = wanted, 0

    def show(self, played, quota, steps=0):
        """Adds `steps`; `played` are the games of this repeat."""
        over = sum(min(len(own or ()), wanted) for own, wanted in zip(played, quota, strict=True))
        self.set_postfix_str(f"{self._before + over} of {self._wanted} games", refresh=not steps)
        self.update(steps)

    def next_repeat(self, quota):
        self._before += sum(quota)


@contextlib.contextmanager
def _environment(seed, streams):
    env = building.environment(seed, streams=streams, evaluation=True)
    try:
        yield env
    finally:
        if isinstance(env, py_environment.PyEnvironment):
            env.close()


def _played_here(run, quota, seeds, max_steps, video, bar):
    """(games, updates, film): (return, length, cut off) of each seed's environment, stream by stream."""
    policy = film = updates = None
    result = []
    for seed in seeds:
        with _environment(seed, len(quota)) as env:
            if policy is None:
                _check_games(run, env)
                film = Video(video, env) if video is not None else None
                network = building.network(env)
                updates = checkpoints.restore_network(run, network)
                policy = PolicyModule(network)
            for played in games.whole_games(env, policy, quota, max_steps, film if seed == seeds[0] else None):
                bar.show(played, quota, len(quota))
            bar.next_repeat(quota)
            result += _wanted(played, quota)
    return result, updates, film


def _played_by_actors(run, quota, seeds, max_steps, options, bar):
    """As _played_here, without a film: actor i of N has every N-th stream from the i-th on."""
    with _environment(seeds[0], 1) as env:
        _check_games(run, env)
        network = building.network(env)
        updates = checkpoints.restore_network(run, network)
        weights = [variable.numpy() for variable in network.variables]
    number = min(options.num_actors, len(quota))
    result = []
    try:
        for seed in seeds:
            quotas = [quota[i::number] for i in range(number)]
            parts = distributed.play_games(
                actors.GameActor,
                [
                    (*actors.common_arguments(options), actors.environment_seed(seed, i, 0), quotas[i], max_steps)
                    for i in range(number)
                ],
                weights=weights,
                quotas=quotas,
                progress=lambda parts: bar.show(_by_stream(parts, len(quota)), quota),
                **options.for_ray(),
            )
            bar.next_repeat(quota)
            result += _wanted(_by_stream(parts, len(quota)), quota)
    except (ImportError, distributed.ActorFailure) as error:
        raise UsageError(str(error)) from error
    return result, updates


def _by_stream(parts, streams):
    """The games of each stream, from those of each actor (None before its first steps)."""
    number = len(parts)
    return [parts[i % number] and parts[i % number][i // number] for i in range(streams)]


def _check_games(run, env):
    if hasattr(env, "ideal_prediction"):
        raise UsageError(f"{run.path}: a run of a prediction task, which has no games to play")


def _wanted(played, quota):
    """The first `quota[i]` games of each stream i in one list."""
    return [game for own, wanted in zip(played, quota, strict=True) for game in own[:wanted]]


class Video:
    """Writes what the first stream shows: its screen in colour if it has one (Atari), else the newest image it sees."""

    def __init__(self, path, env):
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in _VIDEO_FORMATS:
            raise UsageError(f"{path}: a video ends in {', '.join(_VIDEO_FORMATS)}")
        if not shows_images(env):
            spec = games.seen(env.time_step_spec().observation)
            raise UsageError(f"--video {path}: this task's observations are no images, {shown(spec)}")
        existed = os.path.lexists(path)
        try:
            with open(path, "ab"):  # neither truncates nor writes
                pass
            if not existed:
                os.remove(path)
        except OSError as error:
            raise UsageError(f"{path}: cannot write this file ({error.strerror})") from error
        self._path, self._frames, self._screen = path, [], None
        if hasattr(env, "watch"):
            env.watch()
            self._screen = env.picture

    def add(self, observation):
        image = observation[0] if self._screen is None else self._screen()
        image = image if image.shape[-1] == 3 else image[..., -1:].repeat(3, axis=-1)
        self._shape = image.shape
        self._frames.append(zlib.compress(image.tobytes(), 1))  # a long game's would fill the memory

    def write(self, frames_per_second=15):
        """Writes the file, H.264 of at least 256 pixels. Raises OSError if that fails."""
        import imageio_ffmpeg

        height, width, _ = self._shape
        times = -(-256 // min(height, width))
        with replacing(self._path) as temporary:
            try:
                writer = imageio_ffmpeg.write_frames(
                    temporary, (width * times, height * times), fps=frames_per_second, macro_block_size=2
                )
                with contextlib.closing(writer):
                    writer.send(None)
                    for packed in self._frames:
                        frame = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self._shape)
                        writer.send(np.ascontiguousarray(frame.repeat(times, axis=0).repeat(times, axis=1)))
                whole = imageio_ffmpeg.count_frames_and_secs(temporary)[0] == len(self._frames)
            except (OSError, RuntimeError):  # of ffmpeg's end: its message is pages long
                whole = False
            if not whole:
                raise OSError(errno.EIO, "the film is not whole; is the disk full?")


def shows_images(env):
    """Whether `Video` can show the environment."""
    spec = games.seen(env.time_step_spec().observation)
    return not isinstance(spec, dict) and tf.as_dtype(spec.dtype) == tf.uint8 and len(spec.shape) == 3
