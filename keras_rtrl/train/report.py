"""The table and the figure of a sweep."""

import math

import numpy as np
import tensorflow_probability as tfp

from keras_rtrl._errors import UsageError
from keras_rtrl.train.config import slug
from keras_rtrl.train.run_folder import replacing, write_text

_REFERENCES = {"mean_predictor_error": "(predicting the mean)", "floor_error": "(noise floor)"}


def read(study, tasks, conditions):
    """The finished runs of a study.

    Args:
      study: Study.
      tasks, conditions: labels, in the order of the report.

    Returns:
      dict from task to dict from condition to FinishedRuns, by seed.

    Raises:
      UsageError: no run there, a broken table, or runs of one condition of different lengths.
    """
    kept, results = study.read(), {}
    for task in tasks:
        for condition in conditions:
            key = (slug(task), slug(condition))
            runs = [run for (*labels, _), run in kept.items() if tuple(labels) == key]
            lengths = sorted({run.total_frames for run in runs})
            if len(lengths) > 1:
                raise UsageError(f"{study.runs}: runs of {'/'.join(key)} of different lengths, {lengths} frames")
            if runs:
                results.setdefault(task, {})[condition] = runs
    if not results:
        raise UsageError(f"{study.path}: no finished run to report")
    return results


def write(study, results, text, title):
    """Writes the study's table.md, whose `text` is `table(results)`, and its curves.png with its `title`."""
    write_text(study.table, text)
    _plot(results, title, study.curves)


def interval(values):
    """(mean, half width of its 95 % interval) over the first axis; the half width is nan for fewer than two values."""
    values = np.asarray(values, float)
    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.nan)
    quantile = float(tfp.distributions.StudentT(np.float64(count - 1), 0.0, 1.0).quantile(0.975))
    return values.mean(axis=0), quantile * values.std(axis=0, ddof=1) / math.sqrt(count)


def score(rows, name):
    """Mean of the column `name` over the rows of the run's last tenth; nan if they have no value."""
    begin = 0.9 * int(rows[-1]["frames"])
    values = [float(row[name]) for row in rows if int(row["frames"]) > begin and row[name]]
    return float(np.mean(values)) if values else math.nan


def _score_name(runs):
    return "return_error" if "return_error" in runs[0].rows[0] else "mean_return"


def table(results):
    """The table of `read`'s results, Markdown.

    The score of a run is the mean of mean_return, or of return_error if the agent predicts, over the rows of its last
    tenth. "±" and the bands of the figure are 95 % intervals of the mean over seeds (Student's t).
    """
    names = {_score_name(runs) for by_condition in results.values() for runs in by_condition.values()}
    title = " or ".join(sorted(name.replace("_", " ") for name in names))
    lines = [
        f"| task | condition | seeds | frames | {title}, last tenth | recurrent parameters | wall time |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, by_condition in results.items():
        for condition, runs in by_condition.items():
            seconds = np.median([float(run.rows[-1]["seconds"]) for run in runs])
            cells = [
                task, condition, len(runs), f"{runs[0].total_frames:,}", _with_interval(runs, _score_name(runs)),
                f"{runs[0].recurrent_parameters:,}", f"{seconds / 60:.1f} min",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
        every = [run for runs in by_condition.values() for run in runs]
        if _score_name(every) == "return_error":
            for name, label in _REFERENCES.items():
                level = np.mean([score(run.rows, name) for run in every])
                lines.append(f"| {task} | {label} | | | {level:.4g} | | |")
    return "\n".join(lines) + "\n"


def _with_interval(runs, name):
    mean, half = interval([score(run.rows, name) for run in runs])
    if math.isnan(mean):
        return "no game finished"
    return f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {float(f'{half:.2g}'):g}"


def _plot(results, title, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(len(results), 3)
    rows = -(-len(results) // columns)
    width = max(4.5 * columns, 7)
    conditions = list(dict.fromkeys(condition for by_condition in results.values() for condition in by_condition))
    longest = max(map(len, (*conditions, *_REFERENCES.values())))
    legend_columns = max(int(13 * width / (longest + 7)), 1)  # 13 letters an inch
    legend_rows = -(-(len(conditions) + len(_REFERENCES)) // legend_columns)
    figure = Figure(figsize=(width, 3.4 * rows + 0.6 + 0.2 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (task, by_condition) in zip(axes, results.items(), strict=False):
        for condition, runs in by_condition.items():
            x, values = _curves(runs, _score_name(runs))
            color = f"C{conditions.index(condition)}"
            if len(runs) < 3:  # the interval of two would hide both
                axis.plot(x, values.T, color=color, label=[condition, *[None] * (len(runs) - 1)])
                continue
            mean, half = interval(values)
            axis.plot(x, mean, color=color, label=condition)
            axis.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
        every = [run for runs in by_condition.values() for run in runs]
        predicts = _score_name(every) == "return_error"
        if predicts:
            for (name, label), style in zip(_REFERENCES.items(), ("--", ":"), strict=True):
                level = np.mean([score(run.rows, name) for run in every])
                axis.axhline(level, color="black", linewidth=0.8, linestyle=style, label=label)
            axis.set_yscale("log")
            axis.set_ylim(bottom=0.5 * np.mean([score(run.rows, "floor_error") for run in every]))
        label = "mean squared error" if predicts else "mean return"
        axis.set(title=task, xlabel="environment frames", ylabel=label)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    for axis in axes[len(results) :]:
        axis.remove()
    handles = {
        label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns, fontsize=9)
    few = any(len(runs) < 3 for by_condition in results.values() for runs in by_condition.values())
    alone = "\n(of one or two seeds, each alone)" if few else ""
    figure.suptitle(f"{title}: mean over seeds and its 95 % interval{alone}")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _curves(runs, name):
    """The frames [X] at which every run has a value, and the values [runs, X]."""
    curves = [{int(row["frames"]): float(row[name]) for row in run.rows if row[name]} for run in runs]
    x = sorted(set.intersection(*map(set, curves)))
    return x, np.array([[curve[frames] for frames in x] for curve in curves])
