"""One wrong command line, and the runs that it may spoil."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

from keras_rtrl.train.run_folder import RunFolder
from keras_rtrl.train.study import Study, finished_run

START = ["--minutes", "1e-9"]  # what is taken ends before its first update, with a checkpoint


@dataclasses.dataclass
class Case:
    """A command line and what is right of it.

    Attributes:
      name: of the case, unique.
      words: after `keras-rtrl`.
      expected: "refused" (one line, exit code 2, nothing left behind), "taken" (exit code 0), or "either".
      names: one of these must be in the message.
      files: of the scratch folder that it is run in, their text by name.
      prepare: called with (scratch folder, Made) before; what else there must be in the folder.
      environment: variables.
      signal: (number, when): sent once there is the path `when`, or, if it is "file:text", the text in it; or after
        `when` seconds.
      unprivileged: without root's right to read and write whatever it likes.
    """

    name: str
    words: list
    expected: str = "refused"
    names: tuple = ()
    files: dict = dataclasses.field(default_factory=dict)
    prepare: Callable | None = None
    environment: dict = dataclasses.field(default_factory=dict)
    signal: tuple | None = None
    unprivileged: bool = False


class Made:
    """What was made before all cases: the folder of a finished run on the T-maze."""

    def __init__(self, run):
        self.run = pathlib.Path(run)

    def files(self):
        """The paths of the run's files in its folder, the newest checkpoint's alone."""
        files = [path.relative_to(self.run) for path in sorted(self.run.rglob("*")) if path.is_file()]
        newest = max(int(path.stem.partition("-")[2]) for path in files if path.suffix == ".index" and "-" in path.stem)
        return [str(path) for path in files if not path.name.startswith("ckpt-") or f"ckpt-{newest}." in path.name]

    def copy(self, target):
        shutil.copytree(self.run, target, symlinks=True)

    def kept(self, out, seed):
        """Puts the run into the Study at `out`, as one of t-maze/all."""
        study = Study(out)
        study.add("t-maze", "all", dataclasses.replace(finished_run(RunFolder(self.run)), seed=seed))
        return study


def shortened(text):
    return text if len(text) <= 40 else f"{text[:20]}...({len(text)})"
