"""Whole games, played greedily."""

import contextlib
import os
import tempfile

import gin
import numpy as np
import tensorflow as tf
from tf_agents.environments import py_environment, tf_environment

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError
from keras_rtrl.environments import registry
from keras_rtrl.train import building, checkpoints, config
from keras_rtrl.train.export import PolicyModule, flat
from keras_rtrl.train.run_folder import write_json

_VIDEO_FORMATS = (".mp4", ".avi")


def load_network(run, env, reward_scaler=None):
    """The network of a run with the weights of its newest checkpoint; the run's configuration must be loaded.

    Brings the statistics of `reward_scaler`, if there is one, to where they were too.
    """
    building.check_memory(env.batch_size, 0)
    network = building.network(env)
    checkpoints.restore_network(run, network, reward_scaler)
    return network


def evaluate(run, episodes=30, seed=1, video=None, repeats=1):
    """Plays whole games greedily, as many in each stream (but one), so that short games count no more than long ones.

    The environment is the configured one: to play levels held out from training, change its options in the
    configuration.

    Args:
      run: RunFolder; its configuration must be loaded.
      episodes: number of games of each repeat, at least 1.
      seed: int, of the first repeat's environment; the others have seed + 1, seed + 2, ...
      video: path of an .mp4 or .avi for the first game, None for none. Needs image observations.
      repeats: number of times the games are played, in a fresh environment each time, at least 1.

    Returns:
      dict: mean and std (n in the denominator) over all games; means, one a repeat, and std_of_means, None for one
      repeat; human_normalized, of the mean, None where no scores are known; returns and lengths (agent steps) by game;
      environment and options, episodes, repeats, seed, and updates learnt from. Written to evaluation.json too.

    Raises:
      UsageError: arguments that do not fit.
    """
    for name, value in (("episodes", episodes), ("repeats", repeats)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    streams = min(episodes, 16)
    quota = [episodes // streams + (stream < episodes % streams) for stream in range(streams)]
    settings = building.actors()
    if settings:
        if video is not None:
            raise UsageError(f"a video is of a game played here: leave out --video {video} or --actors")
        games = _played_by_actors(run, quota, [seed + repeat for repeat in range(repeats)], settings)
    else:
        games = _played_here(run, quota, [seed + repeat for repeat in range(repeats)], video)
    returns = [game_return for game_return, _ in games]
    means = np.reshape(returns, [repeats, episodes]).mean(axis=1)
    environment = config.value("environment.name", None)
    result = {
        "environment": environment,
        "options": config.value("environment.options", None),
        "episodes": episodes,
        "repeats": repeats,
        "seed": seed,
        "updates": checkpoints.saved_updates(run),
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "means": means.tolist(),
        "std_of_means": float(np.std(means)) if repeats > 1 else None,
        "human_normalized": registry.normalized_score(environment, float(np.mean(returns))),
        "returns": returns,
        "lengths": [length for _, length in games],
    }
    write_json(run.evaluation, result)
    return result


@contextlib.contextmanager
def _environment(seed, streams):
    env = building.environment(seed, streams=streams, evaluation=True)
    try:
        yield env
    finally:
        if isinstance(env, py_environment.PyEnvironment):
            env.close()


def _played_here(run, quota, seeds, video):
    """The games of each seed's environment, (return, length), stream by stream."""
    policy = recorder = None
    result = []
    for seed in seeds:
        with _environment(seed, len(quota)) as env:
            if policy is None:
                _check_games(run, env)
                recorder = Video(video, env) if video is not None else None
                policy = PolicyModule(load_network(run, env))
            for played in whole_games(env, policy, quota, recorder):  # noqa: B007  the same list grows
                pass
            recorder, done = None, recorder
            if done:
                done.close()
            result += _wanted(played, quota)
    return result


def _played_by_actors(run, quota, seeds, settings):
    """As _played_here: actor i of N has every N-th stream from the i-th on."""
    from keras_rtrl import distributed
    from keras_rtrl.distributed.actor import environment_seed

    with _environment(seeds[0], 1) as env:
        _check_games(run, env)
        weights = [variable.numpy() for variable in load_network(run, env).variables]
    number = min(settings["number"], len(quota))
    result = []
    try:
        for seed in seeds:
            parts = distributed.play_games(
                gin.config_str(),
                weights,
                [quota[i::number] for i in range(number)],
                [environment_seed(seed, i, 0) for i in range(number)],
                settings["address"],
                settings["cpus"],
                settings["timeout"],
            )
            result += _wanted([parts[stream % number][stream // number] for stream in range(len(quota))], quota)
    except (ImportError, distributed.ActorFailure) as error:
        raise UsageError(str(error)) from error
    return result


def _check_games(run, env):
    if hasattr(env, "ideal_prediction"):
        raise UsageError(f"{run.path}: a run of a prediction task, which has no games to play")


def _wanted(played, quota):
    """The first `quota[i]` games of each stream i in one list."""
    return [game for games, wanted in zip(played, quota, strict=True) for game in games[:wanted]]


def whole_games(env, policy, quota, recorder=None):
    """Plays until each stream i has played `quota[i]` games.

    Yields after each step the games so far, a list of (return, length in agent steps) a stream, always the same list.
    """
    played = [[] for _ in quota]
    for observation, finished in _play(env, policy):
        if recorder and not played[0]:
            recorder.add(observation)
        for game_return, length, stream in finished:
            played[stream].append((game_return, length))
        yield played
        if all(len(games) >= wanted for games, wanted in zip(played, quota, strict=True)):
            return


def _play(env, policy):
    """Yields (observation array, games finished as (return, length, stream)) after each step, for ever."""
    in_graph = isinstance(env, tf_environment.TFEnvironment)
    step = tf.function(env.step) if in_graph else env.step
    time_step = env.reset()
    state = policy.initial_state(batch_size=tf.constant(env.batch_size))
    returns, lengths = np.zeros(env.batch_size), np.zeros(env.batch_size, int)
    while True:
        inputs = {name: tf.convert_to_tensor(value) for name, value in flat(time_step.observation).items()}
        outputs = policy.action(step_type=tf.convert_to_tensor(time_step.step_type), **inputs, **state)
        state = {name: value for name, value in outputs.items() if name.startswith("state_")}
        time_step = step(outputs["action"] if in_graph else outputs["action"].numpy())
        if in_graph:  # an episode is a game
            step_type = time_step.step_type.numpy()
            returns += time_step.reward.numpy()
            lengths += step_type != 0
            finished = [(float(returns[i]), int(lengths[i]), int(i)) for i in np.flatnonzero(step_type == 2)]
            returns[step_type == 2] = lengths[step_type == 2] = 0
        else:
            finished = env.finished_games()
        yield np.asarray(_seen(time_step.observation)), finished


def _seen(observation):
    """The environment's own observation, or of one of parts the image."""
    observation = observation["observation"]
    return observation.get("rgb", observation) if isinstance(observation, dict) else observation


class Video:
    """Writes what the first stream sees, the newest image of its stack, four times enlarged."""

    def __init__(self, path, env):
        suffix = os.path.splitext(path)[1].lower()
        spec = _seen(env.time_step_spec().observation)
        if suffix not in _VIDEO_FORMATS:
            raise UsageError(f"{path}: a video ends in {', '.join(_VIDEO_FORMATS)}")
        if isinstance(spec, dict) or tf.as_dtype(spec.dtype) != tf.uint8 or len(spec.shape) != 3:
            raise UsageError(f"--video {path}: this task's observations are no images, {shown(spec)}")
        try:
            if os.path.exists(path):
                with open(path, "ab"):  # neither truncates nor writes
                    pass
            else:
                with tempfile.TemporaryFile(dir=os.path.dirname(path) or "."):
                    pass
        except OSError as error:
            raise UsageError(f"{path}: cannot write this file ({error.strerror})") from error
        self._path, self._suffix, self._frames = path, suffix, []

    def add(self, observation):
        image = observation[0]
        self._frames.append(image if image.shape[-1] == 3 else image[..., -1:].repeat(3, axis=-1))

    def close(self, frames_per_second=15):
        frames = [frame.repeat(4, axis=0).repeat(4, axis=1) for frame in self._frames]
        import cv2

        code = cv2.VideoWriter_fourcc(*("mp4v" if self._suffix == ".mp4" else "MJPG"))
        writer = cv2.VideoWriter(self._path, code, frames_per_second, frames[0].shape[1::-1])
        for frame in frames:
            writer.write(frame[..., ::-1])
        writer.release()
