"""Memory beyond the rollout: the T-maze figure of the README.

Trains R2AC (preset tmaze_r2ac) on T-mazes longer than the rollout of 10 steps, with the gradient by RTRL,
by truncated BPTT, and with the recurrence left at its random start. results/tmaze keeps every run's settings and
metrics, as a sweep's folder does; runs already there are skipped.

    .venv/bin/python benchmarks/tmaze_memory.py                 # corridor 40: 6 conditions x 5 seeds of 2 M steps
    .venv/bin/python benchmarks/tmaze_memory.py --long          # and corridor 1000: 2 seeds of 60 M steps
    .venv/bin/python benchmarks/tmaze_memory.py --figure-only   # table and figure of the runs there are
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from keras_rtrl.train.config import slug
from keras_rtrl.train.run_folder import RunFolder
from keras_rtrl.train.study import Study, finished_run

ROOT = Path(__file__).resolve().parent.parent
STUDY = Study(ROOT / "results" / "tmaze")
FIGURE = ROOT / "docs" / "figures" / "tmaze_memory.png"

_NETWORK = "ActorCriticNetwork."
_CORES = {
    "RTU": [f"{_NETWORK}core = 'rtu'", f"{_NETWORK}core_options = {{'r_min': 0.9}}"],
    "eLSTM": [f"{_NETWORK}core = 'elstm'", f"{_NETWORK}core_options = {{'forget_bias': 4.0}}"],
}
_GRADIENTS = {
    "RTRL": [f"{_NETWORK}gradient = 'rtrl'"],
    "TBPTT": [f"{_NETWORK}gradient = 'tbptt'"],
    "fixed": [f"{_NETWORK}gradient = 'tbptt'", "R2ACConfig.train_core = False"],
}
CONDITIONS = {f"{core} {kind}": (40, 2_000_000, c + g) for core, c in _CORES.items() for kind, g in _GRADIENTS.items()}
LONG = {
    "eLSTM RTRL, corridor 1000": (
        1000,
        60_000_000,
        [*_CORES["eLSTM"][:1], f"{_NETWORK}core_options = {{'forget_bias': 8.0}}", "train.log_updates = 2500"],
    )
}


def folders(condition):
    """The study's names of a condition's task, the corridor, and of the condition on it."""
    return f"corridor-{(CONDITIONS | LONG)[condition][0]}", slug(condition.split(",")[0])


def run(condition, seed):
    """Trains one condition with one seed, unless its result is there."""
    corridor, frames, bindings = (CONDITIONS | LONG)[condition]
    if (*folders(condition), seed) in STUDY.read():
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "keras_rtrl_cli", "train", "tmaze_r2ac"]
        command += ["--frames", str(frames), "--seed", str(seed), "--out", str(out)]
        for binding in [f"environment.options = {{'corridor': {corridor}}}", *bindings]:
            command += ["--gin", binding]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        finished = finished_run(RunFolder(out))
    STUDY.add(*folders(condition), finished)
    print(f"{condition}, seed {seed}: {100 * curve(finished)[1][-1]:.1f} % right", flush=True)


def curve(finished):
    """Frames, and the share of right choices over the 200 episodes before each: returns are 1 or -1."""
    rows = [row for row in finished.rows if row["mean_return"]]
    return [int(r["frames"]) for r in rows], [(float(r["mean_return"]) + 1) / 2 for r in rows]


def report():
    """Writes the table and the figure of the runs there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    table = [
        "| condition | corridor | steps | right, last 200 episodes, by seed |",
        "|---|---|---|---|",
    ]
    kept = STUDY.read()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2), sharey=True)
    colours = {"RTRL": "tab:blue", "TBPTT": "tab:orange", "fixed": "tab:grey"}
    for conditions, axis in ((CONDITIONS, axes[0]), (LONG, axes[1])):
        for condition, (corridor, frames, _) in conditions.items():
            curves = [curve(finished) for (*labels, _), finished in kept.items() if tuple(labels) == folders(condition)]
            if not curves:
                continue
            values = ", ".join(f"{100 * right[-1]:.1f} %" for _, right in curves)
            table.append(f"| {condition.split(',')[0]} | {corridor} | {frames:,} | {values} |")
            kind = condition.split(",")[0].split()[1]
            style = {"color": colours[kind], "linestyle": "-" if condition.startswith("RTU") else "--"}
            x = np.mean([steps for steps, _ in curves], axis=0) / 1e6
            rights = 100 * np.array([right for _, right in curves])
            name = condition.split(",")[0]
            if len(rights) < 3:  # a median of two would show what neither did
                axis.plot(x, rights.T, label=[name, *[None] * (len(rights) - 1)], **style)
                continue
            axis.plot(x, np.median(rights, axis=0), label=name, **style)
            axis.fill_between(x, rights.min(0), rights.max(0), color=colours[kind], alpha=0.15, linewidth=0)
    for axis, title in zip(axes, ("corridor 40", "corridor 1000"), strict=True):
        axis.axhline(50, color="k", linewidth=0.5)
        axis.set(xlabel="agent steps (millions)", title=f"T-maze, {title}, rollouts of 10", ylim=(0, 102))
        if axis.lines[1:]:
            axis.legend(loc="lower center", fontsize=8, ncol=2)
    axes[0].set_ylabel("right choices, %\n(left: median and range of seeds)")
    figure.tight_layout()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=130)
    Path(STUDY.table).write_text("\n".join(table) + "\n")
    print("\n".join(table))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each condition at corridor 40")
    parser.add_argument("--long", action="store_true", help="also corridor 1000, 2 seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--figure-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.figure_only:
        todo = [(c, seed) for seed in range(1, args.seeds + 1) for c in CONDITIONS]
        todo += [(c, seed) for c in LONG for seed in (1, 2)] if args.long else []
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda one: run(*one), todo))
    report()


if __name__ == "__main__":
    main()
