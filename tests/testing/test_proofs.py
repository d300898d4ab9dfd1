"""The proofs catch what they are there to catch."""

import pytest
import tensorflow as tf

from keras_rtrl.cells import ELSTMCell
from keras_rtrl.engine import chunked, streaming
from keras_rtrl.testing import proofs


def test_an_engine_that_forgets_resets_is_caught(monkeypatch):
    run = chunked.run
    monkeypatch.setattr(chunked, "run", lambda c, k, r, x, s, reset, *rest, **kw: run(c, k, r, x, s, None, *rest, **kw))
    with pytest.raises(AssertionError, match="states"):
        proofs.check_chunk(proofs.Case(ELSTMCell(3)))
    with pytest.raises(AssertionError, match="missing reset: state after a reset, in the chunk"):
        proofs.check_resets(proofs.Case(ELSTMCell(3)))


def test_resets_that_spare_the_traces_are_caught(monkeypatch):
    run = chunked.run

    def spare(*args, **kwargs):
        states, carry = run(*args, **kwargs)
        return states, carry._replace(r=carry.r + 1e-6)

    monkeypatch.setattr(chunked, "run", lambda *a, **kw: (run if a[5] is None else spare)(*a, **kw))
    with pytest.raises(AssertionError, match="missing reset: r after a reset, in the chunk"):
        proofs.check_resets(proofs.Case(ELSTMCell(3)))


def test_streaming_that_forgets_resets_is_caught(monkeypatch):
    forward = streaming.forward
    monkeypatch.setattr(streaming, "forward", lambda cell, params, carry, x, reset: forward(cell, params, carry, x))
    with pytest.raises(AssertionError, match="missing reset: state after a reset, in the streaming step"):
        proofs.check_resets(proofs.Case(ELSTMCell(3)))


def test_traces_that_leak_between_streams_are_caught(monkeypatch):
    run = chunked.run

    def leak(*args, **kwargs):
        states, carry = run(*args, **kwargs)
        return states, carry._replace(S=carry.S + 1e-6 * tf.reduce_mean(carry.S, 0, keepdims=True))

    monkeypatch.setattr(chunked, "run", leak)
    with pytest.raises(AssertionError, match="traces leak between streams: S of stream 0"):
        proofs.check_streams(proofs.Case(ELSTMCell(3)))


def test_a_truncated_gradient_is_caught(monkeypatch):
    run = chunked.run
    monkeypatch.setattr(chunked, "run", lambda *args, **kw: run(*args[:7], "tbptt", **kw))
    with pytest.raises(AssertionError, match="RTRL gradient of kernel against BPTT"):
        proofs.check_history(proofs.Case(ELSTMCell(3)))
