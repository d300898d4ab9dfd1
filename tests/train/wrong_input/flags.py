"""Every flag of every command with wrong values, twice, without one; combinations; variables; signals."""

import argparse
import shlex
import signal

from case import START, Case, shortened
from files import SWEEP
from settings import TMAZE

from keras_rtrl.train import cli

DEEP = "/".join(["y" * 200] * 30)  # longer than a path may be
NUMBERS = (
    "", " ", "x", "-1", "0", "1.5", "1e3x", "nan", "inf", "-inf", "1e999", "²", "٣x", "1" * 5000, "0x10", "None",
    "True", "1_", "[1]", "--", "1 2", "\udcff",
)  # fmt: skip
NAMES = (
    "", " ", "x" * 5000, DEEP, "/proc/x", "/dev/null", "/dev/full", ".", "..", "/", "~", "-", "a\nb", "\udcff", "²",
    "%x", "{x}", "'", '"', "a:b", "a/b:c", "nonsense", "[", "*", "\x1b[31m", "--frames",
)  # fmt: skip
# A command line of each command that would do something, without its flags.
RIGHT = {
    "train": ["train", "tiny.gin", *START],
    "sweep": ["sweep", "sweep.gin", "--report-only"],
    "evaluate": ["evaluate", "run", "--episodes", "1"],
    "worth": ["worth", "run", "--steps", "4", "--rollouts", "1"],
    "export": ["export", "run", "target"],
    "info": ["info"],
    "bench": ["bench"],
    "bench env": ["bench", "env", "CartPole-v1", "--preset", "tiny.gin", "--rounds", "1"],
}


def _run(folder, made):
    made.copy(folder / "run")


def _swept(folder, made):
    made.kept(folder / "results" / "sweep", 1)


def _case(name, command, words, expected="refused", names=(), **options):
    """A case with what its command needs."""
    files = {"tiny.gin": TMAZE, "sweep.gin": SWEEP}
    prepare = _run if "run" in words else _swept if command == "sweep" else None
    return Case(name, words, expected, names, files, prepare, **options)


def commands():
    """{"train": its parser, "bench env": ...}."""
    found = {}

    def walk(parser, words):
        if words:
            found[" ".join(words)] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    walk(child, [*words, name])

    walk(cli._parser(), [])
    return found


def _flags(parser):
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            yield action.option_strings[-1], action


def _values(action):
    """Wrong values of a flag, by what it is converted with."""
    if action.nargs == 0:
        return ()
    kind = getattr(action.type, "__name__", "")
    return NAMES if kind in ("_name", "") else NUMBERS


def _expected(flag, value):
    """ "either" for values that a flag may take."""
    nowhere = ("", "/dev/null", "/dev/full", "/proc/x", "x" * 5000, DEEP)
    free = (flag == "--out" and value not in nowhere) or (flag, value) == ("--seed", "0")
    return "either" if free or (flag == "--minutes" and value in ("1.5", "inf", "1e999")) else "refused"


def values():
    """Every flag with every wrong value, as two words and as one."""
    for command, parser in commands().items():
        for flag, action in _flags(parser):
            for i, value in enumerate(_values(action)):
                expected = _expected(flag, value)
                if expected != "refused" and (command == "sweep" or flag == "--minutes"):
                    continue  # would time, report or train in earnest
                if (flag, value) == ("--out", "/"):
                    continue  # a run there would take all that is below for its own
                if flag == "--ray-address" and value.strip():
                    continue  # Ray would look for it
                words = ["train", *START] if flag == "--resume" else _without(RIGHT[command], flag)
                words = [*words, "--actors", "1"] if flag == "--ray-address" else words
                given = [f"{flag}={value}"] if i % 2 or value.startswith("-") else [flag, value]
                yield _case(f"{command} {' '.join(map(shortened, given))!r}", command, [*words, *given], expected)


def _without(words, flag):
    if flag not in words:
        return words
    at = words.index(flag)
    return [*words[:at], *words[at + 2 :]]


