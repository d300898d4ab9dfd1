"""Renderers that are loaded beside TensorFlow."""

import ctypes

import pytest
import tensorflow as tf  # noqa: F401  whose LLVM a renderer must not call

from keras_rtrl.environments import opengl


def test_a_renderer_that_is_not_loaded_apart_calls_into_tensorflow(build_renderer):
    """What the double's renderer is there to show: the clash is TensorFlow's own."""
    if build_renderer is None:
        pytest.skip("no C compiler")
    plain, apart = (folder / "libdmlab_headless_sw.so" for folder in (build_renderer(), build_renderer()))
    assert ctypes.CDLL(str(plain)).draws() == 0
    opengl.load_apart(apart)
    assert ctypes.CDLL(str(apart)).draws() == 1
    opengl.load_apart("/nowhere/lib.so")


def test_mesa_is_loaded_apart_from_the_folders_that_its_users_name(build_renderer, monkeypatch):
    if build_renderer is None:
        pytest.skip("no C compiler")
    folder = build_renderer()
    driver = (folder / "libdmlab_headless_sw.so").rename(folder / "swrast_dri.so")
    monkeypatch.setenv("LIBGL_DRIVERS_PATH", f"/nowhere:{folder}")
    opengl.load_mesa()
    assert ctypes.CDLL(str(driver)).draws() == 1


def test_names_of_mesas_libraries(monkeypatch):
    loaded = []
    monkeypatch.setattr(opengl, "load_apart", loaded.append)
    opengl.load_mesa()
    assert {"libEGL_mesa.so.0", "libGLX_mesa.so.0", "libOSMesa.so.8"} < set(loaded)
