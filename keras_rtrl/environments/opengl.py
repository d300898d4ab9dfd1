"""Mesa's software renderers in a process with TensorFlow.

TensorFlow's libraries contain a copy of LLVM, and all libraries that are loaded later find its symbols first. So a Mesa
renderer that is loaded after TensorFlow calls TensorFlow's LLVM instead of its own, and dies. If `load_apart` loads the
renderer first, it finds its own LLVM; later loads get the same library.
"""

import contextlib
import ctypes
import os
import platform


def load_apart(library):
    """Loads a shared library and its dependencies, so that they look for symbols in each other first.

    A missing library is ignored; the code that needs it raises the error.
    """
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: a system without RTLD_DEEPBIND
        ctypes.CDLL(os.fspath(library), os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND)


def load_mesa():
    """Loads Mesa's renderers if they are there: EGL, GLX, OSMesa, and the driver that older ones open by path."""
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
