"""Gin: presets, bindings, and the resolved configuration of a run.

A preset, a gin file and a binding that a person names are gin's in full: they may import modules. The settings that a
run left in its folder are data: `load_run` takes literals from them, and an optimiser of this project by its name.
"""

import contextlib
import os
import re
import sys

import gin

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train import settings
from keras_rtrl.train.run_folder import write_text

_PRESETS = os.path.join(os.path.dirname(__file__), "configs")


def presets():
    """The names of the presets that come with the package."""
    return sorted(name[:-4] for name in os.listdir(_PRESETS) if name.endswith(".gin"))


def find(preset):
    """The path of a preset, or of a gin file. Raises UsageError if there is none."""
    shipped = os.path.join(_PRESETS, f"{preset}.gin")
    if os.path.isfile(shipped):
        return shipped
    if os.path.isfile(preset):
        return preset
    raise UsageError(f"{preset}: neither a preset ({', '.join(presets())}) nor a gin file")


def load(path, bindings=()):
    """Replaces the gin configuration by that of the file `path`, then `bindings` (strings such as "train.seed = 3").

    Every configurable must have been imported before.

    Returns:
      (the file's own bindings, those of `bindings`), lists of `settings.Binding`; of a preset of the package none.

    Raises:
      UsageError: what gin does not accept, a setting that does not exist, a macro that nothing uses.
    """
    path = os.path.abspath(path)
    text = settings.parse(
        settings.read(path), path, path, _PRESETS
    )  # what a file includes is a preset, or a whole path
    own = [] if os.path.dirname(path) == _PRESETS else [binding for binding in text.bindings if binding.file == path]
    return own, _load(lambda: gin.parse_config_file(path), text, own, bindings)


def load_run(run, bindings=(), trust=False, modules=()):
    """As `load` for the settings that a run left in its folder: data, which make nothing run.

    Args:
      run: RunFolder.
      bindings: as `load`; they are the person's own.
      trust: take the file as `load` takes one.
      modules: names of modules that the person has named, and that the file may name too.

    Returns:
      List of `settings.Binding` of `bindings`.

    Raises:
      UsageError: anything but literals and the names of this project's optimisers; a module, or a cluster, that no
        binding has named. It says the line.
    """
    if trust:
        return load(run.config, bindings)[1]
    text = settings.parse(settings.read(run.config), run.config, run.config)
    settings.check_data(text.bindings)
    plain = "".join(f"{setting} = {value!r}\n" for setting, value, _, _ in text.bindings)
    given = _load(lambda: gin.parse_config(plain), text, [], bindings)
    named = {binding.setting for binding in given}
    settings.check_reach([binding for binding in text.bindings if binding.setting not in named], modules)
    return given


def _load(parse, text, own, bindings):
    given = []
    for binding in bindings:
        where = f"--gin {shown(binding)}"
        found = settings.parse(binding, where, folder=_PRESETS)
        if not found.bindings and all(name in sys.modules for name in found.imports):
            raise UsageError(f'{where}: sets nothing; a binding is such as "train.rollout_length = 10"')
        given += found.bindings
        text = settings.Text([*text.bindings, *found.bindings], [*text.imports, *found.imports])
    settings.check(text.bindings, text.imports)
    gin.clear_config()
    try:
        with contextlib.chdir(_PRESETS):
            parse()
            for binding in bindings:
                gin.parse_config(binding)
        settings.check_macros(text.bindings, [*own, *given], _is_constant)
        gin.finalize()
        for configurable in settings.CONFIGURABLES:
            gin.get_bindings(configurable, resolve_references=False)
    except UsageError:
        raise
    except Exception as error:  # an imported module may raise any exception
        raise UsageError(f"configuration: {one_line(error)}") from error
    return given


def _is_constant(name):
    try:
        return gin.config.parse_value(f"%{name}").config_key[1] == "gin.constant"
    except ValueError:
        return False


def value(setting, default):
    """The value of a setting, macros resolved; `default` if nothing sets it."""
    configurable, _, parameter = setting.rpartition(".")
    try:
        return gin.get_bindings(configurable).get(parameter, default)
    except ValueError:
        return default


def text(setting, default):
    """The value of a setting as a string, `default` if nothing sets it."""
    return str(value(setting, default))


@gin.configurable("sweep", module="keras_rtrl")
def sweep(tasks=None, conditions=None):
    """What the loaded configuration sweeps over.

    Args:
      tasks: dict from a task's label to its list of bindings, such as ["environment.name = 'TMaze-v0'"]; or a list of
        environments' names, %ATARI_57 for that benchmark's.
      conditions: dict from a condition's label to its list of bindings.

    Returns:
      (tasks, conditions), dicts.

    Raises:
      UsageError: not such dicts, or labels that would share a folder.
    """
    if isinstance(tasks, (list, tuple)) and all(isinstance(name, str) for name in tasks):
        tasks = {name: [f"environment.name = {name!r}"] for name in tasks}
    for name, groups in (("sweep.tasks", tasks), ("sweep.conditions", conditions)):
        fits = isinstance(groups, dict) and groups and all(isinstance(label, str) and slug(label) for label in groups)
        if not fits or not all(_are_bindings(bindings) for bindings in groups.values()):
            raise UsageError(f"{name} must be a dict from labels to lists of bindings, got {groups!r}")
        if len({slug(label) for label in groups}) < len(groups):
            raise UsageError(f"{name}: two labels have the same folder: {', '.join(map(slug, groups))}")
    return tasks, conditions


def slug(label):
    """The folder of a task or a condition: its letters and digits, in lower case, dots too."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")


def _are_bindings(value):
    return isinstance(value, (list, tuple)) and all(isinstance(binding, str) for binding in value)


def save(path):
    """Writes the resolved configuration: every parameter used up to now, those left at their defaults too.

    Literals and names of optimisers alone, which `load_run` takes; what imports modules is written as gin writes it.
    """
    text = gin.operative_config_str(max_line_length=120) + "\n"
    used = settings.parse(text, "the configuration", folder=_PRESETS)
    if not used.imports:
        groups = {}
        for setting in (binding.setting for binding in used.bindings):
            configurable, _, parameter = setting.rpartition(".")
            if configurable in settings.CONFIGURABLES:
                resolved = value(setting, settings.parameters(configurable).get(parameter))
                literal = f"@{resolved.__name__}" if isinstance(resolved, type) else repr(resolved)
                groups.setdefault(configurable, []).append(f"{setting} = {literal}\n")
        text = "\n".join("".join(group) for group in groups.values())
    write_text(path, text)
