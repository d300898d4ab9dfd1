#!/bin/sh
# The interpreter of .venv, found from the environment since a sandbox sees no .venv; `make bazel` sets the variable.
exec "${KERAS_RTRL_PYTHON:?run make bazel, or set it to the interpreter in .venv}" "$@"
