"""The server of test_learning.py: TensorFlow alone. It loads learners and teaches them.

learn.py FOLDER until NAME STEP     learns to that step, writes the whole state, and is killed
learn.py FOLDER all NAME...         learns to the end; the first one again from the state that was written
learn.py FOLDER memory NAME STEPS   learns so many steps; prints by how many KiB the resident memory grew meanwhile
"""

import os
import signal
import sys

from bare import foreign, foreign_with_one_planted, graph_def  # first: it keeps Keras and this package out

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip


def load(name):
    return tf.saved_model.load(f"{folder}/{name}").signatures


def learn(signatures, first, last):
    """What `learn` returned, from step `first` on, one row a call."""
    said = []
    for i in range(first, last):
        out = signatures["learn"](**{name: tf.constant(data[name][i % len(data[name])]) for name in data})
        said.append({name: value.numpy() for name, value in out.items()})
    return {name: np.stack([row[name] for row in said]) for name in said[0]}


def state(signatures):
    return {name: value.numpy() for name, value in signatures["get"]().items()}


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


folder, what, name, *rest = sys.argv[1:]
data = dict(np.load(f"{folder}/in.npz"))
steps = len(data["x"])
if what == "until":
    signatures = load(name)
    learn(signatures, 0, int(rest[0]))
    np.savez(f"{folder}/state.npz", **state(signatures))
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "memory":
    signatures = load(name)
    inputs = {name: tf.constant(value[0]) for name, value in data.items()}
    for i in range(int(rest[0])):
        if i == int(rest[0]) // 10:
            before = resident()
        signatures["learn"](**inputs)
    print("GREW", resident() - before)
else:
    out = {}
    for each in (name, *rest):
        graph, signatures = graph_def(f"{folder}/{each}"), load(each)
        out[f"{each}/foreign"] = foreign(graph)
        out[f"{each}/planted"] = foreign_with_one_planted(graph)
        out[f"{each}/signatures"] = sorted(signatures)
        learned = learn(signatures, 0, steps)
        out.update({f"{each}/{key}": value for key, value in {**learned, **state(signatures)}.items()})
    if os.path.exists(f"{folder}/state.npz"):
        signatures, kept = load(name), dict(np.load(f"{folder}/state.npz"))
        signatures["set"](**{key: tf.constant(value) for key, value in kept.items()})
        learned = learn(signatures, int(kept["count_updates"]), steps)
        out.update({f"again/{key}": value for key, value in {**learned, **state(signatures)}.items()})
    np.savez(f"{folder}/out.npz", **out)
