"""The command `keras-rtrl`."""

import argparse
import contextlib
import datetime
import errno
import logging
import math
import os
import re
import sys
import warnings

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

from keras_rtrl._errors import UsageError, one_line  # noqa: E402
from keras_rtrl.train import config, modules  # noqa: E402
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


class _Once(argparse.Action):
    """Stores a flag's value, and refuses the flag a second time: the first would have no effect."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("given", set())
        if option_string and self.dest in given:
            parser.error(f"argument {option_string}: given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Prints the usage of the command, and the error in one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def _get_values(self, action, arg_strings):
        if arg_strings == ["--"] and action.option_strings and action.nargs is None:
            self.error(f"argument {action.option_strings[-1]}: must be a value, got '--'")  # Python makes it []
        return super()._get_values(action, arg_strings)

    def error(self, message):
        super().error(one_line(message))


def _parser():
    parser = _Parser(prog="keras-rtrl", description="Exact real-time recurrent learning: train agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train an agent and leave a run folder")
    train.set_defaults(run=_train)
    train.add_argument(
        "preset", nargs="?", type=_name, metavar="PRESET", help=f"{', '.join(config.presets())}, or a gin file"
    )
    train.add_argument("--game", type=_name, metavar="NAME", help='environment; "Pong" means ALE/Pong-v5')
    train.add_argument("--frames", type=_positive_int, metavar="N", help="environment frames (Atari: 4 an agent step)")
    train.add_argument("--seed", type=_seed, metavar="N")
    train.add_argument("--out", type=_name, metavar="RUN", help="run folder (default: runs/<preset>-<game>-<time>)")
    train.add_argument("--resume", type=_name, metavar="RUN", help="go on with this run instead of starting one")
    _add_trust(train, "with --resume: ")
    _add_gin(train)
    train.add_argument("--minutes", type=_positive_float, metavar="M", help="stop after M minutes, with a checkpoint")

    _add_actors(train)

    sweep = commands.add_parser("sweep", help="train a preset's tasks x conditions x seeds; write a table and a figure")
    sweep.set_defaults(run=_sweep)
    sweep.add_argument("preset", type=_name, metavar="PRESET", help="a preset with a sweep, or a gin file")
    sweep.add_argument("--seeds", type=_number_of_seeds, metavar="K", help="seeds 1 to K (default: 3)")
    sweep.add_argument("--tasks", type=_name, metavar="NAMES", help="some of its tasks, by folder (default: all)")
    sweep.add_argument("--conditions", type=_name, metavar="NAMES", help="some of its conditions (default: all)")
    sweep.add_argument("--frames", type=_positive_int, metavar="N", help="environment frames of each run")
    sweep.add_argument("--jobs", type=_positive_int, metavar="N", help="runs at a time (default: one a core)")
    sweep.add_argument("--out", type=_name, metavar="DIR", help="folder for the results (default: results/<preset>)")
    _add_module(sweep)
    _add_trust(sweep, "for unfinished runs: ")
    sweep.add_argument("--report-only", action="store_true", help="train nothing; only make table and figure")

    evaluate = commands.add_parser("evaluate", help="play whole games greedily")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("folder", type=_name, metavar="RUN")
    evaluate.add_argument("--episodes", type=_positive_int, default=30, metavar="N", help="games (default: 30)")
    evaluate.add_argument("--repeats", type=_positive_int, default=1, metavar="N", help="repeat all games (default: 1)")
    evaluate.add_argument("--seed", type=_seed, default=1, metavar="N", help="seed of the first repeat (default: 1)")
    _add_gin(evaluate, "environment.options = {...}")
    evaluate.add_argument(
        "--max-steps", type=_positive_int, default=100_000, metavar="N", help="agent steps of a game (default: 100000)"
    )
    evaluate.add_argument("--video", type=_name, metavar="FILE", help="write the first game to an .mp4 or .avi")
    _add_trust(evaluate)

    _add_actors(evaluate)

    export = commands.add_parser("export", help="write the policy as a SavedModel that needs TensorFlow alone")
    export.set_defaults(run=_export)
    export.add_argument("folder", type=_name, metavar="RUN")
    export.add_argument("target", type=_name, metavar="DIR")
    _add_module(export)
    _add_trust(export)

    info = commands.add_parser("info", help="print versions, devices and the state of the native op")
    info.set_defaults(run=_info)

    bench = commands.add_parser("bench", help="time an agent's parts on an environment")
    bench_env = bench.add_subparsers(required=True, metavar="env").add_parser("env", help="on environment NAME")
    bench_env.set_defaults(run=_bench_env)
    bench_env.add_argument("name", type=_name, metavar="NAME", help='environment; "Pong" means ALE/Pong-v5')
    bench_env.add_argument("--preset", type=_name, help="preset (default: one for such environments)")
    _add_gin(bench_env)
    bench_env.add_argument(
        "--rounds", type=_positive_int, default=15, metavar="N", help="rollouts each part is timed (default: 15)"
    )
    return parser


def _add_actors(command):
    command.add_argument("--actors", type=_positive_int, metavar="N", help="play in N actors on Ray")
    command.add_argument("--ray-address", type=_name, metavar="ADDRESS", help='Ray cluster, such as "auto"')


def _add_gin(command, example="train.rollout_length = 10"):
    command.add_argument("--gin", action="append", default=[], metavar="BINDING", help=f'such as "{example}"')
    _add_module(command)


def _add_module(command):
    command.add_argument(
        "--module", action="append", default=[], type=_name, metavar="NAME",
        help='a module, or a file name.py, with a core, an encoder or an environment that is set as "name:part"',
    )  # fmt: skip


def _add_trust(command, which=""):
    command.add_argument(
        "--trust", action="store_true", help=f"{which}its settings may import and run modules (docs/security.md)"
    )


_ALONE = ("actors.num_actors = 0", "actors.address = None")  # also if the run was trained with actors


def _train(args):
    if args.trust and args.resume is None:
        raise UsageError("--trust is about the settings of a run: it goes with --resume")
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
    return 128 + result.signal if result.signal else 0


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


def _export(args):
    run = open_run(args.folder)
    if os.path.realpath(args.target) in map(os.path.realpath, (run.path, run.checkpoints, run.events)):
        raise UsageError(f"{args.target}: holds what the run needs; choose another folder for the policy")
    check_writable(args.target)
    held = os.listdir(args.target) if os.path.isdir(args.target) else ()
    if held and "saved_model.pb" not in held:
        raise UsageError(f"{args.target}: holds other things than a policy; choose another folder for it")
    from keras_rtrl.train import building, checkpoints, evaluate, export

    checkpoints.newest(run)  # finds a broken one at once
    with contextlib.closing(run_around(args.target)) as written:
        written.lock()
        config.load_run(run, _ALONE, args.trust, args.modules)
        scaler = building.reward_scaler()
        network = evaluate.load_network(run, building.environment(seed=0, streams=1), scaler)
        export.save(network, args.target, scaler)
    print(f"policy: {args.target}")
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


def _name(text):
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding, which TensorFlow takes for no name of a file
        raise argparse.ArgumentTypeError("must be UTF-8 (and PYTHONUTF8 not 0)") from error
    return text


def _positive_int(text):
    return _checked(int, text, lambda value: value >= 1, "a whole number of at least 1")


def _number_of_seeds(text):
    return _checked(int, text, lambda value: 1 <= value <= 10_000, "a whole number from 1 to 10000")


def _seed(text):
    return _checked(int, text, lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}")


def _positive_float(text):
    return _checked(float, text, lambda value: 0 < value < math.inf, "a finite number above 0")


def _checked(kind, text, fits, expected):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return value
