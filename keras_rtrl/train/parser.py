"""The words and flags that `keras-rtrl` takes."""

import argparse
import math

from keras_rtrl._errors import one_line
from keras_rtrl.train import config

QUICK = "tmaze_quick"


def make_parser(train, sweep, evaluate, worth, export, info, bench_env):
    """The parser of the command line.

    Args:
      train, sweep, ...: the function of each command, of the flags' namespace to an exit code: its `run`. Flags that
        were given are in the namespace's `given`.
    """
    whole = _Parser(prog="keras-rtrl", description="Exact real-time recurrent learning: train agents.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    _train(commands.add_parser("train", help="train an agent and leave a run folder"), train)
    text = "train a preset's tasks x conditions x seeds; write a table and a figure"
    _sweep(commands.add_parser("sweep", help=text), sweep)
    _evaluate(commands.add_parser("evaluate", help="play whole games greedily"), evaluate)
    text = "measure how far back a run's gradient reaches, and how stale its traces are"
    _worth(commands.add_parser("worth", help=text), worth)
    text = "write the policy, or an agent that learns on, as a SavedModel that needs TensorFlow alone"
    _export(commands.add_parser("export", help=text), export)
    text = "print versions, devices and the state of the native op"
    commands.add_parser("info", help=text).set_defaults(run=info)
    bench = commands.add_parser("bench", help="time an agent's parts on an environment")
    benches = bench.add_subparsers(required=True, metavar="env")
    _bench_env(benches.add_parser("env", help="on environment NAME"), bench_env)
    return whole


def _train(command, run):
    command.set_defaults(run=run)
    command.add_argument(
        "preset", nargs="?", type=_name, metavar="PRESET", help=f"{', '.join(config.presets())}, or a gin file"
    )
    command.add_argument("--quick", action="store_true", help=f"train preset {QUICK}, in under a minute")
    command.add_argument("--game", type=_name, metavar="NAME", help='environment; "Pong" means ALE/Pong-v5')
    command.add_argument(
        "--frames", type=_positive_int, metavar="N", help="environment frames (Atari: 4 an agent step)"
    )
    command.add_argument("--seed", type=_seed, metavar="N")
    command.add_argument("--out", type=_name, metavar="RUN", help="run folder (default: runs/<preset>-<game>-<time>)")
    command.add_argument("--resume", type=_name, metavar="RUN", help="go on with this run instead of starting one")
    _add_trust(command, "with --resume: ")
    _add_gin(command)
    command.add_argument("--minutes", type=_positive_float, metavar="M", help="stop after M minutes, with a checkpoint")
    command.add_argument("--no-film", action="store_true", help="do not film the trained policy at the end")
    _add_actors(command)


def _sweep(command, run):
    command.set_defaults(run=run)
    command.add_argument("preset", type=_name, metavar="PRESET", help="a preset with a sweep, or a gin file")
    command.add_argument("--seeds", type=_number_of_seeds, metavar="K", help="seeds 1 to K (default: 3)")
    command.add_argument("--tasks", type=_name, metavar="NAMES", help="some of its tasks, by folder (default: all)")
    command.add_argument("--conditions", type=_name, metavar="NAMES", help="some of its conditions (default: all)")
    command.add_argument("--frames", type=_positive_int, metavar="N", help="environment frames of each run")
    command.add_argument("--jobs", type=_positive_int, metavar="N", help="runs at a time (default: one a core)")
    command.add_argument("--out", type=_name, metavar="DIR", help="folder for the results (default: results/<preset>)")
    _add_module(command)
    _add_trust(command, "for unfinished runs: ")
    command.add_argument("--report-only", action="store_true", help="train nothing; only make table and figure")


def _evaluate(command, run):
    command.set_defaults(run=run)
    command.add_argument("folder", type=_name, metavar="RUN")
    command.add_argument("--episodes", type=_positive_int, default=30, metavar="N", help="games (default: 30)")
    command.add_argument("--repeats", type=_positive_int, default=1, metavar="N", help="repeat all games (default: 1)")
    command.add_argument("--seed", type=_seed, default=1, metavar="N", help="seed of the first repeat (default: 1)")
    _add_gin(command, "environment.options = {...}")
    command.add_argument(
        "--max-steps", type=_positive_int, default=100_000, metavar="N", help="agent steps of a game (default: 100000)"
    )
    command.add_argument("--video", type=_name, metavar="FILE", help="write the first game to an .mp4 or .avi")
    _add_trust(command)
    _add_actors(command)


def _worth(command, run):
    command.set_defaults(run=run)
    command.add_argument("folder", type=_name, metavar="RUN", help="a run of r2ac or ppo")
    command.add_argument(
        "--steps", type=_positive_int, default=256, metavar="K",
        help="steps of history that are kept, and the longest truncation (default: 256)",
    )  # fmt: skip
    command.add_argument(
        "--rollouts", type=_positive_int, default=4, metavar="N", help="rollouts that are measured (default: 4)"
    )
    command.add_argument("--seed", type=_seed, default=1, metavar="N", help="of environment and actions (default: 1)")
    _add_module(command)
    _add_trust(command)


def _export(command, run):
    command.set_defaults(run=run)
    command.add_argument("folder", type=_name, metavar="RUN")
    command.add_argument("target", type=_name, metavar="DIR")
    command.add_argument(
        "--learner", action="store_true", help="what acts and learns on, of a run of stream_ac or td_lambda"
    )
    _add_module(command)
    _add_trust(command)


def _bench_env(command, run):
    command.set_defaults(run=run)
    command.add_argument("name", type=_name, metavar="NAME", help='environment; "Pong" means ALE/Pong-v5')
    command.add_argument("--preset", type=_name, help="preset (default: one for such environments)")
    _add_gin(command)
    command.add_argument(
        "--rounds", type=_positive_int, default=15, metavar="N", help="rollouts each part is timed (default: 15)"
    )


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
