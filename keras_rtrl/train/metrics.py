"""metrics.csv, TensorBoard events and the learning curve."""

import csv
import os

import tensorflow as tf

from keras_rtrl.train.run_folder import write_text

COLUMNS = (
    "frames",
    "updates",
    "games",
    "mean_return",
    "seconds",
    "frames_per_second",
    "learning_rate",
    "loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "gradient_norm",
)


class Metrics:
    """Appends one row an interval to metrics.csv and to TensorBoard.

    `frames` are environment frames; `mean_return` is over the last whole games (empty before the first ends);
    `seconds` are of training, all sessions of the run together.

    Args:
      run: the RunFolder.
      updates: rows past this update are dropped first: they were written after the checkpoint that is resumed.
    """

    def __init__(self, run, updates=0):
        trim(run, updates)
        self._file = open(run.metrics, "a", encoding="utf-8")
        self._writer = tf.summary.create_file_writer(run.events)

    def write(self, **row):
        """Writes one row; the names are those of COLUMNS."""
        self._file.write(_line(row))
        self._file.flush()
        with self._writer.as_default():
            for name, value in row.items():
                if value is not None and name != "frames":
                    tf.summary.scalar(name, value, step=row["frames"])
        self._writer.flush()

    def close(self):
        self._file.close()
        self._writer.close()


def trim(run, updates):
    """Drops the rows of metrics.csv past an update; makes the file where there is none."""
    rows = [row for row in read(run.metrics) if int(row["updates"]) <= updates]
    write_text(run.metrics, "".join(_line(row) for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]))


def _line(row):
    if set(row) != set(COLUMNS):
        raise ValueError(f"row: got {sorted(row)}, expected {sorted(COLUMNS)}")
    values = ["" if row[name] is None else row[name] for name in COLUMNS]
    return ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values) + "\n"


def read(path):
    """The rows of a metrics.csv as dicts of strings, but a half-written last one; none where there is no file."""
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        whole = [line for line in file if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if None not in row.values()]


def plot(run, title):
    """Draws learning_curve.png anew from metrics.csv."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(int(row["frames"]), float(row["mean_return"])) for row in read(run.metrics) if row["mean_return"]]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([x for x, _ in points], [y for _, y in points])
    axes.set(title=title, xlabel="environment frames", ylabel="mean return of the last games")
    axes.grid(alpha=0.3)
    temporary = f"{run.curve}.tmp.png"
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, run.curve)
