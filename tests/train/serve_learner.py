"""The server of test_learner.py: TensorFlow alone. It lets an exported agent play memory chains, and learn from them.

serve_learner.py FOLDER STEPS CUT   so many steps, bits and length being in FOLDER/in.npz, or what is to be seen; if CUT
                                    is above 0 once more, but after so many steps the file is loaded again, and the
                                    state put into it
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "export"))

from bare import foreign, foreign_with_one_planted, graph_def  # first: it keeps Keras and this package out

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip

FIRST, MID, LAST = 0, 1, 2


def chain(bits, length):
    """Time steps of memory chains, one episode after the other; takes the action of the step before."""
    for bit in bits:
        action = yield (1.0 if bit else -1.0, 0.0), 0.0, 1.0, FIRST
        for position in range(1, length + 2):
            action = yield (0.0, float(position == length + 1)), 0.0, 1.0, MID
        yield (0.0, 0.0), 1.0 if action == bit else -1.0, 0.0, LAST


def recorded():
    """Time steps as they were seen elsewhere, whatever the action."""
    for t in range(steps):
        yield data["observation"][t], data["reward"][t], data["discount"][t], data["step_type"][t]


def world():
    return chain(data["bits"].tolist(), int(data["length"])) if "bits" in data else recorded()


def drive(step, seen, steps, action=None):
    """What `step` returned in so many steps, by name; `action`: the last one, if the world is under way."""
    said, kind = [], tf.as_dtype(data["observation"].dtype) if "observation" in data else tf.float32
    for _ in range(steps):
        observation, reward, discount, step_type = seen.send(action)
        out = step(
            observation=tf.constant([observation], kind),
            reward=tf.constant([reward], tf.float32),
            discount=tf.constant([discount], tf.float32),
            step_type=tf.constant([step_type]),
        )
        said.append({**{name: value.numpy() for name, value in out.items()}, "reward": reward})
        action = said[-1]["action"][0]
    return {name: np.stack([row[name] for row in said]) for name in said[0]}


def state(signatures):
    return {name: value.numpy() for name, value in signatures["get"]().items()}


def play(cut):
    """What `step` returned, and the state after all steps, by name."""
    signatures, seen = tf.saved_model.load(path).signatures, world()
    said = drive(signatures["step"], seen, cut)
    if cut < steps:
        kept, signatures = state(signatures), tf.saved_model.load(path).signatures
        signatures["set"](**{key: tf.constant(value) for key, value in kept.items()})
        rest = drive(signatures["step"], seen, steps - cut, said["action"][-1][0])
        said = {name: np.concatenate([said[name], rest[name]]) for name in said}
    return {**said, **state(signatures)}


folder, steps, cut = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data, path = np.load(f"{folder}/in.npz"), f"{folder}/agent"
graph = graph_def(path)
out = {"foreign": foreign(graph), "planted": foreign_with_one_planted(graph)}
out["signatures"] = sorted(tf.saved_model.load(path).signatures)
began = time.perf_counter()
out.update(play(steps))
out["seconds"] = time.perf_counter() - began
if cut:
    out.update({f"again/{name}": value for name, value in play(cut).items()})
np.savez(f"{folder}/out.npz", **out)
