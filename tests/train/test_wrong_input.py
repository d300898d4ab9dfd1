"""Wrong command lines made by rule (wrong_input/run.py), and what needs a fresh process: start-up, locales, streams."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = pathlib.Path(__file__).parent / "wrong_input" / "run.py"
COMMAND = pathlib.Path(sys.executable).with_name("keras-rtrl")


def wrong_input(*words):
    done = subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_hundred_wrong_command_lines(tmaze_run):
    assert "100 cases" in wrong_input("--cases", "100", "--run", str(tmaze_run))


@pytest.mark.slow
def test_every_sixth_wrong_command_line(tmaze_run):
    print(wrong_input("--every", "6", "--run", str(tmaze_run)))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 1.5, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_importing(number, seconds, begin_importing, tmp_path):
    words = [COMMAND, "train", "tmaze_r2ac", "--out", "new"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        begin_importing(process)
        time.sleep(seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (-number, 128 + number)
    assert "Traceback" not in errors


WRONG = ["train", "tmaze_r2ac", "--gin", "train.rollout_length = 0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "environment", "redirected", "code"),
    [
        (WRONG, {"LC_ALL": "C"}, "", 2),
        (WRONG, {"PYTHONIOENCODING": "ascii"}, "", 2),
        (WRONG, {"TF_USE_LEGACY_KERAS": "0"}, "", 2),
        (WRONG, {"COLUMNS": "1"}, "", 2),
        (WRONG, {}, "2>&-", 2),
        (WRONG, {}, "2>/dev/full", 2),
        (WRONG, {}, ">&-", 2),
        (WRONG, {}, "<&-", 2),
        (["train", "tmaze_r2ac", "--out", "\udcff\xb2", "--gin", "train.rollout_length = 0"], {"LC_ALL": "C"}, "", 2),
        (["train", "\udcff\xb2"], {"LC_ALL": "C", "PYTHONUTF8": "0"}, "", 2),
        (["info"], {"LC_ALL": "C"}, "", 0),
        (["info"], {"TF_USE_LEGACY_KERAS": "0"}, "", 0),
        (["info"], {}, ">/dev/full", None),
        (["info"], {}, ">&-", None),
        (["info"], {}, "| head -1", None),
        (["train", "--help"], {"COLUMNS": "1"}, "| head -1", None),
    ],
)
def test_fresh_process(words, environment, redirected, code, tmp_path):
    """No traceback; `code` is None where the stream itself is what fails."""
    environment = {**os.environ, **environment}
    shell = ["bash", "-o", "pipefail", "-c", f'"$@" {redirected}', "bash", COMMAND, *words]
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=300)
    errors = done.stderr.decode(errors="replace")
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert done.returncode == code or (code is None and done.returncode < 128 + signal.SIGPIPE + 1)
    assert "2>" in redirected or code != 2 or re.match("keras-rtrl[a-z ]*: error: ", errors.splitlines()[-1])
    assert not list(tmp_path.iterdir())
