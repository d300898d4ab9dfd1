"""Every file of a run's folder and a study's table, with every damage, and the commands that read it."""

import gzip
import json
import os
import pathlib
import random

from case import START, Case
from settings import TMAZE

COMMANDS = {
    "resume": ["train", "--resume", "run", *START],
    "evaluate": ["evaluate", "run", "--episodes", "1"],
    "worth": ["worth", "run", "--steps", "2", "--rollouts", "1"],
    "export": ["export", "run", "target"],
    "encoder": ["train", "tiny.gin", "--out", "new", *START, "--gin", "train.encoder_from = 'run'"],
}
REPORT = ["sweep", "sweep.gin", "--report-only", "--out", "results"]
# Which of them cannot do without a file that is not whole.
NEED = {
    "config.gin": ("resume", "evaluate", "worth", "export"),
    "checkpoints": ("resume", "evaluate", "worth", "export", "encoder"),
}
SWEEP = f'{TMAZE}sweep.tasks = {{"T-maze": []}}\nsweep.conditions = {{"all": []}}\n'
GARBAGE = random.Random(0).randbytes(3000)


def _loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def _folder(path):
    path.unlink()
    path.mkdir()


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


# What makes any file unreadable.
BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(GARBAGE),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("nonsense\n"),
    "folder": _folder,
    "link to itself": _loop,
    "dangling link": _dangling,
    "pipe": _fifo,
    "not permitted": lambda path: path.chmod(0),
}


def _lines(change):
    """A damage of a text file: `change` of its lines."""
    return lambda path: path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def _columns(change):
    """A damage of every row of a metrics.csv but its header: `change` of the cells."""
    return _lines(lambda lines: [lines[0], *(",".join(change(line.split(","))) for line in lines[1:])])


TABLE = {
    "header alone": _lines(lambda lines: lines[:1]),
    "header twice": _lines(lambda lines: [lines[0], *lines]),
    "header at the end": _lines(lambda lines: [*lines, lines[0]]),
    "no header": _lines(lambda lines: lines[1:]),
    "words": _columns(lambda cells: ["x"] * (len(cells) - 1) + ["x\n"]),
    "nothing in cells": _columns(lambda cells: [""] * (len(cells) - 1) + ["\n"]),
    "nan": _columns(lambda cells: ["nan"] * (len(cells) - 1) + ["nan\n"]),
    "large": _columns(lambda cells: ["9" * 400] * (len(cells) - 1) + ["1\n"]),
    "fewer columns": _lines(lambda lines: [f"{line.split(',')[0]}\n" for line in lines]),
    "more cells": _columns(lambda cells: ["1", *cells]),
    "CRLF": _lines(lambda lines: [line.replace("\n", "\r\n") for line in lines]),
    "open quote": _lines(lambda lines: [lines[0], '"', *lines[1:]]),
    "no last newline": _lines(lambda lines: [*lines[:-1], lines[-1][:-1]]),
    "BOM": _lines(lambda lines: ["\ufeff", *lines]),
    "NUL": _lines(lambda lines: [*lines, "\0\0\0\n"]),
    "long cell": _lines(lambda lines: [*lines, "1" * 200_000 + "\n"]),
}


def _record(change):
    def damage(path):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def _records(made):
    """Damages of run.json: other JSON, and each field missing or of another type."""
    damages = {
        "list": _record(lambda record: [1]),
        "null": _record(lambda record: None),
        "number": _record(lambda record: 3),
        "string": _record(lambda record: "x"),
        "no field": _record(lambda record: {}),
        "deep": lambda path: path.write_text("[" * 100_000),
        "twice": lambda path: path.write_text(path.read_text() * 2),
        "digits": lambda path: path.write_text('{"frames": ' + "9" * 5000 + "}"),
    }
    for field in json.loads((made.run / "run.json").read_text()):
        without = {"no " + field: _record(lambda r, field=field: {k: v for k, v in r.items() if k != field})}
        damages.update(without)
        for value in (None, "x", -1, 1.5, [], {}, True, float("nan"), 10**30, [1], "\ud800"):
            damages[f"{field} = {value!r}"] = _record(lambda r, field=field, value=value: {**r, field: value})
    return damages


