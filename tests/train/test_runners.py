import numpy as np

from keras_rtrl.train.runners import finished_returns


def test_returns_of_episodes_that_span_calls():
    running = [0.0, 10.0]
    rewards = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    ends = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], bool)
    # In the order of time: stream 1 ends first.
    assert finished_returns(rewards, ends, running) == [11.0, 3.0, 7.0]
    assert running == [0.0, 3.0]
    assert finished_returns(np.array([[5.0], [2.0]]), np.array([[0], [1]], bool), running) == [5.0]
    assert running == [5.0, 0.0]
