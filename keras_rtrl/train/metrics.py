"""metrics.csv, TensorBoard events and the learning curve."""

import contextlib
import csv
import os

import tensorflow as tf

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError
from keras_rtrl.train.run_folder import read_text, replacing, write_text, writing

COLUMNS = (
    "frames",
    "updates",
    "games",
    "mean_return",
    "seconds",
    "processor_seconds",
    "frames_per_second",
    "learning_rate",
)  # then human_normalized if scores are known, errors of predictions if an agent predicts, the agent's losses

WHOLE = ("frames", "updates")  # columns of whole numbers that every table has

ERRORS = ("return_error", "mean_predictor_error", "floor_error")  # of the agent's prediction and of two references


class Metrics:
    """Appends one row an interval to metrics.csv and to TensorBoard.

    `frames` are environment frames; `mean_return` is over the last whole games (empty before the first ends), and
    `human_normalized` is 0 for the return of random play and 1 for a human's. `seconds` counts training, all sessions
    of the run together; `processor_seconds` what cores spent on it in that time, without waits for cores that others
    used. An agent that predicts plays no games: both columns of returns are empty.

    Args:
      run: the RunFolder.
      columns: names of the columns, COLUMNS first.
      updates: rows past this update are dropped first: they were written after the checkpoint that is resumed.
    """

    def __init__(self, run, columns, updates=0):
        trim(run, columns, updates)
        self._columns = columns
        self._run = run
        self._file = open(run.metrics, "ab", buffering=0)
        with writing(run.events):
            self._writer = tf.summary.create_file_writer(run.events)

    def write(self, **row):
        """Writes one row; the names are those of the columns, None is an empty value."""
        line = _line(self._columns, row).encode()
        with writing(self._run.metrics):
            while line:  # the rest of it, if the disk took a part
                line = line[self._file.write(line) :]
        with writing(self._run.events), self._writer.as_default():
            for name, value in row.items():
                if value is not None and name != "frames":
                    tf.summary.scalar(name, value, step=row["frames"])
            self._writer.flush()

    def sync(self):
        """Returns when all rows are on the disk: a checkpoint that counts them comes after."""
        with writing(self._run.metrics):
            os.fsync(self._file.fileno())

    def close(self):
        self._file.close()
        with writing(self._run.events):
            self._writer.close()


def processor_seconds():
    """Seconds that cores have spent on this process and on all that it has started, since each began.

    Wall time holds waits for cores that other programs use; this does not. Ray's actors are not counted: Ray starts
    them, not this process.
    """
    ticks, processes = 0, [os.getpid()]
    while processes:
        folder = f"/proc/{processes.pop()}"
        with contextlib.suppress(OSError):  # it may have ended
            with open(f"{folder}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # proc_pid_stat(5) from its third field on
            ticks += sum(map(int, fields[11:15]))  # its own, and those of its children that have ended
            for task in os.listdir(f"{folder}/task"):
                with open(f"{folder}/task/{task}/children", "rb") as file:
                    processes += map(int, file.read().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def trim(run, columns, updates):
    """Drops the rows of metrics.csv past an update; makes the file if there is none."""
    rows = [  # an earlier version's run may lack some, one that had actors has more
        {name: row.get(name, "") for name in columns} for row in read(run.metrics) if int(row["updates"]) <= updates
    ]
    header = dict(zip(columns, columns, strict=True))
    write_text(run.metrics, "".join(_line(columns, row) for row in [header, *rows]))


def _line(columns, row):
    if set(row) != set(columns):
        raise ValueError(f"row: got {sorted(row)}, expected {sorted(columns)}")
    values = ["" if row[name] is None else row[name] for name in columns]
    return ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values) + "\n"


def read(path):
    """The rows of a metrics.csv as dicts of strings, without a half-written last one; none if there is no file.

    Raises:
      UsageError: the file cannot be read, or is no such table.
    """
    return parse(path, read_text(path, torn=True) or "")


def parse(path, text, words=(), whole=WHOLE):
    """The rows of a table, dicts of strings.

    Args:
      path: of the file, for messages.
      text: its lines, separated by commas; none for no rows.
      words: names of columns that hold no numbers.
      whole: names of columns that hold whole numbers. Others hold numbers, or nothing.

    Raises:
      UsageError: there is no such table, or it lacks a column of `words` or `whole`.
    """
    lines = csv.reader(text.splitlines())
    try:
        columns = next(lines, None)
        if columns is None:
            return []
        if len(set(columns)) < len(columns) or not {*words, *whole} <= set(columns):
            needed = " and ".join(", ".join((*words, *whole)).rsplit(", ", 1))
            raise ValueError(f"line 1 must name columns, {needed} among them, got {shown(','.join(columns))}")
        return [_row(columns, values, lines.line_num, words, whole) for values in lines]
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path}: is broken: {error}") from error


def _row(columns, values, number, words, whole):
    if len(values) != len(columns):
        raise ValueError(f"line {number} has {len(values)} values, line 1 names {len(columns)} columns")
    row = dict(zip(columns, values, strict=True))
    for name, value in row.items():
        if name in words:
            continue
        try:
            float(int(value)) if name in whole else float(value or 0)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"line {number} must have numbers, got {name} {shown(value)}") from error
    return row


def plot(run, title, random_return=None):
    """Draws learning_curve.png from metrics.csv: mean returns, and that of random play; or errors of predictions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(run.metrics)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    errors = [name for name in ERRORS if rows and name in rows[0]]
    for name in errors or ["mean_return"]:
        points = [(int(row["frames"]), float(row[name])) for row in rows if row[name]]
        axes.plot([x for x, _ in points], [y for _, y in points], label=name.replace("_", " "))
    if random_return is not None:
        axes.axhline(random_return, color="gray", linestyle="--", label="random play")
    if errors:
        axes.set(yscale="log")
    if errors or random_return is not None:
        axes.legend()
    label = "mean squared error" if errors else "mean return of the last games"
    axes.set(title=title, xlabel="environment frames", ylabel=label)
    axes.grid(alpha=0.3)
    with replacing(run.curve) as temporary:
        figure.savefig(temporary, dpi=120)
