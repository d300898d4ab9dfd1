"""Tries the tests on mutants: small faults put into the package, each of which some test should see.

One process imports TensorFlow and executes nothing. Each mutant is tried in a fork of it, in a copy of the package and
the tests where its module is replaced, on the tests named for the module below, the quick ones first. Outcomes are kept
as they come, and a mutant tried before is not tried again. Survivors that change nothing that is promised stand in
equivalent.txt, with the reason. Exits with 1 if others survive.
"""

import argparse
import collections
import contextlib
import importlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import keras  # noqa: F401
import pytest
import tensorflow as tf  # noqa: F401

TOP = pathlib.Path(__file__).resolve().parents[2]
EQUIVALENT = pathlib.Path(__file__).with_name("equivalent.txt")
LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
if LEGACY:
    FOLDERS = ("networks", "agents", "drivers", "environments")
    for name in ("tf_keras", "gymnasium", "tf_agents.agents.tf_agent", "tf_agents.environments.tf_py_environment"):
        importlib.import_module(name)
else:
    FOLDERS = ("cells", "engine", "layers")

# A module's tests are those of its own file and these, of the longest beginning of its path. XLA takes too long here.
PROOFS = "tests/conformance/test_proofs.py"
DEFAULTS = "tests/layers/test_defaults.py"
FEW = "not xla and not True and not fresh"
CONFIG = "defaults or range or gin or argument"
OTHERS = {
    "cells": ["tests/cells", PROOFS],
    "engine/cell": ["tests/layers/test_rtrl.py", "tests/cells", PROOFS, "-k", FEW],
    "cells/egru": ["tests/cells", DEFAULTS, PROOFS, "-k", "not xla and (egru or EGRU)"],
    "cells/elstm": ["tests/cells", DEFAULTS, PROOFS, "-k", "not xla and (elstm or ELSTM)"],
    "cells/lru": ["tests/cells", DEFAULTS, PROOFS, "-k", "not xla and (lru or LRU)"],
    "cells/mingru": ["tests/cells", DEFAULTS, PROOFS, "-k", "not xla and (mingru or MinGRU)"],
    "cells/rtu": ["tests/cells", DEFAULTS, PROOFS, "-k", "not xla and (rtu or RTU or ran_away)"],
    "engine": ["tests/engine/test_streaming.py", "tests/engine/test_chunked.py", PROOFS, "-k", FEW],
    "engine/native": [PROOFS, "-k", "not xla"],
    "layers": [DEFAULTS],
    "layers/carry": ["tests/layers", "-k", FEW],
    "layers/readout": ["tests/layers", "tests/conformance/layers/test_layers.py", "-k", "nan"],
    "layers/recurrent": ["tests/layers", "tests/diagnostics", "-k", FEW],
    "layers/rtrl": ["tests/cells", DEFAULTS, "-k", FEW],
    "layers/signature": ["tests/layers", "-k", FEW],
    "layers/stack": [],
    "networks": [],
    "networks/encoders": ["tests/conformance/layers/test_networks.py", "-k", "not test_pickling_and_copy[ "],
    "networks/parts": ["tests/networks"],
    "agents/obgd": ["tests/agents/test_defaults.py"],
    "agents/ppo/config": ["tests/agents/test_defaults.py", "tests/agents/ppo/test_agent.py", "-k", CONFIG],
    "agents/r2ac/config": ["tests/agents/test_defaults.py", "tests/agents/r2ac/test_agent.py", "-k", CONFIG],
    "agents/stream_ac/config": ["tests/agents/test_defaults.py", "tests/agents/test_streaming.py", "-k", CONFIG],
    "agents/td_lambda/config": ["tests/agents/test_defaults.py", "tests/agents/test_streaming.py", "-k", CONFIG],
    "agents/td_lambda": ["tests/agents/test_streaming.py"],
    "agents/stream": ["tests/agents/test_streaming.py"],
    "agents/ppo/losses": [],
    "agents/r2ac/losses": [],
    "agents/ppo": ["tests/agents/ppo"],
    "agents/r2ac": ["tests/agents/r2ac"],
    "agents/reward_scaler": [],
    "agents": ["tests/agents/r2ac/test_agent.py", "tests/agents/ppo/test_agent.py"],
    "agents/base": ["tests/agents/ppo/test_agent.py", "tests/agents/test_streaming.py", "-k", "reset or replica"],
    "agents/policy": ["tests/agents/test_wrong_arguments.py", "tests/agents/r2ac/test_agent.py"],
    "agents/experience": ["tests/agents/test_wrong_arguments.py", "tests/agents/test_not_finite.py"],
    "drivers": ["tests/drivers"],
    "environments": [],
    "environments/halves": ["tests/environments/test_workers.py"],
    "environments/opengl": ["tests/environments/test_dmlab.py", "-k", "apart or mesa or tensorflow"],
    "environments/spaces": ["tests/environments/test_gymnasium_vector.py", "tests/environments/test_popgym.py"],
    "environments/in_graph": [
        "tests/environments/test_tmaze.py",
        "tests/environments/test_memory_chain.py",
        "tests/environments/test_options.py",
    ],
    "environments/memory_chain": ["tests/environments/test_registry.py"],
}


def tests_of(module):
    path = pathlib.PurePath(module).relative_to("keras_rtrl")
    own = pathlib.Path("tests", *path.parts[:-1], f"test_{path.name}")
    others = max((start for start in OTHERS if str(path).startswith(start)), key=len)
    found = [*([str(own)] if (TOP / own).exists() else []), *OTHERS[others]]
    if not found:  # pytest would run all there are
        raise SystemExit(f"error: no tests are named for {module}")
    return found


