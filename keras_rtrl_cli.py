"""The command `keras-rtrl`: chooses tf-keras, on which TF-Agents lives, before anything imports TensorFlow."""

import contextlib
import importlib.util
import os
import signal
import sys
import threading


def _end(number, _):
    os._exit(128 + number)


def _on_signals(before, after):
    """Replaces the signal handlers `before` by `after`; signals that the parent process ignores stay ignored."""
    if threading.current_thread() is threading.main_thread():
        for number, own, other in zip((signal.SIGINT, signal.SIGTERM), before, after, strict=True):
            if signal.getsignal(number) == own:
                signal.signal(number, other)


def _open_closed():
    """Gives a standard stream that is closed, as by `>&-`, to the null device: else the next file has its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files that the terminal's encoding lacks


@contextlib.contextmanager
def quiet():
    """Keeps the notices that TensorFlow and gym print while imported off the screen, unless importing fails."""
    screen = os.dup(2)
    with open(os.memfd_create("notices"), "r+b", buffering=0) as notices:
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            with contextlib.suppress(OSError):
                os.write(screen, notices.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


def main(argv=None):
    """Runs one command and returns its exit code; see `keras_rtrl.train.cli.main`."""
    own = (signal.default_int_handler, signal.SIG_DFL)
    _on_signals(own, (_end, _end))  # there is nothing to tidy up before everything is imported
    _open_closed()
    if importlib.util.find_spec("tf_agents") is None:
        # as keras_rtrl._tf_agents has it, which imports TensorFlow
        command = 'pip install "keras_rtrl[agents]" && pip install --no-deps tf-agents==0.19.0 gym==0.26.2'
        sys.exit(f"keras-rtrl: error: TF-Agents is not installed: {command}")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        from keras_rtrl.train import cli
    _on_signals((_end, _end), own)
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
