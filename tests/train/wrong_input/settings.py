"""Every setting, each with every wrong value: the settings are those that gin has registered of this package."""

import ast
import importlib
import inspect
import math

import gin
from case import START, Case, shortened

from keras_rtrl import cells
from keras_rtrl.environments import registry
from keras_rtrl.networks import cores

TINY = """
environment.num_envs = 2
ActorCriticNetwork.units = 3
ActorCriticNetwork.head_units = ()
train.frames = 24
train.rollout_length = 4
train.log_updates = 1
"""
TMAZE = f'include "tmaze_r2ac.gin"\n{TINY}environment.options = {{"corridor": 3}}\n'
PPO = 'agent.name = "ppo"\nPPOConfig.num_epochs = 1\nPPOConfig.num_minibatches = 1\nPPOConfig.chunk = 4\n'
ONE = f"{TINY}environment.num_envs = 1\ntrain.rollout_length = 1\n"
STREAM = f'include "stream_ac_memory.gin"\n{ONE}'
CONDITIONING = f'include "td_trace_conditioning.gin"\n{ONE}'
# R2ACConfig's settings stand in tmaze_r2ac.gin, where another agent has no use for them.
PPO_TMAZE = f'environment.name = "TMaze-v0"\n{TINY}{PPO}train.optimizer = @Adam\n'

# What a setting is wrong in that only some configurations use.
BASES = {
    "PPOConfig": PPO_TMAZE,
    "StreamACConfig": STREAM,
    "TDLambdaConfig": CONDITIONING,
    "ObGD": f"{STREAM}train.optimizer = @ObGD\n",
    "RMSprop": f"{TMAZE}train.optimizer = @RMSprop\n",
    "actors": f"{TMAZE}actors.num_actors = 1\n",
}

VALUES = (
    "None", "''", "'x'", "'no'", "'²'", "²", "'a\\nb'", f"'{'x' * 5000}'", "-1", "0", "1", "1.5", "1e3", "-0.0", "1j",
    "1" + "0" * 9, "1" + "0" * 20, "1" + "0" * 400, "1e999", "-1e999", "nan", "True", "False", "[]", "()", "{}", "[1]",
    "[None]", "((1,),)", "(0,)", "{'x': 1}", "{1: 2}", "b'x'", "{1, 2}", "[1, 2", "'open", ")", "", "@Adam()", "@Adam",
    "@nonsense", "%undefined", "%gin.REQUIRED", "@train()", "1 if True else 2", "__import__('os')", "%ATARI_57",
    f"{'[' * 3000}{']' * 3000}",
)  # fmt: skip

LARGE = 10**6  # above it a machine's memory may decide


