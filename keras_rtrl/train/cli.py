"""The command `keras-rtrl`."""

import contextlib
import datetime
import errno
import logging
import os
import re
import sys
import warnings

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

from keras_rtrl._errors import UsageError, one_line  # noqa: E402
from keras_rtrl.train import config, modules  # noqa: E402
from keras_rtrl.train.parser import QUICK, make_parser  # noqa: E402
from keras_rtrl.train.run_folder import (  # noqa: E402
    RunFolder,
    check_writable,
    new_run,
    open_run,
    run_around,
    write_json,
    writing,
)


def main(argv=None):
    """Runs one command and returns its exit code.

    0: done (or the limit of --minutes reached). 1: training diverged, or has lost its actors or another process, or a
    file could not be written. 2: bad input. 128 + n: ended by signal n, after a checkpoint; so 141 if nobody reads the
    standard output any more.
    """
    # TF-Agents compares with () and [] by "is"; AutoGraph's copy of it makes Python say so over the progress bar.
    warnings.filterwarnings("ignore", '"is( not)?" with', SyntaxWarning)
    # after a checkpoint that does not fit TensorFlow lists each of its values, line by line
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        try:
            words = sys.argv[1:] if argv is None else argv
            if words[:1] == ["bench"] and words[1:2] not in (["env"], ["-h"], ["--help"]):
                raise UsageError("bench takes env NAME; `python -m benchmarks.speed` times layers in a source checkout")
            args = _parser().parse_args(words)
            args.command = ["keras-rtrl", *words]
            args.modules = modules.load(getattr(args, "module", []))
            return args.run(args)
        finally:
            with writing("standard output"):
                sys.stdout.flush()  # a failure here still gives a message
    except UsageError as error:
        _say(f"error: {one_line(error)}")
        return 2
    except OSError as error:
        return _failed(error)
    except KeyboardInterrupt:  # outside the training loop: there is nothing to save
        return 130


def _parser():
    return make_parser(_train, _sweep, _evaluate, _worth, _export, _info, _bench_env)


def _say(text):
    with contextlib.suppress(OSError):  # nobody reads what is said there
        print(f"keras-rtrl: {text}", file=sys.stderr, flush=True)


