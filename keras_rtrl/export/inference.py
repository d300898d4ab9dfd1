"""Inference without this package: a model as a SavedModel of stock TensorFlow operations that carries no traces.

```python
inference_model(model).save("served")              # in a process with keras_rtrl

served = tf.saved_model.load("served").signatures  # in any process with TensorFlow
state = served["initial_state"](batch_size=tf.constant(1))
out = served["serving_default"](x=x, reset=reset, **state)
```
"""

from keras_rtrl._keras import keras
from keras_rtrl.export.module import StatefulModule
from keras_rtrl.export.reading import NamedModel


def inference_model(model: keras.Model, *, batch_size: int | None = None, steps: int | None = None) -> StatefulModule:
    """The function that `model` computes in inference, as a tf.Module that needs neither Keras nor keras_rtrl.

    It holds only stock TensorFlow operations and no traces. It keeps no state: states go in and come out by name. The
    batch size is free, also if the model was built with a fixed one. The number of steps is free, unless a layer needs
    it fixed. With `batch_size` and `steps` all shapes are static, and with steps=1 the graph has no loop: such a module
    converts to LiteRT. The module shares the model's weights: it follows further training, and `save` writes the
    present values.

    One call on a whole sequence and several calls on its pieces give the same outputs, if only RTRL layers look back in
    time. Other layers that do, such as Conv1D or keras' LSTM, start again with each call; so does the output that is
    repeated at masked steps.

    The functions `step` and `initial_state`, which `save(path)` writes as the signatures "serving_default" and
    "initial_state", take and return flat tensors by name:

      initial_state(batch_size int32 []) -> the states [B, N, m], zeros; it takes nothing if `batch_size` is given.
      step(inputs, reset bool [B, T], states) -> outputs, new states. Inputs and outputs have the names of keras.Input
        and of the output layers, or the keys of dicts; a subclassed model's input has the name of its argument in
        `call`, and its outputs are `output` or `output_0`, `output_1`, ... A layer called elstm has the state
        `elstm_state`; a stack has `stack_state_1`, `stack_state_2`, ...; layers called twice without stateful=True have
        a second `elstm_state_2`. `reset`, true if a new episode starts with that step, is an input unless the model
        gives every layer with such a state its own reset.

    If the model passes an initial_state to a layer, the layer uses it as before. Layers with return_state=True return
    their states as outputs under the names above, and no traces.

    Args:
      model: a built keras.Model with at least one RTRL or RTRLStack layer: Sequential, functional or subclassed.
      batch_size: B, also of a model built with another; None: free.
      steps: T, also of a model built with another; None: free.

    Returns:
      A `StatefulModule`.

    Raises:
      TypeError: `model` is not a model of the Keras in use.
      ValueError: `batch_size` or `steps` is no whole number of at least 1, or a layer needs another number of steps;
        the model is not built, has no RTRL layer, takes traces as input or computes with them, has a stateful layer
        inside TimeDistributed, or a stateful recurrent layer of Keras, whose state has no name.
    """
    named = NamedModel(model, batch_size=batch_size, steps=steps)

    def step(**given):
        outputs, states, _ = named(given)
        return {**outputs, **states}

    inputs = {**named.inputs, **named.reset}
    return StatefulModule(step, inputs, states=named.states, layers=named.layers, batch_size=named.batch_size)
