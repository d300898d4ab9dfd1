"""Gin: presets, bindings, and the resolved configuration of a run."""

import os

import gin

from keras_rtrl.train.run_folder import UsageError, write_text

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
    try:
        gin.parse_config_file(path)
        for binding in bindings:
            gin.parse_config(binding)
        gin.finalize()  # finds macros without a value
    except (ValueError, SyntaxError, OSError, TypeError, ImportError) as error:
        raise UsageError(f"configuration: {one_line(error)}") from error


def text(setting, default):
    """The value of a setting as a string, `default` where nothing sets it."""
    try:
        return str(gin.query_parameter(setting))
    except ValueError:
        return default


def save(path):
    """Writes the resolved configuration: every parameter used up to now, those left at their defaults too."""
    write_text(path, gin.operative_config_str(max_line_length=120) + "\n")


def one_line(error):
    """An exception's text in one line, without what gin adds: pointers, and the calls that it went through."""
    lines = [line.strip() for line in str(error).partition("\n  In call to configurable")[0].splitlines()]
    return " ".join(line for line in lines if line.strip("^ ")) or type(error).__name__