def whole(low, high=2**63 - 1):
    """Whether a value is a whole number: True, False, or None where either answer will do."""

    def fits(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            return False
        if isinstance(value, float) and not (math.isfinite(value) and value == int(value)):
            return False
        if not low <= value <= high:
            return False
        return None if isinstance(value, float) or value > LARGE else True

    return fits


def number(low=-math.inf, high=math.inf, *, above=None):
    def fits(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            return False
        if not low <= value <= high or (above is not None and value <= above):
            return False
        return None if abs(value) > LARGE else True

    return fits


def optional(kind):
    return lambda value: True if value is None else kind(value)


def flag(value):
    return isinstance(value, bool)


def choice(value):
    """One of some words, which none of VALUES is."""
    return False


def supplied(value):
    """Given by the program itself: what a configuration says has no effect."""
    return False


def mapping(value):
    return value == {} and isinstance(value, dict)


def widths(value):
    return isinstance(value, (list, tuple)) and all(whole(1)(width) for width in value)


def label(value):
    return None if isinstance(value, str) else False


def undecided(value):
    return None


# Kinds that a default does not say: of a setting, or of all settings with that name.
KINDS = {
    "train.frames": whole(1),
    "train.optimizer": choice,
    "train.seed": whole(0, 2**32 - 1),
    "train.checkpoint_minutes": number(above=0),
    "train.encoder_from": optional(choice),
    "train.strategy": optional(choice),
    "train.intra_op_threads": optional(whole(1)),
    "environment.name": choice,
    "environment.workers": optional(lambda value: False if isinstance(value, bool) else value == 0),
    "environment.options": optional(mapping),
    "environment.options.engine": choice,
    "agent.name": choice,
    "sweep.tasks": lambda value: None if value == () else False,
    "sweep.conditions": choice,
    "actors.num_actors": whole(0),
    "actors.address": optional(choice),
    "actors.num_streams": optional(whole(1)),
    "actors.timeout": number(above=0),
    "ActorCriticNetwork.input_tensor_spec": supplied,
    "ActorCriticNetwork.action_spec": supplied,
    "ActorCriticNetwork.name": optional(label),  # None: TF-Agents names it
    "ActorCriticNetwork.encoder": choice,
    "ActorCriticNetwork.history": choice,
    "ActorCriticNetwork.encoder_units": optional(widths),
    "ActorCriticNetwork.head_units": widths,
    "ActorCriticNetwork.core": choice,
    "ActorCriticNetwork.gradient": optional(choice),
    "ActorCriticNetwork.encoder_dtype": optional(choice),
    "ActorCriticNetwork.units": optional(whole(1)),
    "ActorCriticNetwork.core_options": optional(mapping),
    "ActorCriticNetwork.recurrent_parameters": optional(choice),  # beside units
    "learning_rate": number(0),
    "final_learning_rate": number(0),
    "Adam.learning_rate": supplied,
    "RMSprop.learning_rate": supplied,
    "ObGD.learning_rate": supplied,
    "ObGD.name": label,
    "gamma": number(0, 1),
    "TDLambdaConfig.gamma": number(0, 0.96),  # as long as the task sums returns
    "lambda_value": number(0, 1),
    "rho": undecided,
    "beta_1": undecided,
    "beta_2": undecided,
    "epsilon": number(above=0),
    "critic_kappa": number(above=0),
    "actor_kappa": number(above=0),
    "importance_ratio_clipping": number(above=0),
    "value_pred_loss_coef": number(0),
    "entropy_regularization": number(0),
    "value_clipping": optional(number(above=0)),
    "gradient_clipping": optional(number(above=0)),
    "reward_clipping": optional(number(above=0)),
    # options of environments and cores
    "corridor": whole(1),
    "length": whole(1),
    "max_frames": whole(1),
    "stack_num": whole(1, 100),
    "num_levels": whole(0),
    "start_level": whole(0),
    "distribution": choice,
    "level_cache": optional(label),
    "renderer": choice,
    "dataset_path": optional(label),
    "frames": whole(1),
    "activation": choice,
    "recurrence": choice,
    "forget_bias": number(),
    "r_min": undecided,
    "r_max": undecided,
    "min_phase": undecided,
    "max_phase": number(above=0),
}


def kind_of(setting, default):
    """The predicate that says which values a setting takes."""
    for name in (setting, setting.rpartition(".")[2]):
        if name in KINDS:
            return KINDS[name]
    for type_, kind in ((bool, flag), (int, whole(1))):
        if isinstance(default, type_):
            return kind
    raise LookupError(f"{setting} = {default!r}: say in KINDS which values it takes")


def verdict(kind, text):
    """ "taken", "refused" or "either", for a value as gin reads it."""
    if text == "@Adam":
        return "either"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "refused"
    fits = kind(value)
    return "either" if fits is None else "taken" if fits else "refused"


def registered():
    """{"train.frames": default} of all settings of this package; inspect.Parameter.empty without a default."""
    settings = {}
    for configurable in sorted((c for _, c in gin.config._REGISTRY.items()), key=lambda c: c.selector):
        if configurable.selector.split(".")[0] != "keras_rtrl":
            continue
        for parameter in inspect.signature(configurable.wrapped).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in (configurable.denylist or ()):
                if parameter.name != "self":
                    settings[f"{configurable.name}.{parameter.name}"] = parameter.default
    return settings


def _case(setting, base, binding, text, expected, via_file, names):
    """The command line that has a binding, given by --gin or in a file."""
    name = f"{setting} = {shortened(text)}"
    if setting.startswith("sweep."):
        other = "sweep.conditions" if setting == "sweep.tasks" else "sweep.tasks"
        files = {"tiny.gin": f'{base}{other} = {{"all": []}}\n{binding}\n'}
        names = (*names, "tiny.gin", "no finished run")
        return Case(name, ["sweep", "tiny.gin", "--report-only", "--out", "new"], "refused", names, files)
    if via_file:
        files = {"tiny.gin": f"{base}{binding}\n"}
        names = (*names, "tiny.gin")
        return Case(f"{name} in a file", ["train", "tiny.gin", "--out", "new", *START], expected, names, files)
    words = ["train", "tiny.gin", "--out", "new", *START, "--gin", binding]
    return Case(name, words, expected, names, {"tiny.gin": base})


def values():
    """Every registered setting with every value."""
    for i, (setting, default) in enumerate(registered().items()):
        configurable, _, parameter = setting.rpartition(".")
        kind, base = kind_of(setting, default), BASES.get(configurable, TMAZE)
        for j, text in enumerate(VALUES):
            expected = verdict(kind, text)
            if configurable == "actors" and expected != "refused":
                expected = "either"  # the T-maze has no actors
            names = (parameter, text.strip("@%()")) if text[:1] in ("@", "%") else (parameter,)
            if expected == "either" or configurable in ("environment", "actors"):
                names = (*names, configurable)
            yield _case(setting, base, f"{setting} = {text}", text, expected, (i + j) % 5 == 0, names)


def options():
    """Every option of the tasks and cores, with every value."""
    for _, family, *_ in registry._FAMILIES:
        module = importlib.import_module(f"keras_rtrl.environments.{family}")
        parameters = inspect.signature(module.make).parameters.values()
        name = {"tmaze": "TMaze-v0", "memory_chain": "MemoryChain-v0", "atari": "ALE/Breakout-v5"}.get(family)
        name = {"procgen": "procgen:chaser", "cartpole": "CartPole-P-v1"}.get(family, name)
        for option in (p for p in parameters if p.kind is p.KEYWORD_ONLY) if name else ():
            kind = kind_of(f"environment.options.{option.name}", option.default)
            base = f'{TMAZE}environment.name = "{name}"\n'
            yield from _of_dict("environment.options", base, option.name, kind, name[0] in "TMC")
    for core, made in (("elstm", cells.ELSTMCell), ("rtu", cells.RTUCell), ("lru", cells.LRUCell)):
        for option in inspect.signature(made).parameters.values():
            if option.name not in ("units", "kwargs"):
                base = f'{TMAZE}ActorCriticNetwork.core = "{core}"\n'
                kind = kind_of(f"{core}.{option.name}", option.default)
                yield from _of_dict("ActorCriticNetwork.core_options", base, option.name, kind)
    base = f'{TMAZE}ActorCriticNetwork.core = "stack"\nActorCriticNetwork.gradient = "tbptt"\n'
    base += "ActorCriticNetwork.core_options = None\n"
    yield from _of_dict("ActorCriticNetwork.core_options", base, "frames", whole(1))
    for core in (*sorted(cores._RTRL_LAYERS), *sorted(cores._KERAS_CELLS), "stack"):
        base = f'{TMAZE}ActorCriticNetwork.core = "{core}"\nActorCriticNetwork.core_options = None\n'
        if core not in cores._RTRL_LAYERS:
            base += 'ActorCriticNetwork.gradient = "tbptt"\n'
        for option, value in (
            ("units", 3), ("gradient", "'rtrl'"), ("return_state", True), ("stateful", True), ("dtype", "'float16'"),
            ("name", 3), ("implementation", "'x'"), ("return_sequences", False), ("forget_bais", 1), ("cell", 3),
            ("initial_state", 0), ("input_dim", 3), ("kernel_initializer", "'x'"), ("kernel_initializer", 3),
            ("trace_dtype", "'x'"), ("bias_regularizer", 5), ("recurrent_constraint", "'²'"),
        ):  # fmt: skip
            binding = f"ActorCriticNetwork.core_options = {{{option!r}: {value}}}"
            yield _case(f"{core} {option}", base, binding, str(value), "refused", False, (option, "core_options"))


def _of_dict(setting, base, option, kind, cheap=True):
    for text in VALUES:
        expected = verdict(kind, text)
        if not cheap and expected != "refused":
            continue  # a simulator's images need another network than the T-maze's
        names = (option, text.strip("@%()"), setting) if text[:1] in ("@", "%") else (option, setting)
        yield _case(f"{setting} {option}", base, f"{setting} = {{{option!r}: {text}}}", text, expected, False, names)


def names():
    """Bindings that nothing uses: misspelt, of another agent, scopes, macros, of TF-Agents."""
    bindings = []
    for setting in registered():
        configurable, _, parameter = setting.rpartition(".")
        bindings.append((f"{configurable}.{parameter[:-1] if len(parameter) > 1 else 'xx'} = 1", TMAZE))
        bindings.append((f"nobody/{setting} = 1", BASES.get(configurable, TMAZE)))
        if configurable.endswith("Config") or configurable in ("RMSprop", "ObGD"):
            bindings.append((f"{setting} = 0.5", PPO_TMAZE if configurable == "R2ACConfig" else TMAZE))
        if configurable == "actors" and parameter != "number":
            bindings.append((f"{setting} = {1 if parameter != 'address' else repr('auto')}", TMAZE))
    for configurable in sorted({setting.partition(".")[0] for setting in registered()}):
        bindings += [
            (f"{configurable} = 3", TMAZE),
            (f"{configurable}.x.y = 3", TMAZE),
            (f"{configurable}. = 3", TMAZE),
        ]
    others = sorted(selector for selector, _ in gin.config._REGISTRY.items() if selector.startswith("tf_agents."))
    bindings += [(f"{selector}.name = 'x'", TMAZE) for selector in others[:: max(len(others) // 10, 1)]]
    bindings += [
        (binding, TMAZE)
        for binding in (
            "frames = 9", "nonsense = 3", "x/y = 3", "train = 3", ".frames = 3", "train..frames = 3", "=", "= 3",
            "train.frames",
            "train.frames 3", "train.frames == 3", "import os", "import keras_rtrl", "from os import path", "import",
            "include 'x.gin'",
            "include", "include 3", "include 'tiny.gin'", "x = %x\ntrain.frames = %x",
            "x = %y\ny = %x\ntrain.frames = %x", "", " ", "\n",
            "# nothing", "train.frames = 3 # more\n)", "²", "x" * 5000, f"train.{'x' * 5000} = 3",
            f"{'x' * 5000}.frames = 3",
            "__gin__ = 3", "gin.macro = 3", "gin.x = 3", "os.system.command = 'true'", "train.run = 3",
            "train.resume = True",
            "environment.seed = 3", "environment.streams = 3", "train.minutes = 3", "train.facts = {}",
            "sweep.tasks = 3", "sweep.conditions = {}",
            "MACRO = @train()", "train.frames = %train.frames", "singleton.constructor = @Adam", "\ud800",
            "train.frames = '\ud800'",
        )
    ]  # fmt: skip
    for binding, base in bindings:
        words = ["train", "tiny.gin", "--out", "new", *START, "--gin", binding]
        yield Case(f"--gin {shortened(binding)!r}", words, "refused", (), {"tiny.gin": base})
    for binding in ("train.frames = 0", "nonsense = 3", "", "train.frames = [1", "R2ACConfig.gama = 1", "²"):
        words = ["evaluate", "run", "--episodes", "1", "--gin", binding]
        yield Case(f"evaluate --gin {binding!r}", words, prepare=lambda folder, made: made.copy(folder / "run"))
        words = ["bench", "env", "CartPole-v1", "--preset", "tiny.gin", "--rounds", "1", "--gin", binding]
        yield Case(f"bench env --gin {binding!r}", words, files={"tiny.gin": TMAZE})
        words = ["train", "--resume", "run", *START, "--gin", binding]
        yield Case(f"resume --gin {binding!r}", words, prepare=lambda folder, made: made.copy(folder / "run"))


def files():
    """Gin files that are no configuration."""
    texts = {
        "empty": "", "binary": "\0\1\2\udcff", "open": "train.frames = [", "tab": "\ttrain.frames = 3",
        "missing include": "include 'nowhere.gin'", "import": "import nowhere", "python": "def f():\n  return 3",
        "long line": f"train.frames = {'1' * 100_000}", "deep": f"train.frames = {'[' * 100_000}",
        "yaml": "train:\n  x: 3",
        "only comments": "# nothing\n" * 10, "json": '{"a": 1}', "no name": f"{TINY}train.optimizer = @Adam",
        "twice open": "include 'x\ninclude 'y",
    }  # fmt: skip

    def include_itself(folder, made):
        (folder / "wrong.gin").write_text(f'include "{folder}/wrong.gin"\n')

    for command in (["train"], ["sweep"], ["bench", "env", "CartPole-v1", "--preset"]):
        words = [*command, "wrong.gin", *(["--out", "new"] if command[0] != "bench" else [])]
        for name, text in texts.items():
            expected = "either" if (command[0], name) == ("bench", "no name") else "refused"  # its operand is the name
            yield Case(f"{command[0]}: {name} file", words, expected, files={"wrong.gin": text})
        yield Case(f"{command[0]}: file that includes itself", words, prepare=include_itself)
