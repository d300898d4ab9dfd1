"""What actors on Ray cost, and what they give: the figures of docs/scale.md.

    .venv/bin/python -m benchmarks.scale --out FILE      # from a source checkout's root, on a quiet machine: minutes
    .venv/bin/python -m benchmarks.scale --publish       # the same into results/scale, docs/scale.md and docs/figures
    .venv/bin/python -m benchmarks.scale --quick         # only that everything runs

Whatever is compared is alive all the while and measured in turn, round by round; given are medians.
"""

import argparse
import datetime
import functools
import json
import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.scale import report, store, trainers
from benchmarks.scale.processes import ROOT, Process, call

RESULTS = ROOT / "results" / "scale" / "scale.json"
PAGE = ROOT / "docs" / "scale.md"
FIGURE = ROOT / "docs" / "figures" / "scale.png"
FIGURE_TEXT = "Agent steps a second against actors, measured and simulated"
MARKS = ("<!-- figures: written by python -m benchmarks.scale --publish -->\n", "<!-- end of figures -->\n")

ATARI = report.PRESET
PRESETS = ("atari_r2ac", ATARI, "dmlab_r2ac", "waiting")

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
    """All measurements of a plan such as FULL: a dict that can be written as JSON.

    `log` is called after each with its name and what there is so far.
    """
    found = {"when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC", "load_before": os.getloadavg()}
    found |= {"cores": os.cpu_count(), "rounds": plan["rounds"]}
    found["sizes"] = call(trainers.sizes, PRESETS)
    log("sizes", found)
    found["store"] = {"sizes": plan["sizes"], "pending": plan["pending"]}
    found["store"] |= call(store.measure, plan["sizes"], plan["pending"], 10 * plan["rounds"])
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
    contestants = {name: (trainers.Trainer, ATARI, *fleet, size["streams"]) for name, fleet in plan["fleets"].items()}
    if contestants:
        contestants["single machine"] = (trainers.Trainer, ATARI, 0, None, size["streams"])
        contestants["learner alone"] = (trainers.Learner, ATARI)
    contestants |= {f"1 actor of {n}, nobody learns": (trainers.Player, ATARI, 1, n, n) for n in plan["playing"]}
    found["fleets"] = plan["fleets"]
    found["atari"] = _in_turn(contestants, plan["rounds"], *plan["atari_updates"])
    log("Atari", found)
    return found | {"load_after": os.getloadavg()}


def _in_turn(contestants, rounds, untimed, updates):
    """Runs all contestants in turn `rounds` times; each round begins one further."""
    alive, rows = {}, {name: [] for name in contestants}
    try:
        for name, (kind, *arguments) in contestants.items():
            alive[name] = Process(kind, *arguments)
        for name in contestants:
            alive[name].ask("run", untimed + 2, 1)  # functions are traced, environments made
        names = list(contestants)
        for round_ in range(rounds):
            shift = round_ % max(len(names), 1)
            for name in names[shift:] + names[:shift]:
                rows[name].append(alive[name].ask("run", untimed, updates))
    finally:
        for process in alive.values():
            process.close()
    return {name: _summary(found) for name, found in rows.items()}


def _summary(rows):
    rates, own, busy, extra = zip(*rows, strict=True)
    return {
        "rates": list(rates),
        "rate": float(np.median(rates)),
        "own": float(np.median(own)),
        "busy": float(np.median(busy)),
        "extra": {name: float(np.median([row[name] for row in extra])) for name in extra[0]},
    }


def main(argv=None):
    """Measures, prints the tables and writes JSON and figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file (default: none); the figure goes beside it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only that everything runs")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing: tables and figure of this file")
    parser.add_argument("--publish", action="store_true", help="keep the results, or those of --report, in their place")
    args = parser.parse_args(argv)
    if args.publish and (args.quick or args.out):
        parser.error("--publish keeps a whole run in its own place: leave out --quick and --out")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # of the actors' processes
    out = RESULTS if args.publish else args.out
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    if args.report:
        found = json.loads(args.report.read_text())
    else:
        found = measure(QUICK if args.quick else FULL, functools.partial(_log, out))
    tables = report.tables(found)
    print(tables)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
        if found["atari"]:
            report.figure(found, FIGURE if args.publish else out.with_suffix(".png"))
    if args.publish:
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        PAGE.write_text(f"{before}{MARKS[0]}\n{tables}\n![{FIGURE_TEXT}](figures/scale.png)\n\n{MARKS[1]}{after}")


def _log(out, text, found):
    print(f"{datetime.datetime.now():%H:%M:%S} measured: {text}", file=sys.stderr, flush=True)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
