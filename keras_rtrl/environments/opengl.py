"""Mesa's software renderers beside TensorFlow.

TensorFlow puts its libraries, with an LLVM of their own, into the scope in which all later libraries look for symbols.
A renderer of Mesa's that is loaded after it calls TensorFlow's LLVM in place of the one it was built with, and dies.
Loaded by `load_apart` first, it finds its own; whoever loads it later gets the same one.
"""

import contextlib
import ctypes
import os
import platform


def load_apart(library):
    """Loads a shared library, and what it needs, so that they look for symbols in each other first.

    A library that is not there is none of this function's business: whoever needs it says so.
    """
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: a system without RTLD_DEEPBIND
        ctypes.CDLL(os.fspath(library), os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND)


def load_mesa():
    """Loads what there is of Mesa's renderers: for EGL, GLX and OSMesa, and the driver that older ones open by path."""
    folders = [
        *os.environ.get("LIBGL_DRIVERS_PATH", "").split(":"),
        f"/usr/lib/{platform.machine()}-linux-gnu/dri",
        "/usr/lib64/dri",
        "/usr/lib/dri",
    ]
    for folder in filter(None, folders):
        load_apart(os.path.join(folder, "swrast_dri.so"))
    for library in ("libEGL_mesa.so.0", "libGLX_mesa.so.0", "libOSMesa.so.8"):
        load_apart(library)