def operands():
    """Each command with too few operands and too many, each flag without its value, flags of other commands."""
    for command, parser in commands().items():
        right = RIGHT[command]
        positional = [action for action in parser._actions if not action.option_strings]
        needed = [action for action in positional if action.nargs is None]
        if needed and command not in ("train",):
            yield _case(f"{command} alone", command, command.split())
        yield _case(f"{command} with one word more", command, [*right, "onemore"])
        yield _case(f"{command} --nonsense", command, [*right, "--nonsense"])
        yield _case(f"{command} --nonsense=3", command, [*right, "--nonsense=3"])
        yield _case(f"{command} -x", command, [*right, "-x"])
        own = dict(_flags(parser))
        for flag, action in own.items():
            if action.nargs == 0:
                yield _case(f"{command} {flag}=x", command, [*right, f"{flag}=x"], names=(flag,))
            else:
                yield _case(f"{command} {flag} without a value", command, [*right, flag], names=(flag,))
        every = {flag: action for other in commands().values() for flag, action in _flags(other)}
        for flag, action in every.items():
            if flag not in own and not any(name.startswith(flag) for name in own):
                value = [] if action.nargs == 0 else ["1"]
                yield _case(f"{command} {flag}, another command's", command, [*right, flag, *value])
    for words in (
        [],
        ["nonsense"],
        [""],
        ["²"],
        ["\udcff"],
        ["--train"],
        ["x" * 5000],
        ["train", "evaluate"],
        ["-1"],
        ["--"],
    ):
        yield _case(f"keras-rtrl {' '.join(map(shortened, words))!r}", "", words)
    for value in NAMES:
        if value.startswith("-"):
            continue
        for words in (["train", value, "--out", "new", *START], ["evaluate", value], ["worth", value],
                      ["export", value, "target"]):  # fmt: skip
            yield _case(f"{words[0]} {shortened(value)!r}", words[0], words)
        yield _case(f"sweep {shortened(value)!r}", "", ["sweep", value, "--out", "new"])
        free = value not in (
            "",
            "/dev/null",
            "/dev/full",
            "/proc/x",
            ".",
            "..",
            "/",
            "x" * 5000,
            DEEP,
        )
        words = ["export", "run", value]
        yield _case(f"export run {shortened(value)!r}", "export", words, "either" if free else "refused")


def twice():
    """Each flag given twice: the first would have no effect."""
    given = {
        "--out": ("new", "other"),
        "--resume": ("run", "run"),
        "--tasks": ("t-maze", "t-maze"),
        "--conditions": ("all", "all"),
    }
    for command, parser in commands().items():
        for flag, action in _flags(parser):
            if action.nargs == 0 or flag == "--gin":
                continue
            first, second = given.get(flag, ("1", "2"))
            words = ["train", *START] if flag == "--resume" else _without(RIGHT[command], flag)
            yield _case(f"{command} {flag} twice", command, [*words, flag, first, flag, second], names=(flag,))


# A name in capitals stands for a command line that would do something; "?" for what may be taken.
COMBINATIONS = """
RESUME tiny.gin
RESUME --game TMaze-v0
RESUME --seed 1
RESUME --out new
RESUME --frames 1
RESUME --gin 'train.frames = 1'
RESUME --gin 'train.seed = 9'
RESUME --gin 'train.rollout_length = 3'
RESUME --gin 'train.optimizer = @RMSprop'
RESUME --gin 'train.encoder_from = "run"'
RESUME --gin 'environment.options = {"corridor": 9}'
RESUME --gin 'environment.num_envs = 3'
RESUME --gin 'environment.name = "MemoryChain-v0"'
RESUME --gin 'agent.name = "ppo"'
RESUME --gin 'ActorCriticNetwork.core = "rtu"'
RESUME --gin 'ActorCriticNetwork.units = 4'
RESUME --gin 'R2ACConfig.gamma = 0.5'
? RESUME --gin 'train.strategy = "mirrored"'
? RESUME --gin 'train.learning_rate = 0.5'
TRAIN --ray-address auto
TRAIN --actors 1
TRAIN --actors 1000000000
TRAIN --frames 9 --gin 'train.frames = 9'
TRAIN --seed 1 --gin 'train.seed = 2'
TRAIN --actors 2 --gin 'actors.num_actors = 0'
? TRAIN --gin 'train.frames = 9' --gin 'train.frames = 12'
TRAIN --game TMaze-v0 --gin 'environment.name = "MemoryChain-v0"'
? TRAIN --game MemoryChain-v0
TRAIN --game Nonsense
TRAIN --game nonsense-v0
TRAIN --game procgen:nonsense
TRAIN --game ALE/Pong
TRAIN --game TMaze-v9
TRAIN --gin 'train.strategy = "mirrored"'
TRAIN --gin 'train.strategy = "multi_worker_mirrored"'
TRAIN --out run
train --minutes 1
train run --minutes 1
train run/config.gin --out run --minutes 1
EVALUATE --video x.mp4
EVALUATE --video x.txt
EVALUATE --video x
EVALUATE --actors 2 --video x.mp4
? EVALUATE --actors 1
EVALUATE --ray-address auto
? EVALUATE --gin 'actors.num_actors = 2'
EVALUATE --gin 'train.frames = 3'
EVALUATE --gin 'train.learning_rate = 3'
EVALUATE --gin 'environment.name = "MemoryChain-v0"'
EVALUATE --gin 'environment.num_envs = 4'
EVALUATE --gin 'environment.options = {"corridor": 10000000000}'
EVALUATE --gin 'ActorCriticNetwork.units = 4'
WORTH --steps 1000000000000
WORTH --gin 'train.rollout_length = 3'
worth tiny.gin
SWEEP --seeds 2
SWEEP --jobs 2
SWEEP --frames 9
SWEEP --tasks nonsense
? SWEEP --tasks t-maze,t-maze
SWEEP --tasks ,
SWEEP --conditions nonsense
sweep tiny.gin --report-only
sweep tmaze_r2ac
sweep sweep.gin --seeds 1000000000000
export run target --learner
export run run
export run run/checkpoints
export run run/config.gin
? export run run/policy
export run tiny.gin
export run /proc/x
bench --quick
bench --quick env CartPole-v1
bench --rounds 3 env CartPole-v1
BENCH --gin 'train.rollout_length = 0'
BENCH --gin 'train.optimizer = 3'
BENCH --gin 'environment.num_envs = 0'
BENCH --gin 'R2ACConfig.gamma = 2'
bench env TMaze-v0 --preset tiny.gin
bench env nonsense-v0 --preset tiny.gin
bench env CartPole-v1 --preset nonsense
bench env Nonsense
"""


