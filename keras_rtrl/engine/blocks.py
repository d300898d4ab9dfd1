"""Algebra of the engine: blocks of tensors, scans over steps, and products of rows."""

import tensorflow as tf

# Algebra of m x m blocks of tensors [..., N]; m is 1 or 2 and None stands for zero.


def times(factor, value):
    """factor * value; 0 for a factor of 0 and any value.

    With it what a reset or a cotangent of 0 has cut off contributes nothing, also if it is NaN or infinite.
    """
    if tf.is_tensor(factor) and tf.is_tensor(value):
        return tf.math.multiply_no_nan(value, factor)
    return factor * value


def _is_zero(entry):
    return entry is None or (isinstance(entry, (int, float)) and entry == 0)


def dot(factors, values):
    """Sum of `times` over two equally long sequences without the zeros, None or numbers; None if all are zero."""
    terms = [times(x, y) for x, y in zip(factors, values, strict=True) if not (_is_zero(x) or _is_zero(y))]
    return sum(terms[1:], terms[0]) if terms else None


def matvec(matrix, vector):
    """matrix @ vector, the matrix's entries being the factors."""
    return tuple(dot(row, vector) for row in matrix)


def matvec_transposed(matrix, vector):
    """matrix' @ vector, the vector's entries being the factors."""
    return tuple(dot(vector, column) for column in zip(*matrix, strict=True))


def matmul(left, right):
    """left @ right, the entries of `left` being the factors."""
    columns = [matvec(left, column) for column in zip(*right, strict=True)]
    return tuple(zip(*columns, strict=True))


def kept(k, block):
    """`block` (nested tuples) where k is 1 and zeros where k is 0, also for NaN and inf; k None: all of it."""
    return block if k is None else tf.nest.map_structure(lambda entry: times(k, entry), block)


def dense(block, like):
    """`block` (nested tuples) with every entry broadcast to the shape of `like`, zeros for None."""
    if isinstance(block, tuple):
        return tuple(dense(entry, like) for entry in block)
    return tf.zeros_like(like) if block is None else tf.broadcast_to(block, tf.shape(like))


def scan(step, initial, xs, reverse=False):
    """Fold `step(carry, x_t) -> (carry, y_t)` over the leading dimension of the tensors in `xs` (None passes through).

    `y_t` has the structure, shapes and dtypes of the carry. Returns the last carry and the y_t stacked in order of t.
    """
    flat = tf.nest.flatten(xs)
    given = [x for x in flat if x is not None]

    def at(values):
        values = iter(values)
        return tf.nest.pack_sequence_as(xs, [None if x is None else next(values) for x in flat])

    length = given[0].shape[0]
    if length == 1:  # acting and streaming: no loop
        carry, y = step(initial, at([x[0] for x in given]))
        return carry, tf.nest.map_structure(lambda v: v[None], y)
    steps = tf.shape(given[0])[0] if length is None else length
    arrays = [tf.TensorArray(x.dtype, steps, element_shape=x.shape[1:]).unstack(x) for x in given]
    outputs = tuple(tf.TensorArray(c.dtype, steps, element_shape=c.shape) for c in tf.nest.flatten(initial))

    def body(i, carry, outputs):
        t = steps - 1 - i if reverse else i
        new, y = step(carry, at([array.read(t) for array in arrays]))
        new = tf.nest.map_structure(lambda n, c: tf.ensure_shape(n, c.shape), new, carry)
        return i + 1, new, tuple(o.write(t, v) for o, v in zip(outputs, tf.nest.flatten(y), strict=True))

    _, carry, outputs = tf.while_loop(lambda i, *_: i < steps, body, (0, initial, outputs))
    stacked = [o.stack() for o in outputs]
    for y in stacked:  # the loop forgets how many steps there are
        y.set_shape((length, *y.shape[1:]))
    return carry, tf.nest.pack_sequence_as(initial, stacked)


def product(x: tf.Tensor, kernel: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """x [..., D] times a kernel [D, W] (or its transpose), as one GEMM.

    `tf.matmul` would make its gradient a kernel for each leading position, and sum these.
    """
    flat = tf.matmul(rows(x), kernel, transpose_b=transpose_b)
    leading = [tf.shape(x)[i] if n is None else n for i, n in enumerate(x.shape[:-1])]
    return tf.reshape(flat, (*leading, flat.shape[-1]))


def rows(x: tf.Tensor) -> tf.Tensor:
    """[..., W] as [rows, W]."""
    # A reshape cannot tell how many rows of no numbers there are.
    count = -1 if x.shape[-1] else tf.reduce_prod(tf.shape(x)[:-1])
    return tf.reshape(x, (count, x.shape[-1]))