GIN = {
    "open bracket": "train.frames = [\n",
    "unknown": "nothing.at_all = 3\n",
    "wrong value": "train.rollout_length = 0\n",
    "import": "import os\n",
    "include": "include 'nowhere.gin'\n",
    "call": "train.seed = @train()\n",
    "macro": "train.rollout_length = %x\n",
    "twice": "train.rollout_length = 'x'\n",
    "another network": "ActorCriticNetwork.units = 9\n",
    "another core": "ActorCriticNetwork.core = 'rtu'\nActorCriticNetwork.core_options = None\n",
    "module": "environment.name = 'os:TMaze-v0'\n",
}
STATE = {  # of checkpoints/checkpoint
    "another": 'model_checkpoint_path: "ckpt-99"\n',
    "outside": 'model_checkpoint_path: "/nowhere/ckpt-1"\n',
    "no number": 'model_checkpoint_path: "ckpt"\n',
    "folder": 'model_checkpoint_path: "."\n',
    "other field": "nonsense: 3\n",
    "open quote": 'model_checkpoint_path: "ckpt-',
    "number": "model_checkpoint_path: 3\n",
    "nothing": 'model_checkpoint_path: ""\n',
}


def _damages(made, file):
    """(name, what makes it, whether the file can then be read no more)."""
    yield from ((name, damage, True) for name, damage in BROKEN.items())
    if file == "metrics.csv":
        yield from ((name, damage, False) for name, damage in TABLE.items())
    elif file == "run.json":
        yield from ((name, damage, False) for name, damage in _records(made).items())
    elif file == "config.gin":
        for name, text in GIN.items():
            yield name, lambda path, text=text: path.write_text(f"{path.read_text()}\n{text}"), True
        yield "CRLF", lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")), False
    elif file == "checkpoints/checkpoint":
        for name, text in STATE.items():
            yield name, lambda path, text=text: path.write_text(text), True


def damaged(made):
    """Every file with every damage, read by the commands that need it and by one more in turn."""
    turn = 0
    for file in made.files():
        for name, damage, broken in _damages(made, file):
            readers = [command for command in COMMANDS if command in NEED.get(file.split("/")[0], ())]
            others = [command for command in COMMANDS if command not in readers]
            turn += 1
            if file == "run.json":
                others = others[:1] if name in BROKEN or turn % 4 == 0 else []
            elif file == "metrics.csv":
                others = others[:1]  # resume
            elif file.split("/")[0] in ("policy", "events") or readers:
                others = [others[turn % len(others)]] if turn % 3 == 0 and others else []
            for command in [*readers, *others]:
                spared = name in ("zeros", "half") if "ckpt" not in file else name == "zeros"
                spared = spared or (name in ("wrong value", "twice") and command != "resume")  # of what only it reads
                must = command in readers and broken and not spared
                yield _case(command, file, name, damage, "refused" if must else "either")


def _case(command, file, name, damage, expected):
    def prepare(folder, made):
        made.copy(folder / "run")
        damage(folder / "run" / file)

    names = (file, "run", "configuration", "train.rollout_length", *GIN)
    texts = {"tiny.gin": TMAZE} if command == "encoder" else {}
    alone = name == "not permitted"
    return Case(f"{command}: {file} {name}", COMMANDS[command], expected, names, texts, prepare, unprivileged=alone)


def damaged_studies():
    """A study's table with every damage, of the file and of what is packed in it; a report and a sweep read it."""
    sweep = ["sweep", "sweep.gin", "--seeds", "2", "--out", "results"]
    for name, damage in BROKEN.items():
        yield _study(REPORT, name, damage, "refused")
        if name != "missing":
            yield _study(sweep, name, damage, "refused")
    for name in ("task", "condition", "seed", "total_frames", "recurrent_parameters", "frames", "seconds"):
        yield _study(REPORT, f"no {name}", _packed(_renamed(name)), "refused")
    for name, damage in TABLE.items():
        yield _study(REPORT, name, _packed(damage), "either")


