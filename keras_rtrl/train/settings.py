"""What a gin text says, read without running any of it: its bindings, and whether each is one that exists."""

import collections
import difflib
import importlib.util
import inspect
import ipaddress
import math
import os
import socket
import stat

import gin
from gin import config_parser

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError, one_line

_LONGEST = 2**20  # bytes of a file
_TRUST = "a run's settings are read as data; if it is your own run, or of someone you trust, give --trust"

# What may be set, by the names that gin knows: each with those of its arguments that the program gives itself.
CONFIGURABLES = {
    "train": (),
    "environment": ("seed", "streams", "evaluation"),
    "agent": (),
    "actors": (),
    "sweep": (),
    "ActorCriticNetwork": ("input_tensor_spec", "action_spec"),
    "R2ACConfig": (),
    "PPOConfig": (),
    "StreamACConfig": (),
    "TDLambdaConfig": (),
    "Adam": ("learning_rate",),
    "RMSprop": ("learning_rate",),
    "ObGD": ("learning_rate", "kwargs"),
}
OPTIMIZERS = ("Adam", "RMSprop", "ObGD")
_FAMILIES_WITH_COLON = ("dmlab", "procgen")  # of environments; before any other colon stands a module to import

_MAY_IMPORT = ("environment.name", "environment.options", "ActorCriticNetwork.core", "ActorCriticNetwork.encoder")

Binding = collections.namedtuple("Binding", ["setting", "value", "where", "file"])
Binding.__doc__ = """A binding as it is written.

setting: "train.rollout_length"; of a macro its name alone.
value: a literal, in which references are `Reference`.
where: file and line, or the option, for messages.
file: path; None for a binding of the command line.
"""


class Reference(collections.namedtuple("Reference", ["mark", "name", "called"])):
    """A reference in a value: @name or @name() to a configurable, %name to a macro."""

    def __repr__(self):
        return f"{self.mark}{self.name}{'()' if self.called else ''}"


class _Referring(config_parser.ParserDelegate):
    """Looks nothing up."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Reference("@", scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return Reference("%", macro_name, False)


class Text(collections.namedtuple("Text", ["bindings", "imports"])):
    """A gin text as read: list of `Binding`, and list of the modules it imports and the unknown files it includes."""


def parse(text, where, file=None, folder=None, outer=()):
    """The `Text` of a gin text.

    Args:
      text: str.
      where: what the text is, for messages.
      file: its path, None for a binding of the command line.
      folder: folder of included files; None refuses includes and imports.
      outer: the files that include this one.

    Raises:
      UsageError: no gin text, or files that include each other.
    """
    bindings, imports = [], []
    try:
        statements = list(config_parser.ConfigParser(text, _Referring()))
    except Exception as error:  # of the parser, and of the tokenizer and Python's own under it
        raise UsageError(f"configuration: {where}{_place(error)}: cannot parse this ({_reason(error)})") from error
    for statement in statements:
        place = where if file is None else f"{where}, line {statement.location.line_num}"
        if isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            name = selector.removeprefix("keras_rtrl.") + (f".{parameter}" if parameter else "")
            bindings.append(Binding(f"{scope}/{name}" if scope else name, value, place, file))
        elif folder is None and not isinstance(statement, config_parser.BlockDeclaration):
            what = "include" if isinstance(statement, config_parser.IncludeStatement) else "import"
            raise UsageError(f"{place}: an {what}; {_TRUST}")
        elif isinstance(statement, config_parser.IncludeStatement):
            path = os.path.abspath(os.path.join(folder, statement.filename))
            if path in (*outer, file):
                raise UsageError(f"{place}: includes {statement.filename}, which includes this file again")
            if os.path.isfile(path):
                found = parse(read(path), path, path, folder, (*outer, file))
            elif _in_package(statement.filename):
                found = Text([], [statement.filename])
            else:
                raise UsageError(
                    f"{place}: includes {shown(statement.filename)}, which is neither a preset's file, nor one of a "
                    "package, nor the whole path of a file"
                )
            bindings += found.bindings
            imports += found.imports
        elif isinstance(statement, config_parser.ImportStatement):
            imports.append(statement.module)
    return Text(bindings, imports)


def _in_package(path):
    """Whether gin may find a file, such as "package/folder/file.gin", in a package that can be imported."""
    try:
        return importlib.util.find_spec(os.path.dirname(path).replace("/", ".")) is not None
    except (ImportError, ValueError):
        return False


def read(path):
    """The text of a gin file. Raises UsageError for what is none: a pipe, a megabyte and more, no UTF-8."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: not a file")
        if status.st_size > _LONGEST:
            raise UsageError(f"{path}: no gin file, it has {status.st_size} bytes")
        with open(path, encoding="utf-8") as file:
            return file.read(_LONGEST)
    except OSError as error:
        raise UsageError(f"{path}: cannot read this file ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{path}: no gin file ({one_line(error)})") from error


