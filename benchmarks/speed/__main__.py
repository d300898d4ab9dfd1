"""Times the layers, and those of keras, torch and JAX: the figures of docs/performance.md.

    .venv/bin/python -m benchmarks.speed                 # from a source checkout's root, on a quiet machine
    .venv/bin/python -m benchmarks.speed --publish       # kept in results/speed, docs/performance.md and docs/figures
    .venv/bin/python -m benchmarks.speed --quick         # tiny shapes: only that everything runs

What is not installed is left out.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from benchmarks.common import ROOT, publish, write_json
from benchmarks.speed import report
from benchmarks.speed.contestants import SIZES, THREADS
from benchmarks.speed.harness import THREAD_VARIABLES, Harness

SCHEMA = 1  # of speed.json; goes up when a reader of the old one would misread the new
RESULTS = ROOT / "results" / "speed"
PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "figures" / "cost_of_context.png"
COMMAND = "python -m benchmarks.speed --publish"


def main(argv=None):
    """Measures and reports, into a folder: speed.json, table.md and cost_of_context.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=_shapes, default=list(SIZES), help="such as dmlab,atari (default: all)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="times each step is timed (default: 15)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: only that everything runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default: runs/bench)")
    parser.add_argument("--publish", action="store_true", help="keep them in results/speed and docs/performance.md")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {args.rounds}")
    if args.publish and (args.quick or args.out or args.shape != list(SIZES)):
        parser.error("--publish keeps a whole run in its own place: leave out --shape, --quick and --out")
    out = RESULTS if args.publish else args.out or Path("runs", "bench")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    results = measure(args.shape, args.rounds, args.quick, out)
    text = f"{_header(results)}\n{report.tables(results)}"
    (out / "table.md").write_text(text)
    print(f"{text}\nwritten: {out}")
    if "context" in results:
        report.figure(results, out / FIGURE.name)
    if args.publish:
        publish(PAGE, COMMAND, text)
        FIGURE.write_bytes((out / FIGURE.name).read_bytes())


def measure(shapes, rounds, quick, out):
    """All measurements, which are in speed.json in the folder `out` too, shape by shape.

    With "dmlab" among the shapes the streaming update is measured too, with "atari" the cost of contexts.
    """
    with Harness(rounds, quick) as harness:
        results = {"schema": SCHEMA, "quick": quick, "rounds": rounds, **_facts(), "versions": harness.versions()}
        results |= {"left_out": harness.left_out, "shapes": {}}
        for shape in shapes:
            results["shapes"][shape] = harness.shape(shape)
            if shape == "dmlab":
                results["update"] = harness.update()
            if shape == "atari":
                results["context"] = harness.context()
            write_json(out / "speed.json", results)
    results["load_after"] = os.getloadavg()
    write_json(out / "speed.json", results)
    return results


def _shapes(text):
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(SIZES):
        raise argparse.ArgumentTypeError(f"must be a list of {', '.join(SIZES)}, got {text!r}")
    return list(dict.fromkeys(names))


def _facts():
    """Facts that the times depend on, without the versions of the code."""
    cpu = Path("/proc/cpuinfo").read_text()

    def field(name):
        found = re.search(rf"^{name}\s*: (.*)$", cpu, re.MULTILINE)
        return found[1] if found else ""

    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    machine = {
        "cpu": field("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "simd": [flag for flag in field("flags").split() if flag.startswith(("avx", "fma", "amx", "sse4"))],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_before": os.getloadavg(),
    }
    threads = {"cores_of_each_process": THREADS, **THREAD_VARIABLES}
    return {"made": made, "commit": git.stdout.strip() or None, "machine": machine, "threads": threads}


def _header(results):
    machine = results["machine"]
    versions = {name: v for found in results["versions"].values() for name, v in found.items()}
    text = (
        f"{machine['cpu']}, {THREADS} cores of {machine['cores']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; commit {results['commit']}; "
        f"{results['made'][:10]}; medians of {results['rounds']} rounds.\n"
    )
    return f"{text}\n**A quick run at tiny shapes: these times mean nothing.**\n" if results["quick"] else text


if __name__ == "__main__":
    main()
