"""The console script, for Bazel."""

import sys

from keras_rtrl.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