def combinations():
    """Flags that do not go together, or of which one has no effect."""
    whole = {**{command.upper(): words for command, words in RIGHT.items()}, "BENCH": RIGHT["bench env"]}
    whole["RESUME"] = ["train", "--resume", "run", *START]
    for line in COMBINATIONS.strip().splitlines():
        first, *words = shlex.split(line.removeprefix("? "))
        words = [*whole.get(first, [first]), *words]
        command = "bench env" if words[:2] == ["bench", "env"] else words[0]
        yield _case(f"together: {line}", command, words, "either" if line[0] == "?" else "refused")


def variables():
    """Environment variables that mean something to what is imported."""
    joined = [*RIGHT["train"], "--out", "new", "--gin", "train.strategy = 'multi_worker_mirrored'"]
    for text in ("", "5", "[1]", "x", "{}", "null", '"x"', '{"cluster": 5}', '{"cluster": {"worker": []}}', "[" * 5000,
                 '{"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}}',
                 '{"cluster": {"worker": ["x"]}, "task": {"type": "worker", "index": 0}}',
                 '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 5}}',
                 '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "nonsense", "index": 0}}',
                 '{"cluster": {"worker": ["localhost:x"]}, "task": {"type": "worker", "index": 0}}',
                 '{"cluster": {"worker": ["localhost:99999"]}, "task": {"type": "worker", "index": 0}}',
                 '{"cluster": {"worker": ["localhost:1"]}, "task": 7}',
                 '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": "x"}}',
                 '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": -1}}'):  # fmt: skip
        environment = {"TF_CONFIG": text}
        yield _case(
            f"TF_CONFIG={shortened(text)}",
            "train",
            joined,
            names=("TF_CONFIG",),
            environment=environment,
        )
    wrong = [*RIGHT["train"], "--out", "new", "--gin", "train.rollout_length = 0"]
    for environment in ({"COLUMNS": "1"}, {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"COLUMNS": "1" * 30}, {"LINES": "x"},
    {"HOME": ""},
                        {"TERM": "nonsense"}, {"MPLBACKEND": "nonsense"}, {"MPLCONFIGDIR": "/proc/x"},
                        {"CUDA_VISIBLE_DEVICES": "x"},
                        {"TF_NUM_INTRAOP_THREADS": "x"}, {"OMP_NUM_THREADS": "x"}, {"TF_CONFIG": "5"}):  # fmt: skip
        name = " ".join(f"{key}={value}" for key, value in environment.items())
        yield _case(f"{name} train", "train", [*RIGHT["train"], "--out", "new"], "taken", environment=environment)
        yield _case(f"{name} wrong", "train", wrong, names=("rollout",), environment=environment)
        yield _case(f"{name} flag", "train", ["train", "--frames", "x"], names=("frames",), environment=environment)


PHASES = {  # the words, and when the phase has come: a text in a file, a file, or seconds
    "setting up": (["train", "tiny.gin", "--out", "new"], "stdout:run folder"),
    "writing the first checkpoint": (["train", "tiny.gin", "--out", "new"], "new/checkpoints"),
    "the first update": (["train", "tiny.gin", "--out", "new"], "new/metrics.csv"),
    "training": (["train", "tiny.gin", "--out", "new", "--gin", "train.frames = 999_999"], "new/metrics.csv:\n1"),
    "writing the policy": (["train", "tiny.gin", "--out", "new", *START], "new/policy"),
    "resuming": (["train", "--resume", "run", *START], "stdout:run folder"),
    "evaluating": (["evaluate", "run", "--episodes", "99999"], 2.0),
    "measuring": (["worth", "run", "--steps", "99999"], 2.0),
    "exporting": (["export", "run", "target"], "target"),
    "reporting": (["sweep", "sweep.gin", "--report-only"], 0.1),
}


def signals():
    """Every signal that ends a command, in every phase of it."""
    for phase, (words, sign) in PHASES.items():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            name = f"{signal.Signals(number).name} while {phase}"
            yield _case(name, words[0], words, "ended", signal=(number, sign))