def _study(words, name, damage, expected):
    def prepare(folder, made):
        made.kept(folder / "results", 1)
        damage(pathlib.Path(made.kept(folder / "results", 2).runs))

    what = "report" if words is REPORT else "sweep"
    names = ("runs.csv.gz", "results: no finished run")
    alone = name == "not permitted"
    return Case(f"{what}: table {name}", words, expected, names, {"sweep.gin": SWEEP}, prepare, unprivileged=alone)


def _packed(damage):
    """A damage of a packed file: `damage` of what is in it."""

    def packed(path):
        text = path.with_name("unpacked")
        text.write_bytes(gzip.decompress(path.read_bytes()))
        damage(text)
        path.write_bytes(gzip.compress(text.read_bytes()))
        text.unlink()

    return packed


def _renamed(column):
    return _lines(lambda lines: [",".join(f"x{c}" if c == column else c for c in lines[0].split(",")), *lines[1:]])


def folders():
    """Folders that are no runs, and places that take none."""

    def made(kind):
        def prepare(folder, made):
            place = folder / "run"
            if kind == "full of other things":
                place.mkdir()
                (place / "notes.txt").write_text("mine")
            elif kind == "empty":
                place.mkdir()
            elif kind == "file":
                place.write_text("")
            elif kind == "loop":
                place.symlink_to("run")
            elif kind == "config is a folder":
                (place / "config.gin").mkdir(parents=True)
            elif kind == "checkpoints is a file":
                made.copy(place)
                (place / "checkpoints").rename(place / "old")
                (place / "checkpoints").write_text("")
            elif kind == "not permitted":
                made.copy(place)
                place.chmod(0)
            elif kind == "read only":
                made.copy(place)
                for path in (place, *(path for path in place.rglob("*") if path.is_dir())):
                    path.chmod(0o555)

        return prepare

    kinds = ("missing", "empty", "file", "loop", "full of other things", "config is a folder", "checkpoints is a file")
    for command in ("resume", "evaluate", "export", "encoder"):
        texts = {"tiny.gin": TMAZE} if command == "encoder" else {}
        for kind in (*kinds, "not permitted", "read only"):
            alone = kind in ("not permitted", "read only")
            expected = "either" if kind == "read only" and command != "resume" else "refused"
            yield Case(
                f"{command}: folder {kind}",
                COMMANDS[command],
                expected,
                ("run",),
                texts,
                made(kind),
                unprivileged=alone,
            )
    outs = ("file", "loop", "not permitted", "read only", "checkpoints is a file", "config is a folder")
    for command, words in (
        ("train", ["train", "tiny.gin", "--out", "run", *START]),
        ("deeper", ["train", "tiny.gin", "--out", "run/deeper/still", *START]),
        ("target", ["export", "good", "run"]),
        ("video", ["evaluate", "good", "--episodes", "1", "--video", "run/x.mp4"]),
        ("sweep", ["sweep", "sweep.gin", "--seeds", "1", "--out", "run"]),
    ):
        for kind in outs if command != "sweep" else ("file", "loop", "not permitted", "read only"):

            def prepare(folder, made_, kind=kind):
                made_.copy(folder / "good")
                made(kind)(folder, made_)

            texts = {"tiny.gin": TMAZE, "sweep.gin": SWEEP}
            alone = kind in ("not permitted", "read only")
            expected = "either" if kind in ("checkpoints is a file", "config is a folder") else "refused"
            if command == "video":
                expected = "refused"  # the T-maze has no images
            yield Case(f"{command} into {kind}", words, expected, ("run",), texts, prepare, unprivileged=alone)
