"""Modules of the user's own, which --module names: what stands in a configuration as "module:name" is found there."""

import importlib
import os
import sys

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError, one_line


def load(names):
    """Imports modules, here and in the processes that this one starts.

    Args:
      names: of modules that can be imported, or files of Python, whose modules have the files' names.

    Returns:
      The modules' names.

    Raises:
      UsageError: a module that cannot be imported, or a file whose name is another module's.
    """
    return [_loaded(name) for name in names]


def _loaded(name):
    file = name if name.endswith(".py") else None
    if file is not None:
        if not os.path.isfile(file):
            raise UsageError(f"--module {shown(file)}: no such file")
        folder, name = os.path.split(os.path.abspath(file)[:-3])
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a module may raise any exception
        hint = "" if file else "; the module of a file is named by the file's path, such as folder/name.py"
        raise UsageError(f"--module {shown(name)}: {type(error).__name__}: {one_line(error)}{hint}") from error
    found = getattr(module, "__file__", None)
    if file is not None and not (found and os.path.samefile(found, file)):
        raise UsageError(f"--module {shown(file)}: there is another module {name}; give the file another name")
    return name
