"""The workers' side that the harness sees: one process per framework, alive together, asked one at a time."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.sizes import THREADS, Unavailable

ROOT = Path(__file__).resolve().parents[2]
# torch needs newer packages than tf-agents allows, so the peers live in an environment of their own.
PEERS = Path(sys.prefix) / "bench" / "bin" / "python"

# Threads, alike for all; beside these each process may use only as many cores (worker.py).
THREAD_VARIABLES = {
    name: str(THREADS)
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "NPROC",
    )
}
_ENVIRONMENT = {
    **THREAD_VARIABLES,
    "TF_USE_LEGACY_KERAS": "0",
    "KERAS_BACKEND": "tensorflow",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONPATH": str(ROOT),
}


def interpreter(framework):
    """The Python that has the framework: torch and jax may have their own environment beside this one."""
    return str(PEERS) if framework in ("torch", "jax") and PEERS.exists() else sys.executable


class Process:
    """A running worker. `ask` waits for its answer, so that no two compute at once."""

    def __init__(self, framework):
        """Raises Unavailable where the framework is not installed."""
        self.framework = framework
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [interpreter(framework), "-m", "benchmarks.speed.worker", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | _ENVIRONMENT,
            cwd=ROOT,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, do, **what):
        """The worker's result. Raises Unavailable where the contestant cannot be had, RuntimeError where it fails."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its log says why
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace").strip().splitlines()[-15:]
            raise RuntimeError("\n".join([f"the {self.framework} process ended with code {code}:", *tail]))
        answer = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer["result"]

    def close(self):
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
