"""Data for layers that carry their state from batch to batch."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_rtrl._checks import fits_memory, shown, whole_number


def stream_chunks(
    sequences: ArrayLike | Sequence[ArrayLike], targets: ArrayLike | Sequence[ArrayLike], *, batch_size: int, chunk: int
) -> tf.data.Dataset:
    """Chunks of long sequences in stream order, for `model.fit` with stateful layers.

    The sequences are given in turn to `batch_size` streams. Row b of a batch continues row b of the batch before;
    `reset` is true at the first step of a sequence. A stream that ends before the longest one, or inside a chunk, is
    filled up from its own beginning. So every step comes at least once an epoch.

    Args:
      sequences: array [n, L, D], or a list of arrays [L_i, D]; n at least `batch_size`.
      targets: one target a step: array [n, L, ...] or a list of arrays [L_i, ...].
      batch_size: B, number of streams.
      chunk: T, steps a batch.

    Returns:
      A finite `tf.data.Dataset` of ({"x": [B, T, D], "reset": [B, T] bool}, y [B, T, ...]), the same in every epoch.
      Call `model.fit` with shuffle=False.

    Raises:
      ValueError: lengths or counts that do not fit.
    """
    batch_size, chunk = whole_number("batch_size", batch_size), whole_number("chunk", chunk)
    sequences, targets = _arrays("sequences", sequences), _arrays("targets", targets)
    if len(sequences) != len(targets):
        raise ValueError(f"targets must have one array a sequence: got {len(targets)} for {len(sequences)} sequences.")
    if len(sequences) < batch_size:
        raise ValueError(f"sequences must be at least batch_size = {batch_size} in number, got {len(sequences)}.")
    _check_each(sequences, targets)
    rows = [range(b, len(sequences), batch_size) for b in range(batch_size)]
    longest = max(sum(len(sequences[i]) for i in row) for row in rows)
    steps = -(-longest // chunk) * chunk
    a_step = sum(array[0][0].nbytes for array in (sequences, targets)) + 1
    fits_memory(f"chunk={chunk} of batch_size={batch_size} streams", batch_size * steps * a_step)

    def streams(arrays):
        return np.stack([_wrap(np.concatenate([arrays[i] for i in row]), steps) for row in rows])

    x, y = streams(sequences), streams(targets)
    reset = streams([np.arange(len(s)) == 0 for s in sequences])

    def cut(array):  # [B, steps, ...] -> [steps / T, B, T, ...]
        split = array.reshape(batch_size, steps // chunk, chunk, *array.shape[2:])
        return np.moveaxis(split, 1, 0)

    return tf.data.Dataset.from_tensor_slices(({"x": cut(x), "reset": cut(reset)}, cut(y)))


def _check_each(sequences, targets):
    """Raises ValueError unless each sequence fits the first one, and its targets."""
    for i, (s, t) in enumerate(zip(sequences, targets, strict=True)):
        if s.ndim != 2 or not len(s):
            raise ValueError(f"sequences[{i}] must have shape [time, features] with time > 0, got {s.shape}.")
        if s.shape[1] != sequences[0].shape[1]:
            raise ValueError(
                f"sequences[{i}] must have {sequences[0].shape[1]} features as the first, got {s.shape[1]}."
            )
        if t.ndim < 1 or len(t) != len(s):
            raise ValueError(f"targets[{i}] must have one target a step, {len(s)}, got shape {t.shape}.")
        if t.shape[1:] != targets[0].shape[1:]:
            raise ValueError(f"targets[{i}] must have targets of shape {targets[0].shape[1:]}, got {t.shape[1:]}.")
        if t.dtype.kind not in "biufcSU":
            raise ValueError(f"targets[{i}] must be numbers or text, got {t.dtype}.")
        if t.dtype.kind not in "SU" and t.dtype != targets[0].dtype:
            raise ValueError(f"targets[{i}] must be of one dtype with the first, {targets[0].dtype}, got {t.dtype}.")
        if s.dtype != sequences[0].dtype or s.dtype.kind != "f":
            raise ValueError(f"sequences[{i}] must be floating, of one dtype with the first, got {s.dtype}.")


def _arrays(name, values):
    """A list of arrays from an array or a list of what can be made one."""
    if isinstance(values, (str, bytes, dict)) or not np.iterable(values):
        raise ValueError(f"{name} must be an array or a list of arrays, got {shown(values)}.")
    arrays = []
    for i, value in enumerate(values):
        try:
            arrays.append(np.asarray(value))
        except (TypeError, ValueError) as error:  # rows of different lengths; tensors without values
            raise ValueError(f"{name}[{i}] must be an array, got {shown(value)}: {error}") from error
    return arrays


def _wrap(array, length):
    return array[np.arange(length) % len(array)]