def check(bindings, imports):
    """Checks each binding on its own: that its setting exists, and what its value refers to.

    Args:
      bindings: list of `Binding`.
      imports: whether modules are imported, whose configurables may be set and referred to.

    Raises:
      UsageError: names the first that is wrong, with the closest name.
    """
    for setting, value, where, _ in bindings:
        configurable, _, parameter = setting.rpartition(".")
        if configurable in CONFIGURABLES:
            new = getattr(gin.get_configurable(configurable), "renamed_arguments", {}).get(parameter)
            if new is not None:
                raise UsageError(f"{where}: {configurable}.{parameter} has another name now: {configurable}.{new}")
            if parameter not in parameters(configurable):
                raise UsageError(f"{where}: {configurable} has no setting {shown(parameter)}{suggestion(setting)}")
        elif configurable and not imports:
            raise UsageError(f"{where}: there is no setting {shown(setting)}{suggestion(setting)}")
        for part in _parts(value):
            if isinstance(part, float) and not math.isfinite(part):
                raise UsageError(f"{where}: {shown(setting)} must be finite, got {part}")
            if isinstance(part, Reference) and part.mark == "@":
                _check_reference(part, setting, where, imports)


def _check_reference(reference, setting, where, imports):
    name = reference.name.removeprefix("keras_rtrl.")
    if name in OPTIMIZERS and ("." not in setting or setting == "train.optimizer"):
        if reference.called:
            raise UsageError(f"{where}: {setting} takes the class, without brackets: @{name}, got {reference}")
    elif name.rpartition("/")[2] in CONFIGURABLES or not imports:
        known = f", of {', '.join(f'@{optimizer}' for optimizer in OPTIMIZERS)}" if setting == "train.optimizer" else ""
        raise UsageError(f"{where}: {shown(setting)} cannot refer to {shown(str(reference))}{known}")


def check_macros(bindings, given, constant):
    """Checks that macros have values, that those which a person has written are used, and that none needs itself.

    Args:
      bindings: list of `Binding`, all there are.
      given: those of them that a person has written.
      constant: function, whether a name is one of gin's constants.

    Raises:
      UsageError: names the macro.
    """
    values = {setting: value for setting, value, _, _ in bindings if "." not in setting}
    used = set()
    for _, value, where, _ in bindings:
        for part in _parts(value):
            if isinstance(part, Reference) and part.mark == "%":
                used.add(part.name)
                if part.name not in values and not constant(part.name):
                    raise UsageError(f"{where}: the macro {shown(str(part))} has no value")
    texts = [part for _, value, _, _ in bindings for part in _parts(value) if isinstance(part, str)]
    for setting, _, where, _ in given:
        unused = "." not in setting and setting not in used and not any(f"%{setting}" in text for text in texts)
        if unused:
            raise UsageError(f"{where}: nothing uses {shown(setting)}{suggestion(setting)}")
    for name in values:
        needed, seen = [name], set()
        while needed:
            for part in _parts(values.get(needed.pop())):
                if isinstance(part, Reference) and part.mark == "%" and part.name not in seen:
                    if part.name == name:
                        raise UsageError(f"configuration: the macro {shown(f'%{name}')} needs its own value")
                    seen.add(part.name)
                    needed.append(part.name)