class Chosen:
    """A pytest plug-in. Without `seconds` it measures tests until ten budgets are spent.

    With `seconds`, what each test takes, it runs the quickest first, as many as the budget allows: of many small tests
    some sees a fault sooner than one large one. With a budget of 0 it chooses nothing: all tests run.
    """

    def __init__(self, budget, seconds=None):
        self.budget, self.seconds, self.measured = budget, seconds, {}

    def pytest_collection_modifyitems(self, items):
        if self.seconds is not None and self.budget:
            known = sorted((item for item in items if item.nodeid in self.seconds), key=self.cost)
            spent = itertools.accumulate(map(self.cost, known))
            within = [item for item, seconds in zip(known, spent, strict=True) if seconds <= self.budget]
            items[:] = within or known[:1]

    def cost(self, item):
        return self.seconds[item.nodeid]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        began = time.process_time()
        done = yield
        self.measured[item.nodeid] = round(time.process_time() - began, 3)
        if self.seconds is None and sum(self.measured.values()) > 10 * self.budget:
            item.session.shouldstop = True
        return done


def fork(tree, tests, plugin, limit, log):
    """pytest's exit code, None after `limit` seconds, and what the plug-in measured, from a fork which sees `tree`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        # A failure is enough: the smallest example of it is not needed.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", phases=phases, derandomize=True, database=None)
        hypothesis.settings.load_profile("mutants")
        code = 1
        try:
            code = int(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests], [plugin]))
            os.write(writer, json.dumps(plugin.measured).encode()) if plugin.seconds is None else None
        finally:
            os._exit(code)
    os.close(writer)
    began, code = time.monotonic(), None
    try:
        while code is None and time.monotonic() - began < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.02)
    finally:  # with what it started; also if this process is told to end
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    with open(reader) as file:
        return code, file.read()


def copy_of_the_tree(tree):
    for path in TOP.iterdir():
        if path.name in ("keras_rtrl", "tests"):
            # The files' times are kept, so that compiled modules are not compiled again.
            shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("_native"))
        elif not path.name.startswith("."):
            (tree / path.name).symlink_to(path)
    if (TOP / "keras_rtrl/_native").exists():
        (tree / "keras_rtrl/_native").symlink_to(TOP / "keras_rtrl/_native")


def explained():
    """{mutant: why} of equivalent.txt: a block for each, of the place, the line, the mutated line, and the reason."""
    blocks = [block.split("\n", 3) for block in EQUIVALENT.read_text().strip().split("\n\n")[1:]]
    return {"\n".join(block[:3]): block[3] for block in blocks}


def run(mutants, budget, results, log):
    with tempfile.TemporaryDirectory() as tree:
        tree, measured = pathlib.Path(tree), {}
        copy_of_the_tree(tree)
        for number, mutant in enumerate(mutants, 1):
            module, tests = mutant["module"], tests_of(mutant["module"])
            if budget and (key := tuple(tests)) not in measured:
                code, seconds = fork(tree, tests, Chosen(budget), 3600, log)
                if code not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED) or not seconds:
                    raise SystemExit(f"error: {tests} fail without a mutant (exit code {code}): see {log.name}")
                measured[key] = json.loads(seconds)
                taken = sum(measured[key].values())
                print(f"{module}: {len(measured[key])} tests of {taken:.0f} s, {budget:g} s a mutant", flush=True)
            (tree / module).write_text(mutant["source"])
            # Another time for each, by which Python knows that what it compiled before is another module.
            os.utime(tree / module, (number, number))
            began = time.monotonic()
            seconds = measured[key] if budget else {}
            code, _ = fork(tree, tests, Chosen(budget, seconds), 60 + 10 * budget if budget else 900, log)
            shutil.copy2(TOP / module, tree / module)
            found = {0: "passed", None: "timeout"}.get(code, "failed")
            took = round(time.monotonic() - began, 1)
            results.write(json.dumps({"key": mutant["key"], "outcome": found, "seconds": took}) + "\n")
            results.flush()
            print(f"{number}/{len(mutants)} {found} {took} s  {mutant['key']}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="the default is all that the Keras chosen can test")
    parser.add_argument("--each", type=int, default=7, help="mutants of a module")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--budget", type=float, default=30, help="processor seconds for a mutant; 0: all its tests")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    parser.add_argument("--results", default="build/mutants.jsonl", help="what was tried before, and is tried now")
    parser.add_argument("--tool", default=".venv/mutation/bin/python", help="a Python that has cosmic-ray")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(TOP)
    everything = (path for folder in FOLDERS for path in sorted(pathlib.Path("keras_rtrl", folder).rglob("*.py")))
    modules = options.modules or [str(path) for path in everything if path.name != "__init__.py"]
    lister = [options.tool, "tests/mutation/mutants.py", str(options.each), str(options.seed), *modules]
    lines = subprocess.run(lister, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    mutants = {mutant["key"]: mutant for mutant in map(json.loads, lines)}
    results = pathlib.Path(options.results)
    results.parent.mkdir(exist_ok=True)
    results.touch()

    def outcomes():
        records = map(json.loads, results.read_text().splitlines())
        return {record["key"]: record["outcome"] for record in records if record["key"] in mutants}

    known, equivalent = outcomes(), explained()
    done = [key for key, found in known.items() if found != "passed" or not options.again or key in equivalent]
    with results.open("a") as file, results.with_suffix(".log").open("w") as log:
        run([mutant for key, mutant in mutants.items() if key not in done], options.budget, file, log)
    known = outcomes()
    survivors = [key for key, found in known.items() if found == "passed"]
    print("\n".join(f"\n{key}\n{equivalent.get(key, 'SURVIVES')}" for key in survivors))
    count = collections.Counter("explained" if key in equivalent else found for key, found in known.items())
    print(f"\n{len(known)} mutants: {dict(count)}")
    return 1 if count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
