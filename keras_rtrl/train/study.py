"""What stays of a sweep: all its finished runs in one table, and the settings that they were trained with."""

import csv
import dataclasses
import fcntl
import gzip
import io
import os
import zlib

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError, one_line
from keras_rtrl.train import metrics
from keras_rtrl.train.run_folder import read_bytes, read_json, read_text, replacing, write_json

_LARGEST = 2**30  # bytes of the table, unpacked: beyond it, the file is no study's
_NUMBERS = ("seed", "total_frames", "recurrent_parameters")
_KEYS = ("task", "condition", *_NUMBERS)


@dataclasses.dataclass
class FinishedRun:
    """A finished run.

    Attributes:
      seed, total_frames, recurrent_parameters: ints.
      rows: of its metrics.csv, dicts of strings.
      settings: dict of what it was trained with, the seed aside: "version", "preset", and "settings", the lines of its
        config.gin. Empty for a run that was read from a table.
    """

    seed: int
    total_frames: int
    recurrent_parameters: int
    rows: list
    settings: dict = dataclasses.field(default_factory=dict)


class Study:
    """The folder of a sweep.

    runs.csv.gz      the rows of metrics.csv of all finished runs. Five columns stand first: task, condition, seed,
                     total_frames (asked for) and recurrent_parameters. A column that a run lacks is empty in its rows
    settings.json    a list of dicts: task, condition, seeds, version, preset and settings (lines of a gin file without
                     train.seed). Runs that differ in the seed alone share one
    table.md         the report
    curves.png       its figure, against environment frames
    curves_time.png  the same against time
    .runs/           the folders of runs that are not finished, and locks
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.runs = os.path.join(self.path, "runs.csv.gz")
        self.settings = os.path.join(self.path, "settings.json")
        self.table = os.path.join(self.path, "table.md")
        self.curves = os.path.join(self.path, "curves.png")
        self.curves_time = os.path.join(self.path, "curves_time.png")
        self.unfinished = os.path.join(self.path, ".runs")

    def read(self):
        """The finished runs.

        Returns:
          dict from (task, condition, seed) to FinishedRun, by task, condition and seed; empty if there is no table.

        Raises:
          UsageError: runs.csv.gz cannot be read, or is no such table.
        """
        content = read_bytes(self.runs)
        if content is None:
            return {}
        rows = metrics.parse(self.runs, self._unpacked(content), _KEYS[:2], (*_NUMBERS, *metrics.WHOLE))
        if not rows:
            raise UsageError(f"{self.runs}: is broken: has no rows")
        groups = {}
        for row in rows:
            task, condition, *numbers = (row.pop(name) for name in _KEYS)
            groups.setdefault((task, condition, int(numbers[0])), []).append(([int(n) for n in numbers], row))
        runs = {}
        for key, group in sorted(groups.items(), key=lambda item: item[0]):
            rows = [row for _, row in group]
            predicts = any(row.get("return_error") for row in rows)
            own = {"mean_return", *(metrics.ERRORS if predicts else ())}  # may be empty in all rows
            columns = [name for name in rows[0] if name in own or any(row[name] for row in rows)]
            run = FinishedRun(*group[0][0], [{name: row[name] for name in columns} for row in rows])
            _check_columns(self.runs, run.rows)
            runs[key] = run
        return runs

    def add(self, task, condition, run):
        """Puts a finished run into the table, and its settings into settings.json, one process at a time.

        Args:
          task, condition: strings, the folders' names of their labels.
          run: FinishedRun, as `finished_run` reads it. It replaces one of the same seed.

        Raises:
          UsageError: the files that are there are broken.
        """
        os.makedirs(self.unfinished, exist_ok=True)
        with open(os.path.join(self.unfinished, "study.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            runs = self.read()
            self._add_settings({"task": task, "condition": condition, "seeds": [run.seed], **run.settings})
            runs[task, condition, run.seed] = run
            self._write(dict(sorted(runs.items(), key=lambda item: item[0])))  # last: it says that the run is kept

    def _unpacked(self, content):
        try:
            with gzip.open(io.BytesIO(content)) as file:
                text = file.read(_LARGEST + 1)
            if len(text) > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST} bytes")
            return text.decode()
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UsageError(f"{self.runs}: is broken: {one_line(error)}") from error

    def _write(self, runs):
        every = (row for run in runs.values() for row in run.rows)
        columns = [*_KEYS, *dict.fromkeys(name for row in every for name in row)]
        with replacing(self.runs) as temporary, open(temporary, "wb") as file:
            # neither name nor time, so that the same runs give the same bytes
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                with io.TextIOWrapper(packed, "utf-8", newline="") as text:
                    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
                    table.writeheader()
                    for (task, condition, _), run in runs.items():
                        numbers = {name: getattr(run, name) for name in _NUMBERS}
                        table.writerows({"task": task, "condition": condition, **numbers, **row} for row in run.rows)

    def _add_settings(self, new):
        entries = read_json(self.settings, [])
        if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
            raise UsageError(f"{self.settings}: must hold a list of dicts with task, condition and seeds")
        kept = []
        for entry in entries:
            if (entry["task"], entry["condition"]) == (new["task"], new["condition"]):
                entry = {**entry, "seeds": [seed for seed in entry["seeds"] if seed not in new["seeds"]]}
            if {**entry, "seeds": None} == {**new, "seeds": None}:
                new = {**new, "seeds": sorted([*entry["seeds"], *new["seeds"]])}
            elif entry["seeds"]:
                kept.append(entry)
        order = sorted([*kept, new], key=lambda entry: (entry["task"], entry["condition"], entry["seeds"]))
        write_json(self.settings, order)


def finished_run(folder):
    """A FinishedRun of the RunFolder of a run that has ended. Raises UsageError if its files are broken."""
    record, rows, config = folder.read_record(), metrics.read(folder.metrics), read_text(folder.config)
    for name in _NUMBERS:
        if not 0 <= record.get(name, -1) < 2**63:
            raise UsageError(f"{folder.record}: {name} must be a whole number, got {shown(record.get(name))}")
    if not rows:
        raise UsageError(f"{folder.metrics}: has no rows")
    if config is None:
        raise UsageError(f"{folder.config}: no such file")
    _check_columns(folder.metrics, rows)
    lines = [line for line in config.splitlines() if line and not line.startswith(("#", "train.seed ="))]
    settings = {"version": record.get("version"), "preset": record.get("preset"), "settings": lines}
    return FinishedRun(*(record[name] for name in _NUMBERS), rows, settings)


def _check_columns(path, rows):
    """Raises UsageError if a run's rows, of the file `path`, lack what reports need."""
    errors = metrics.ERRORS if "return_error" in rows[0] else ("mean_return",)
    missing = sorted({"seconds", *errors} - set(rows[0]))
    if missing or not rows[-1]["seconds"]:
        raise UsageError(f"{path}: lacks {', '.join(missing or ['seconds'])}")


def _is_entry(entry):
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("task", "condition")):
        return False
    return isinstance(entry.get("seeds"), list) and all(type(seed) is int for seed in entry["seeds"])
