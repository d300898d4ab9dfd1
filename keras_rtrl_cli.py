"""The command `keras-rtrl`: chooses tf-keras, on which TF-Agents lives, before anything imports TensorFlow."""

import contextlib
import importlib.util
import os
import sys
import tempfile

if importlib.util.find_spec("tf_agents") is None:
    sys.exit('keras-rtrl: error: TF-Agents is not installed: pip install "keras_rtrl[agents]", on Python 3.11.')
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _quiet():
    """Keeps the notices that TensorFlow and gym print while imported off the screen, unless importing fails."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            os.write(screen, notices.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


with _quiet():
    from keras_rtrl.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
