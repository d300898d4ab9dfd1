"""The cost of actors on Ray, and the rates they reach: the figures of docs/scale.md.

    .venv/bin/python -m benchmarks.scale --out FILE      # from a source checkout's root, on a quiet machine: minutes
    .venv/bin/python -m benchmarks.scale --publish       # the same into results/scale, docs/scale.md and docs/figures
    .venv/bin/python -m benchmarks.scale --quick         # checks only that everything runs

The programs to compare all stay alive and are measured in turn, round by round. The tables have medians.
"""

import argparse
import contextlib
import datetime
import json
import os
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.common import ROOT, Process, call, in_turn, publish, say, write_json
from benchmarks.scale import report, store, trainers

RESULTS = ROOT / "results" / "scale" / "scale.json"
PAGE = ROOT / "docs" / "scale.md"
FIGURE = ROOT / "docs" / "figures" / "scale.png"
COMMAND = "python -m benchmarks.scale --publish"

ATARI = report.PRESET

FULL = {
    "rounds": 3,
    "learner": {ATARI: [4, 8, 16, 32], "atari_r2ac": [4, 8, 16], "waiting": [1, 8, 32]},
    "sizes": [10**4, 10**5, 10**6, 10**7],
    "pending": [100, 1000, 10000],
    "waiting": [1, 2, 4, 8],
    "waiting_streams": {1: (3, 8), 4: (2, 3)},  # with updates that are not timed, and that are
    "fleets": {"1 actor": (1, 16), "2 actors of 8": (2, 8), "2 actors of 16": (2, 16)},
    "playing": [1, 8, 16],
    "atari_updates": (4, 12),
}
QUICK = FULL | {
    "rounds": 1,
    "learner": {ATARI: [8, 16], "waiting": [1, 8]},
    "sizes": [10**4, 10**5],
    "pending": [10],
    "waiting": [1, 2],
    "waiting_streams": {1: (1, 2)},
    "fleets": {},
    "playing": [],
}


def measure(plan, log):
    """All measurements of a plan such as FULL, ready for JSON. Calls log(name, measurements so far) after each."""
    found = {"when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC", "load_before": os.getloadavg()}
    found |= {"cores": os.cpu_count(), "rounds": plan["rounds"]}
    found["sizes"] = call(trainers.sizes, ("atari_r2ac", ATARI, "dmlab_r2ac", "waiting"))
    log("sizes", found)
    found["store"] = {name: plan[name] for name in ("sizes", "pending")} | call(
        store.measure, plan["sizes"], plan["pending"], 10 * plan["rounds"]
    )
    log("object store", found)
    found["learner"] = {}
    for preset, batches in plan["learner"].items():
        seconds, cores = call(trainers.learner, preset, batches, plan["rounds"])
        found["learner"][preset] = {"streams": batches, "seconds": seconds, "cores": cores}
        log(f"learner of {preset}", found)
    size = found["sizes"][ATARI]
    found["joining"] = {"rollouts": [1, 2, 16]}
    seconds = call(trainers.joining, ATARI, size["streams"], found["joining"]["rollouts"], 5 * plan["rounds"])
    found["joining"] |= {"seconds": seconds, "bytes": size["streams"] * (size["frames"] + size["else"])}
    log("batches", found)
    found["waiting"] = {}
    for streams, updates in plan["waiting_streams"].items():
        contestants = {"alone": (trainers.Player, "waiting", 1, streams, streams)}
        contestants |= {str(n): (trainers.Trainer, "waiting", n, streams, n * streams) for n in plan["waiting"]}
        found["waiting"][str(streams)] = _in_turn(contestants, plan["rounds"], *updates)
        log(f"waiting actors of {streams} streams", found)
    batch = size["streams"]
    contestants = {name: (trainers.Trainer, ATARI, *fleet, batch) for name, fleet in plan["fleets"].items()}
    if contestants:
        contestants["single machine"] = (trainers.Trainer, ATARI, 0, None, batch)
        contestants["learner alone"] = (trainers.Learner, ATARI)
    contestants |= {f"1 actor of {n}, nobody learns": (trainers.Player, ATARI, 1, n, n) for n in plan["playing"]}
    found["fleets"] = plan["fleets"]
    found["atari"] = _in_turn(contestants, plan["rounds"], *plan["atari_updates"])
    log("Atari", found)
    return found | {"load_after": os.getloadavg()}


def _in_turn(contestants, rounds, untimed, updates):
    """Runs all contestants in turn `rounds` times: {name: what its runs gave}."""
    rows = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        alive = {name: stack.enter_context(Process(*setup)) for name, setup in contestants.items()}
        for process in alive.values():
            process.ask("run", untimed + 2, 1)  # functions are traced, environments made
        for name in in_turn(list(contestants), rounds):
            rows[name].append(alive[name].ask("run", untimed, updates))
    return {name: _summary(found) for name, found in rows.items()}


def _summary(rows):
    rates, own, busy, extra = zip(*rows, strict=True)
    found = {"rate": rates, "own": own, "busy": busy}
    medians = {name: float(np.median(values)) for name, values in found.items()}
    extra = {name: float(np.median([row[name] for row in extra])) for name in extra[0]}
    return {"rates": list(rates), **medians, "extra": extra}


def main(argv=None):
    """Measures, prints the tables and writes JSON and figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file (default: none), and in its folder the figure")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks only that everything runs")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing: tables and figure of this file")
    parser.add_argument("--publish", action="store_true", help="keep the results, or those of --report, in their place")
    args = parser.parse_args(argv)
    if args.publish and (args.quick or args.out):
        parser.error("--publish keeps a whole run in its own place: leave out --quick and --out")
    out = RESULTS if args.publish else args.out
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)

    def log(text, found):
        say(f"measured: {text}")
        if out:
            write_json(out, found)

    if args.report:
        found = json.loads(args.report.read_text())
    else:
        found = measure(QUICK if args.quick else FULL, log)
    tables = report.tables(found)
    print(tables)
    if out:
        write_json(out, found)
        if found["atari"]:
            report.figure(found, FIGURE if args.publish else out.with_suffix(".png"))
    if args.publish:
        text = "Agent steps a second against actors, measured and simulated"
        publish(PAGE, COMMAND, f"{tables}\n![{text}](figures/scale.png)\n")


if __name__ == "__main__":
    main()
