"""Gin: presets, bindings, and the resolved configuration of a run."""

import contextlib
import os
import re

import gin

from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train.run_folder import write_text

_PRESETS = os.path.join(os.path.dirname(__file__), "configs")


def presets():
    """The names of the presets that come with the package."""
    return sorted(name[:-4] for name in os.listdir(_PRESETS) if name.endswith(".gin"))


def find(preset):
    """The path of a preset, or of a gin file. Raises UsageError where there is none."""
    shipped = os.path.join(_PRESETS, f"{preset}.gin")
    if os.path.isfile(shipped):
        return shipped
    if os.path.isfile(preset):
        return preset
    raise UsageError(f"{preset}: neither a preset ({', '.join(presets())}) nor a gin file")


def load(path, bindings=()):
    """Replaces the gin configuration by that of the file `path`, then `bindings` (strings such as "train.seed = 3").

    Every configurable must have been imported before. Raises UsageError for what gin does not accept.
    """
    gin.clear_config()
    path = os.path.abspath(path)
    try:
        with contextlib.chdir(_PRESETS):  # what a file includes is a preset, or has a whole path
            gin.parse_config_file(path)
        for binding in bindings:
            gin.parse_config(binding)
        gin.finalize()  # finds macros without a value
    except (ValueError, SyntaxError, OSError, TypeError, ImportError) as error:
        raise UsageError(f"configuration: {one_line(error)}") from error


def value(setting, default):
    """The value of a setting, macros resolved; `default` where nothing sets it."""
    configurable, _, parameter = setting.rpartition(".")
    try:
        return gin.get_bindings(configurable).get(parameter, default)
    except ValueError:
        return default


def text(setting, default):
    """The value of a setting as a string, `default` where nothing sets it."""
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
    """Writes the resolved configuration: every parameter used up to now, those left at their defaults too."""
    write_text(path, gin.operative_config_str(max_line_length=120) + "\n")
