"""stream_chunks."""

import numpy as np
import pytest

from keras_rtrl.data import stream_chunks


def sequences(*lengths):
    """Sequences whose entries name (sequence, step)."""
    return [np.stack([np.full(n, i), np.arange(n)], 1).astype("float32") for i, n in enumerate(lengths)]


def test_rows_continue_rows():
    x = sequences(5, 4, 3, 2)
    chunks = list(stream_chunks(x, [s[:, :1] for s in x], batch_size=2, chunk=3).as_numpy_iterator())
    rows = np.concatenate([inputs["x"] for inputs, _ in chunks], axis=1)
    np.testing.assert_array_equal(rows[0], np.concatenate([x[0], x[2], x[0][:1]]))  # 5 + 3 steps, filled up to 9
    np.testing.assert_array_equal(rows[1], np.concatenate([x[1], x[3], x[1][:3]]))
    reset = np.concatenate([inputs["reset"] for inputs, _ in chunks], axis=1)
    np.testing.assert_array_equal(np.flatnonzero(reset[0]), [0, 5, 8])
    np.testing.assert_array_equal(np.flatnonzero(reset[1]), [0, 4, 6])
    targets = np.concatenate([y for _, y in chunks], axis=1)
    np.testing.assert_array_equal(targets, rows[..., :1])


def test_static_shapes_and_arrays():
    data = stream_chunks(np.zeros((4, 10, 3)), np.zeros((4, 10)), batch_size=4, chunk=5)
    inputs, targets = data.element_spec
    assert inputs["x"].shape == (4, 5, 3)
    assert inputs["reset"].shape == targets.shape == (4, 5)
    assert len(data) == 2


X = np.zeros((4, 10, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, X[:, :9], 2, 5), r"targets\[0\] must have one target a step, 10"),
        ((X, X, 5, 5), "at least batch_size = 5 in number, got 4"),
        ((X[..., 0], X, 2, 5), r"sequences\[0\] must have shape"),
        ((X.astype(int), X, 2, 5), r"sequences\[0\] must be floating"),
        ((X, [*X[:3], X[3, :, :1]], 2, 5), r"targets\[3\] must have targets of shape"),
        (([X[0], X[0, :, :2]], X[:2], 2, 5), r"sequences\[1\] must have 3 features"),
        ((X, X, 2, 10**12), r"chunk=1000000000000 of batch_size=2 streams .* [\d,]+\.\d GiB"),
        (("words", X, 2, 5), "sequences must be an array or a list of arrays, got 'words'"),
        (({0: X, 1: X}, X, 2, 5), r"sequences must be an array or a list of arrays, got {"),
        ((X, [[[1.0], [2.0, 3.0]]] * 4, 2, 5), r"targets\[0\] must be an array, got \[\[1.0\], \[2.0, 3.0\]\]"),
        ((X, [[None] * 10] * 4, 2, 5), r"targets\[0\] must be numbers or text, got object"),
        ((X, [*X[:3], X[3].astype("float32")], 2, 5), r"targets\[3\] must be of one dtype with the first, float64"),
    ],
)
def test_sequences_that_do_not_fit(arguments, message):
    sequences, targets, batch_size, chunk = arguments
    with pytest.raises(ValueError, match=message):
        stream_chunks(sequences, targets, batch_size=batch_size, chunk=chunk)