def check_data(bindings):
    """Checks that bindings of a run are data: literals, and the class of an optimiser of this project by its name.

    Raises:
      UsageError: names the first that is not, its file and its line.
    """
    for setting, value, where, _ in bindings:
        if "." not in setting:
            raise UsageError(f"{where}: a macro, {shown(setting)}; {_TRUST}")
        if isinstance(value, Reference) and (setting, value) in (("train.optimizer", x) for x in _CLASSES):
            continue
        for part in _parts(value):
            if isinstance(part, Reference):
                raise UsageError(f"{where}: {shown(setting)} refers to {shown(str(part))}; {_TRUST}")
            if part is not None and not isinstance(part, (bool, int, float, str, list, tuple, dict)):
                raise UsageError(f"{where}: {shown(setting)} cannot be {shown(part)}")
    check(bindings, imports=False)


_CLASSES = tuple(Reference("@", f"{module}{name}", False) for name in OPTIMIZERS for module in ("", "keras_rtrl."))


def check_reach(bindings, modules=()):
    """Checks that bindings of a run name no module but `modules`, and no cluster whose processes would be believed.

    Raises:
      UsageError: names the first that does, its file and its line.
    """
    for setting, value, where, _ in bindings:
        if setting in _MAY_IMPORT:
            for part in _parts(value):
                module = part.partition(":")[0] if isinstance(part, str) and ":" in part else None
                if module is not None and module not in (*_FAMILIES_WITH_COLON, *modules):
                    raise UsageError(
                        f"{where}: {setting} has {shown(part)}, which may name a module to import; give --module "
                        f"{module} if it is yours, or of someone you trust"
                    )
        if setting == "actors.address" and not _is_here(value):
            raise UsageError(f"{where}: actors.address is {shown(value)}: say so by --ray-address, or give --trust")


def _is_here(address):
    """Whether a cluster's address is this machine's own, by number: a name could mean another machine tomorrow."""
    if address in (None, "auto", "local"):
        return True
    try:
        host = str(ipaddress.ip_address(str(address).rpartition(":")[0].strip("[]")))
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as attempt:
            attempt.bind((host, 0))  # which the addresses of others do not allow
    except (OSError, ValueError):
        return False
    return True


def parameters(configurable):
    """What can be set of one of `CONFIGURABLES`: a dict from names, in the order of its signature, to defaults."""
    made = gin.get_configurable(configurable)
    signature = inspect.signature(made.__init__ if inspect.isclass(made) else made)
    ours = ("self", *CONFIGURABLES[configurable])
    return {name: parameter.default for name, parameter in signature.parameters.items() if name not in ours}


def suggestion(setting):
    """What a message adds about the setting that was meant: one with this parameter, or one with a similar name."""
    every = [f"{configurable}.{name}" for configurable in CONFIGURABLES for name in parameters(configurable)]
    setting = setting[:200]
    last = setting.rpartition(".")[2]
    meant = [name for name in every if name.rpartition(".")[2] == last] or difflib.get_close_matches(setting, every, 1)
    if not meant:
        ends = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in every}, 1, 0.75)
        meant = [name for name in every if name.rpartition(".")[2] in ends]
    meant = difflib.get_close_matches(setting, meant, 1, 0) or meant
    return f" (did you mean {meant[0]!r}?)" if meant else ""


def _parts(value):
    """A value and all that is in it."""
    yield value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)) and not isinstance(value, Reference):
        for part in value:
            yield from _parts(part)


def _place(error):
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    if line is None and len(error.args) > 1 and isinstance(error.args[1], tuple):  # of the tokenizer
        line = error.args[1][0]
    return f", line {line}" if isinstance(line, int) else ""


def _reason(error):
    if isinstance(error, RecursionError):
        return "too many brackets in each other"
    text = error.msg if isinstance(error, SyntaxError) and error.msg else error.args[0] if error.args else error
    return one_line(str(text).partition("\n")[0])
