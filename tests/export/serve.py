"""The server of test_inference.py: TensorFlow alone. It loads models, looks through their graphs, and answers."""

import sys

from bare import foreign, foreign_with_one_planted, graph_def  # first: it keeps Keras and this package out

import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip
from tensorflow.python.framework import function_def_to_graph  # isort: skip


def highest_rank(graph):
    """Of all tensors in all functions; traces S have rank 5, and of all that these models need none is above 3."""
    ranks = [0]
    with tf.Graph().as_default() as imported:
        tf.graph_util.import_graph_def(graph, name="")
        graphs = [function_def_to_graph.function_def_to_graph(function) for function in graph.library.function]
        for one in (imported, *graphs):
            ranks += [tensor.shape.rank or 0 for op in one.get_operations() for tensor in op.outputs]
    return max(ranks)


def drive(signatures, x, reset, chunk):
    """Outputs of a sequence in chunks, from zero states."""
    state = signatures["initial_state"](batch_size=tf.constant(len(x)))
    step, chunks = signatures["serving_default"], []
    for t in range(0, x.shape[1], chunk):
        inputs = {"x": tf.constant(x[:, t : t + chunk]), "reset": tf.constant(reset[:, t : t + chunk])}
        outputs = step(**inputs, **state)
        state = {name: outputs.pop(name) for name in state}
        chunks.append({name: value.numpy() for name, value in outputs.items()})
    return {
        name: np.concatenate([o[name].reshape(len(x), -1, o[name].shape[-1]) for o in chunks], 1) for name in chunks[0]
    }


folder, *names = sys.argv[1:]
data = np.load(f"{folder}/in.npz")
out = {}
for name in names:
    graph = graph_def(f"{folder}/{name}")
    out[f"{name}/foreign"], out[f"{name}/rank"] = foreign(graph), highest_rank(graph)
    if name == "control":
        out["control/foreign"] = foreign_with_one_planted(graph)
        continue
    signatures = tf.saved_model.load(f"{folder}/{name}").signatures
    for how, chunk in (("whole", data["x"].shape[1]), ("steps", 1)):
        for key, value in drive(signatures, data["x"], data["reset"], chunk).items():
            out[f"{name}/{how}/{key}"] = value
    if name == "carry_returned":
        for key, value in drive(signatures, data["long_x"], data["long_reset"], 1).items():
            out[f"long/{key}"] = value
np.savez(f"{folder}/out.npz", **out)
