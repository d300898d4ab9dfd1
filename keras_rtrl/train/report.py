"""The table and the figure of a sweep."""

import itertools
import math

import numpy as np

from keras_rtrl._errors import UsageError
from keras_rtrl.train import statistics
from keras_rtrl.train.config import slug
from keras_rtrl.train.run_folder import replacing, write_text

_REFERENCES = {"mean_predictor_error": "(predicting the mean)", "floor_error": "(noise floor)"}
_LINES = ("-", "--", "-.", ":")
_TIMES = {"wall time": "seconds", "processor time": "processor_seconds"}


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
    """Writes the study's table.md, whose `text` is `table(results)`, and its two figures with its `title`."""
    write_text(study.table, text)
    _plot(results, title, study.curves)
    _plot(results, title, study.curves_time, of_time=True)


def score(rows, name):
    """Mean of the column `name` over the rows of the run's last tenth; nan if they have no value."""
    begin = 0.9 * int(rows[-1]["frames"])
    values = [float(row[name]) for row in rows if int(row["frames"]) > begin and row[name]]
    return float(np.mean(values)) if values else math.nan


def episode_frames(rows):
    """Environment frames an episode, in the run's last half; nan if too few episodes end there.

    Each episode counts the frame from its end to the next one's start too. Counting goes from a row to a later one in
    both of which episodes ended: if all have one length, those of all streams end at once.
    """
    begin = int(rows[-1]["frames"]) / 2
    counted = [(int(row["frames"]), float(row["games"])) for row in rows if row.get("games")]
    ended = [new for old, new in itertools.pairwise(counted) if new[1] > old[1] and new[0] > begin]
    return (ended[-1][0] - ended[0][0]) / (ended[-1][1] - ended[0][1]) if len(ended) > 1 else math.nan


def _score_name(runs):
    return "return_error" if "return_error" in runs[0].rows[0] else "mean_return"


def _scores(runs):
    name = _score_name(runs)
    return np.array([score(run.rows, name) for run in runs])


def table(results):
    """The table of `read`'s results, Markdown.

    The score of a run is the mean of mean_return, or of return_error if the agent predicts, over the rows of its last
    tenth. A row has the interquartile mean of its runs' scores and, in brackets, the 95 % interval of that mean; then
    the probability that one of its runs is better than one of the first condition's, with its interval
    (`statistics.improvement`); of times the median. A column that no row has a value for is left out.
    """
    names = {_score_name(runs) for by_condition in results.values() for runs in by_condition.values()}
    score_title = f"{' or '.join(sorted(name.replace('_', ' ') for name in names))}, last tenth"
    baseline = next(iter(dict.fromkeys(condition for by_condition in results.values() for condition in by_condition)))
    better = f"better than {baseline}"
    rows, pairs = [], {}
    for task, by_condition in results.items():
        for condition, runs in by_condition.items():
            others = by_condition.get(baseline, ())
            if condition != baseline and min(len(runs), len(others)) >= statistics.FEWEST:
                pairs.setdefault(condition, {})[task] = _compared(runs, others)
            rows.append({
                "task": task, "condition": condition, "seeds": len(runs), "frames": f"{runs[0].total_frames:,}",
                score_title: _with_interval(_scores(runs)), better: _improvement(pairs, condition, [task]),
                **_sizes(runs),
            })  # fmt: skip
        every = [run for runs in by_condition.values() for run in runs]
        if _score_name(every) == "return_error":
            for name, label in _REFERENCES.items():
                level = np.mean([score(run.rows, name) for run in every])
                rows.append({"task": task, "condition": label, score_title: f"{level:.4g}"})
    for condition, by_task in pairs.items():
        if len(by_task) > 1:
            label = f"{len(by_task)} tasks"
            rows.append({"task": label, "condition": condition, better: _improvement(pairs, condition, by_task)})
    return _markdown(rows)


def _compared(runs, others):
    """The scores of both, the higher the better."""
    sign = -1 if _score_name(runs) == "return_error" else 1
    return sign * _scores(runs), sign * _scores(others)


