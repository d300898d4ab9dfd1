"""The console script, for Bazel."""

import sys

from keras_rtrl_cli import main

if __name__ == "__main__":
    sys.exit(main())
