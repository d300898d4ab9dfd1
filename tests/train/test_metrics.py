"""What metrics count of a run."""

import subprocess
import sys
import time

from keras_rtrl.train import metrics

BUSY = """
import subprocess, sys, time
end = time.process_time() + 0.3
while time.process_time() < end: pass
if len(sys.argv) > 1: subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
print("done", flush=True)
sys.stdin.read()
"""


def test_processor_time_is_of_the_process_and_what_it_started_and_not_of_waiting():
    before, started = metrics.processor_seconds(), time.process_time()
    time.sleep(0.3)
    own = time.process_time() - started
    assert metrics.processor_seconds() - before < own + 0.1  # of others, and waiting, is not counted
    words = [sys.executable, "-c", BUSY, BUSY]  # a process that starts a process
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"done\n"
        running = metrics.processor_seconds() - before
        assert running > 0.6
        child.stdin.close()
    assert metrics.processor_seconds() - before >= running - 0.05  # it has ended
