"""The command `keras-rtrl bench`: runs the harness, prints the table and leaves JSON, table and figure."""

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from benchmarks.speed import report
from benchmarks.speed.harness import Harness
from benchmarks.speed.processes import ROOT, THREAD_VARIABLES
from benchmarks.speed.sizes import SIZES, THREADS

SCHEMA = 1  # of speed.json; goes up where a reader of the old one would misread the new
RESULTS = ROOT / "results" / "speed"
PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "figures" / "cost_of_context.png"
_MARKS = ("<!-- figures: written by keras-rtrl bench --publish -->\n", "<!-- end of figures -->\n")


def shapes_of(text):
    """The names in a list such as "dmlab,atari"; all for None. Raises ValueError for others."""
    if text is None:
        return list(SIZES)
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise ValueError(f"--shape must be a list of {', '.join(SIZES)}, got {text!r}")
    return list(dict.fromkeys(names))


def bench(shapes, rounds, quick, out, publish):
    """Measures and reports.

    Args:
      shapes: names of `SIZES`. With "dmlab" among them the streaming update is measured too, with "atari" the cost of
        contexts.
      rounds: how often each contestant is timed.
      quick: tiny shapes and no memory: only that everything runs.
      out: folder for speed.json, table.md and cost_of_context.png; made if need be.
      publish: also put the table into docs/performance.md and the figure into docs/figures.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with Harness(rounds, quick, log=True) as harness:
        results = {"schema": SCHEMA, "quick": quick, "rounds": rounds, **_facts(), "versions": harness.versions()}
        results |= {"left_out": harness.left_out, "shapes": {}}
        for shape in shapes:
            results["shapes"][shape] = harness.stream() if shape == "stream" else harness.shape(shape)
            if shape == "dmlab":
                results["update"] = harness.update()
            if shape == "atari":
                results["context"] = harness.context()
            (out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    results["load_after"] = os.getloadavg()
    (out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    text = _header(results) + "\n" + report.tables(results)
    (out / "table.md").write_text(text)
    if "context" in results:
        report.figure(results, out / "cost_of_context.png")
    print(text)
    print(f"written: {out / 'speed.json'}, table.md" + (", cost_of_context.png" if "context" in results else ""))
    if publish:
        before, _, after = _page_parts(PAGE.read_text())
        PAGE.write_text(before + _MARKS[0] + "\n" + text + "\n" + _MARKS[1] + after)
        if "context" in results:
            FIGURE.write_bytes((out / "cost_of_context.png").read_bytes())


def _page_parts(page):
    before, _, rest = page.partition(_MARKS[0])
    inside, _, after = rest.partition(_MARKS[1])
    return before, inside, after


def _facts():
    """What the times depend on besides the code's versions."""
    with open("/proc/cpuinfo") as file:
        cpu = file.read()

    def field(name):
        found = re.search(rf"^{name}\s*: (.*)$", cpu, re.MULTILINE)
        return found[1] if found else None

    simd = [flag for flag in (field("flags") or "").split() if flag.startswith(("avx", "fma", "amx", "sse4"))]
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or None,
        "machine": {
            "cpu": field("model name") or platform.processor(),
            "cores": os.cpu_count(),
            "simd": simd,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "load_before": os.getloadavg(),
        },
        "threads": {"cores_of_each_process": THREADS, **THREAD_VARIABLES},
    }


def _header(results):
    machine = results["machine"]
    versions = {name: v for found in results["versions"].values() for name, v in found.items()}
    lines = [
        f"{machine['cpu']}, {THREADS} cores of {machine['cores']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; commit {results['commit']}; "
        f"{results['made'][:10]}; medians of {results['rounds']} rounds.",
    ]
    if results["quick"]:
        lines += ["", "**A quick run at tiny shapes: these times mean nothing.**"]
    return "\n".join([*lines, ""])