def _failed(error):
    """The exit code for a file, or the standard output, that could not be written; says so in one line."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try once more at its end
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), stream.fileno())
    if isinstance(error, BrokenPipeError) and error.filename in (None, "standard output"):
        return 141
    _say(f"error: {_reason(error)}")
    return 2 if isinstance(error, _MISPLACED) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 1


_MISPLACED = (IsADirectoryError, NotADirectoryError, FileExistsError)  # the file's path is taken by something else


def _reason(error):
    """An OSError in one line."""
    reason = error.strerror or str(error)
    return one_line(reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}")


_ALONE = ("actors.num_actors = 0", "actors.address = None")  # also if the run was trained with actors


def _train(args):
    if args.trust and args.resume is None:
        raise UsageError("--trust is about the settings of a run: it goes with --resume")
    if args.quick:
        if args.preset or args.resume:
            raise UsageError(f"--quick trains {QUICK}: leave out {args.preset or '--resume'}")
        args.preset = QUICK
    if args.preset is None and args.resume is None:
        raise UsageError(f"name a preset ({', '.join(config.presets())}) or a gin file, or --resume a run")
    run = _resumed(args) if args.resume is not None else None
    source = None if run else config.find(args.preset)
    from keras_rtrl.train import building, loop, used

    bindings = [*_game_bindings(args, source), *_actor_bindings(args)]
    if args.frames is not None:
        bindings.append(f"train.frames = {args.frames}")
    if args.seed is not None:
        bindings.append(f"train.seed = {args.seed}")
    if run:
        config.load_run(run, ["actors.address = None"], args.trust, args.modules)
        before = used.snapshot()
        given = config.load_run(run, [*bindings, *args.gin], args.trust, args.modules)
        used.check("train", [], given)
        used.check_resumed(run, before, given)
    else:
        own, given = config.load(source, [*bindings, *args.gin])
        used.check("train", own, given)
    used.check_once(bindings, given)
    used.check_set(args.resume or args.preset)
    facts = {}
    if not run:
        preset = os.path.splitext(os.path.basename(args.preset))[0]
        run, facts = _new_run(args.out, preset), {"command": args.command, "preset": preset}
    print(f"run folder: {run.path}", flush=True)
    try:
        result = loop.train(run, building.training(), args.resume is not None, args.minutes, facts)
    except OSError as error:
        if error.filename is None:  # the standard output
            raise
        _say(f"training stopped: cannot write {_reason(error)}")
        if run.holds_run():
            print(f"go on with: keras-rtrl train --resume {run.path}")
        return 1
    except loop.Diverged as error:
        print(f"keras-rtrl: training stopped: {one_line(error)}", file=sys.stderr)
        return 1
    except (loop.ActorFailure, loop.ProcessLost) as error:
        print(f"keras-rtrl: training stopped: {one_line(error)}", file=sys.stderr)
        print(f"go on with{', in every process' if _several() else ''}: keras-rtrl train --resume {run.path}")
        return 1
    _print_training(run, result)
    if result.done and not result.signal and not args.no_film and not _several():
        _film(run)
    return 128 + result.signal if result.signal else 0


def _film(run):
    """Films the trained policy, if the task has images; training has succeeded even if that fails."""
    from keras_rtrl.train import evaluate

    try:
        game_return = evaluate.film(run, run.film)
    except OSError as error:
        _say(f"no film of the policy: {_reason(error)}")
        return
    if game_return is not None:
        print(f"a game by the trained policy, return {game_return:g}: {run.film}")


def _resumed(args):
    """The run that --resume names."""
    for option in ("preset", "game", "seed", "out"):
        if (value := getattr(args, option)) is not None:
            raise UsageError(f"--resume goes on with a run as it was set up: leave out {option} {value!r}")
    return open_run(args.resume)


def _new_run(out, preset):
    """The folder of a new run, by --out or by the time; the configuration must be loaded."""
    if out is None:
        if _several():
            raise UsageError("several processes make one run: give --out, the same folder to each")
        game = re.split("[/:]", config.text("environment.name", ""))[-1].rsplit("-v", 1)[0]
        return new_run(os.path.join("runs", f"{preset}-{game}-{datetime.datetime.now():%Y%m%d-%H%M%S}"))
    if not _several():
        return new_run(out)
    check_writable(out)
    run = RunFolder(out)
    run.check_kinds()
    return run


def _several():
    return config.value("train.strategy", None) == "multi_worker_mirrored"


def _print_training(run, result):
    mean = "none finished" if result.mean_return is None else f"mean return {result.mean_return:.2f}"
    if result.random_return is not None:
        mean += f", random play {result.random_return:.2f}"
    scores = [f"{name} {value:.4g}" for name, value in result.errors.items() if value is not None]
    scores = ", ".join(scores or [f"{result.games} games ({mean})"]) + _normalized(result.human_normalized)
    print(f"{result.frames} frames, {result.updates} updates, {scores}, {result.seconds:.0f} s")
    if not result.done:
        print(f"not at its end; go on with: keras-rtrl train --resume {run.path}")


def _game_bindings(args, source):
    """What --game stands for."""
    if args.game is None:
        return []
    from keras_rtrl.environments import registry

    name = _environment_name(args.game)
    config.load(source)
    same = registry.family(name) == registry.family(config.text("environment.name", name))
    # the preset's options are another family's
    return [f"environment.name = {name!r}", *([] if same else ["environment.options = None"])]


def _actor_bindings(args):
    if args.ray_address is not None and args.actors is None:
        raise UsageError(f"--ray-address needs --actors, got only --ray-address {args.ray_address!r}")
    bindings = [] if args.actors is None else [f"actors.num_actors = {args.actors}"]
    return bindings + ([] if args.ray_address is None else [f"actors.address = {args.ray_address!r}"])


def _sweep(args):
    for option in ("seeds", "frames", "jobs", "trust"):
        if args.report_only and getattr(args, option):
            raise UsageError(f"--report-only trains nothing: leave out --{option}")
    source = config.find(args.preset)
    from keras_rtrl.train import report, sweep, used
    from keras_rtrl.train.study import Study

    own, _ = config.load(source)
    used.check("train", own, [])
    preset = os.path.splitext(os.path.basename(args.preset))[0]
    study = Study(args.out or os.path.join("results", preset))
    tasks, conditions = config.sweep()
    tasks = sweep.chosen("--tasks", tasks, args.tasks)
    conditions = sweep.chosen("--conditions", conditions, args.conditions)
    code, reported = 0, args.report_only
    if not args.report_only:
        runs = sweep.runs_of(args.preset, study, tasks, conditions, range(1, (args.seeds or 3) + 1), args.frames)
        code = sweep.train(study, runs, args.preset, args.jobs or os.cpu_count(), args.trust, args.modules)
        reported = code < 128 and not {run.key for run in runs}.isdisjoint(study.read())
    if reported:
        config.load(source)
        tasks, conditions = config.sweep()  # all there are: what earlier sweeps left is reported too
        results = report.read(study, tasks, conditions)
        table = report.table(results)
        print(table, end="", flush=True)  # first, in case the file cannot be written
        report.write(study, results, table, preset)
    return code


def _evaluate(args):
    run = open_run(args.folder)
    _actor_bindings(args)  # checks them
    from keras_rtrl.train import checkpoints, evaluate, used

    checkpoints.newest(run)  # finds a broken one at once

    actors = [f"actors.num_actors = {args.actors or 0}", f"actors.address = {args.ray_address!r}"]  # not its training's
    given = config.load_run(run, [*actors, *args.gin], args.trust, args.modules)
    used.check("evaluate", [], given)
    with contextlib.closing(run):
        run.lock_evaluation()
        result, film = evaluate.evaluate(run, args.episodes, args.seed, args.video, args.repeats, args.max_steps)
        _print_evaluation(result, args)
        write_json(run.evaluation, result)
        if film is not None:
            film.write()
    return 0


def _print_evaluation(result, args):
    if args.repeats == 1:
        games = zip(result["returns"], result["lengths"], result["cut_off"], strict=True)
        for number, (game_return, length, cut) in enumerate(games, 1):
            print(f"game {number}: return {game_return:g}, {length} steps{', cut off' if cut else ''}")
        spread = f"{result['std']:.2f} over {args.episodes} games"
    else:
        for number, mean in enumerate(result["means"], 1):
            print(f"repeat {number}: mean {mean:.2f}")
        spread = f"{result['std_of_means']:.2f} over the means of {args.repeats} x {args.episodes} games"
    print(f"mean {result['mean']:.2f}, standard deviation {spread}{_normalized(result['human_normalized'])}")
    sys.stdout.flush()
    if any(result["cut_off"]):
        _say(f"{sum(result['cut_off'])} of {len(result['cut_off'])} games did not end within {args.max_steps} steps "
             "(--max-steps) and count as far as they were played")  # fmt: skip


def _worth(args):
    run = open_run(args.folder)
    from keras_rtrl.train import checkpoints, worth

    checkpoints.newest(run)  # finds a broken one at once
    config.load_run(run, [*_ALONE, "train.strategy = None"], args.trust, args.modules)
    with contextlib.closing(run):
        measured = worth.measure(run, args.steps, args.rollouts, args.seed)
        print(worth.about(measured))
        print(worth.table(measured), end="")
        print(worth.sentence(measured))
        print(worth.by_weight(measured), flush=True)
        if (encoder := worth.of_encoder(measured)) is not None:
            print(encoder, flush=True)
        name = f"{run.read_record().get('preset') or 'run'}, {config.text('environment.name', '')}"
        worth.write(run, measured, name)
    return 0


def _export(args):
    run = open_run(args.folder)
    if os.path.realpath(args.target) in map(os.path.realpath, (run.path, run.checkpoints, run.events)):
        raise UsageError(f"{args.target}: holds what the run needs; choose another folder for the export")
    check_writable(args.target)
    held = os.listdir(args.target) if os.path.isdir(args.target) else ()
    if held and "saved_model.pb" not in held:
        raise UsageError(f"{args.target}: holds other things than an export; choose another folder for it")
    from keras_rtrl.train import building, checkpoints, evaluate, export, learner

    checkpoints.newest(run)  # finds a broken one at once
    with contextlib.closing(run_around(args.target)) as written:
        written.lock()
        config.load_run(run, _ALONE, args.trust, args.modules)
        if args.learner:
            learner.save(run, args.target)
        else:
            scaler = building.reward_scaler()
            network = evaluate.load_network(run, building.environment(seed=0, streams=1), scaler)
            export.save(network, args.target, scaler)
    print(f"{'learner' if args.learner else 'policy'}: {args.target}")
    return 0


def _info(args):
    del args
    import importlib.metadata
    import platform

    import keras_rtrl

    print(f"keras_rtrl {keras_rtrl.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("tensorflow", "keras", "tf-keras", "tf-agents", "numpy", "gymnasium", "ale-py"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    import tensorflow as tf

    devices = tf.config.list_physical_devices()
    for device in devices:
        details = tf.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
        print(f"device {device.name.removeprefix('/physical_device:')} {details.get('device_name', '')}".rstrip())
    _print_native(keras_rtrl.native.info())
    return 0


def _print_native(native):
    if not native["built"]:
        print(f"native op: none: {native['why_not']}")
        return
    print(f"native op: built for TensorFlow {native['tensorflow_built_for']}, {native['path']}")
    print(f"native op: {native['simd']} on CPUs; kernels {', '.join(native['cells'])}")
    if native["cuda"] is None:
        print("native op: no CUDA kernels")
    else:
        print(
            f"native op: CUDA {native['cuda']} for {native['cuda_architectures']}; "
            f"TensorFlow's CUDA {native['tensorflow_cuda']}"
        )
    for name, reason in native["devices"].items():
        if reason is not None:
            print(f"native op: not on {name}: {reason}")


def _bench_env(args):
    from keras_rtrl.environments import registry
    from keras_rtrl.train import throughput, used

    name = _environment_name(args.name)
    preset = args.preset or _preset_of(registry.family(name))
    own, given = config.load(config.find(preset), [f"environment.name = {name!r}", *args.gin])
    used.check("bench", own, given)
    rates = throughput.measure(args.rounds)
    print(f"{name}, preset {preset}: agent steps a second of all streams, medians of {args.rounds} rollouts")
    for part in ("environment", "policy", "learner"):
        rate = getattr(rates, part)
        print(f"{part:<12}{rate:9,.0f}   alone; {100 * rates.end_to_end / rate:.0f} % of end to end's time")
    print(f"{'end to end':<12}{rates.end_to_end:9,.0f}   {100 * rates.end_to_end / rates.allowed:.0f} % of "
          f"{rates.allowed:,.0f}, the rate of the three one after the other")  # fmt: skip
    return 0


def _preset_of(family):
    """The preset that has environments of a family; the one for CPUs if there are several."""
    from keras_rtrl.environments import registry

    fitting = []
    for preset in config.presets():
        config.load(config.find(preset))
        if registry.family(config.text("environment.name", "")) == family:
            fitting.append(preset)
    if not fitting:
        raise UsageError("no preset has such an environment: name one with --preset")
    return max(fitting, key=lambda preset: preset.endswith("_cpu"))


def _environment_name(game):
    return game if any(mark in game for mark in "/-:") else f"ALE/{game}-v5"


def _normalized(score):
    return "" if score is None else f", human-normalised {score:.3f}"