def _improvement(pairs, condition, tasks):
    known = pairs.get(condition, {})
    found = statistics.improvement([known[task] for task in tasks if task in known])
    return "" if math.isnan(found[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def _sizes(runs):
    lengths = np.mean([episode_frames(run.rows) for run in runs])
    columns = {
        "frames an episode": "" if math.isnan(lengths) else f"{lengths:,.4g}",
        "recurrent parameters": f"{runs[0].recurrent_parameters:,}",
    }
    for name, column in _TIMES.items():
        ends = [run.rows[-1].get(column) for run in runs]
        columns[name] = f"{np.median([float(end) for end in ends]) / 60:.1f} min" if all(ends) else ""
    return columns


def _markdown(rows):
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) for row in rows)]
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join([head, f"|{'---|' * len(columns)}\n", *body])


def _with_interval(scores):
    mean = statistics.interquartile_mean(scores)
    if math.isnan(mean):
        return "no game finished"
    low, high = statistics.interval(scores)
    return f"{mean:.4g}" if math.isnan(low) else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _plot(results, title, path, of_time=False):
    """The curves of every condition, a panel for each task, against environment frames or against time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    looks = {  # ten colours, then the same ones dashed, ...
        condition: {"color": f"C{i % 10}", "linestyle": _LINES[i // 10 % len(_LINES)]}
        for i, condition in enumerate(conditions)
    }
    progress = time_column(results) if of_time else "frames"
    for axis, (task, by_condition) in zip(axes, results.items(), strict=False):
        axis.set(title=task)
        _draw(axis, by_condition, progress, looks)
    for axis in axes[len(results) :]:
        axis.remove()
    handles = {
        label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns, fontsize=9)
    few = any(len(runs) < statistics.FEWEST for by_condition in results.values() for runs in by_condition.values())
    alone = "\n(of one or two seeds, each alone)" if few else ""
    figure.suptitle(f"{title}: interquartile mean over seeds and its 95 % interval{alone}")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def time_column(results):
    """The column of processor time if all runs have it, else that of wall time."""
    runs = [run for by_condition in results.values() for conditions in by_condition.values() for run in conditions]
    names = _TIMES["processor time"], _TIMES["wall time"]
    return next(name for name in names if all(row.get(name) for run in runs for row in run.rows) or name == names[-1])


def _draw(axis, by_condition, progress, looks):
    """A task's curves; `progress` names the column of the x axis."""
    from matplotlib.ticker import EngFormatter

    for condition, runs in by_condition.items():
        x, values = _curves(runs, progress, _score_name(runs))
        look = looks[condition]
        if len(runs) < statistics.FEWEST:  # an interval would hide both
            axis.plot(x.T, values.T, **look, label=[condition, *[None] * (len(runs) - 1)])
            continue
        x = np.median(x, axis=0)
        axis.plot(x, statistics.interquartile_mean(values), **look, label=condition)
        axis.fill_between(x, *statistics.interval(values), color=look["color"], alpha=0.2, linewidth=0)
    every = [run for runs in by_condition.values() for run in runs]
    predicts = _score_name(every) == "return_error"
    if predicts:
        for (name, label), style in zip(_REFERENCES.items(), ("--", ":"), strict=True):
            level = np.mean([score(run.rows, name) for run in every])
            axis.axhline(level, color="black", linewidth=0.8, linestyle=style, label=label)
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5 * np.mean([score(run.rows, "floor_error") for run in every]))
    axis.set_ylabel("mean squared error" if predicts else "mean return")
    names = {"frames": "environment frames", **{column: f"{name}, minutes" for name, column in _TIMES.items()}}
    axis.set_xlabel(names[progress])
    if progress == "frames":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)


def _curves(runs, progress, name):
    """Frames or minutes, and values, each [runs, X], where every run has a value at the same frames."""
    points = [{int(row["frames"]): row for row in run.rows if row[name]} for run in runs]
    common = sorted(set.intersection(*map(set, points)))
    x, values = (
        np.array([[float(at[frames][column] or math.nan) for frames in common] for at in points])
        for column in (progress, name)
    )
    return x if progress == "frames" else x / 60, values
