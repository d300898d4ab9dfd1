"""What a server has: TensorFlow alone. To be imported first. And a search of the graphs that it loads."""

import sys

sys.modules.update(keras_rtrl=None, tf_agents=None, keras=None, tf_keras=None)  # cannot be imported

import tensorflow as tf  # noqa: E402
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402
from tensorflow.python.framework import op_def_registry  # noqa: E402

tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)


def graph_def(path):
    message = saved_model_pb2.SavedModel()
    with open(f"{path}/saved_model.pb", "rb") as file:
        message.ParseFromString(file.read())
    return message.meta_graphs[0].graph_def


def foreign(graph):
    """Operations, in all functions too, that TensorFlow's registry does not know."""
    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return sorted({node.op for node in nodes if node.op not in functions and op_def_registry.get(node.op) is None})


def foreign_with_one_planted(graph):
    """The same of a graph that an operation was put into which nobody has."""
    graph.library.function[0].node_def.add(name="made_up", op="KerasRtrlMadeUp")
    return foreign(graph)
