"""Classical conditioning: binary stimuli without end, and the question how much of the US is soon to come.

The trace conditioning and trace patterning problems of Rafiee et al. (arXiv 2011.04590), to be predicted online. Time
goes in trials. Conditioned stimuli (CS) come on at a trial's start and stay for 4 steps. The unconditioned stimulus
(US) comes on ISI steps after the start, ISI uniform on 7..13, and stays for 2 steps; in trace patterning only if the
CSs form one of the activating patterns. ISI + ITI steps after a trial's start the next one starts, ITI uniform on
80..120. The first trial starts at the first time step.

The agent predicts the return G_t = sum over k >= 0 of 0.9^k US_{t+1+k} from the observations up to t. The reward of a
time step is the US in its observation. The one action does nothing, no episode ends, and every discount is 1.
"""

import itertools

import gymnasium
import numpy as np
import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl.environments.in_graph import InGraphEnv, InGraphTask, bit, new_seed
from keras_rtrl.environments.registry import unknown_name

_GAMMA = 0.9
_ISI = range(7, 14)
_ITI = range(80, 121)
_CS_STEPS = 4
_US_STEPS = 2
_DISTRACTORS = 10  # of trace conditioning; also on for 4 steps
# A word's lowest 31 bits are below these with probability 1 / 10, 1 / 20, ... 1 / 100.
_DISTRACTOR_WORDS = [round(2**31 / (10 * k)) for k in range(1, _DISTRACTORS + 1)]
_CSS = 6  # of trace patterning
_COINCIDING = 5
_PATTERNS = 10
# Of all 64 sets of CSs 10 activate, so that a trial activates with probability p + (1 - p) 10 / 64 = 1 / 2.
_PATTERN_WORD = round(2**31 * (0.5 * 2**_CSS - _PATTERNS) / (2**_CSS - _PATTERNS))
_31_BITS = 2**31 - 1


def in_graph(name, engine):
    del name, engine
    return True


def make(name, num_envs, seed):
    """The in-graph conditioning task."""
    tasks = {"TraceConditioning-v0": TraceConditioning, "TracePatterning-v0": TracePatterning}
    if name not in tasks:
        raise unknown_name(name, list(tasks))
    return tasks[name](num_envs, seed=seed)


class _Conditioning(InGraphTask):
    """Trials of stimuli; subclasses say with which stimuli a trial starts (`_stimuli`) and what else is to be seen.

    Args:
      num_envs, seed: as of InGraphTask.
      stimuli: number of stimuli that start with a trial.
      activating: bool [2^stimuli], the sets of them that the US follows; bit i of the index is stimulus i.
      chance: float [2^stimuli], their probabilities.
      words: random words a step.
      state: more of it, and `background` the number of observations that come from there.
    """

    def __init__(self, num_envs, seed, stimuli, activating, chance, words, state=(), background=0):
        zeros = tf.zeros([num_envs], tf.int32)
        super().__init__(
            tensor_spec.BoundedTensorSpec((1 + stimuli + background,), tf.float32, 0.0, 1.0, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, 0, name="action"),
            num_envs,
            seed,
            state=(zeros, zeros, zeros, zeros, zeros, *state),
        )
        self._num_stimuli, self._words = stimuli, words
        self._activating = activating
        self._values, self._origins = _ideal_values(activating, chance)
        self.mean_return = float(_US_STEPS * chance[activating].sum() / (np.mean(_ISI) + np.mean(_ITI)) / (1 - _GAMMA))

    def ideal_prediction(self) -> tf.Tensor:
        """E[G_t | observations up to the present time step], float32 [B]; exact, once the streams have begun."""
        return tf.gather(tf.constant(self._values, tf.float32), self._state[4])

    def _advance(self, restart, action, state, words):
        del action
        words = words(self._words)
        age, isi, iti, stimuli, known, *more = state
        age += 1
        start = restart | tf.equal(age, isi + iti)
        age = tf.where(start, 0, age)
        isi = tf.where(start, _uniform(words[:, 0], _ISI), isi)
        iti = tf.where(start, _uniform(words[:, 1], _ITI), iti)
        stimuli = tf.where(start, self._stimuli(words[:, 2:]), stimuli)
        activated = tf.gather(tf.constant(self._activating), stimuli)
        us = tf.cast(activated & (age >= isi) & (age < isi + _US_STEPS), tf.float32)
        shown = tf.where((age < _CS_STEPS)[:, tf.newaxis], bit(stimuli[:, tf.newaxis], tf.range(self._num_stimuli)), 0)

        activating, other, us_onset = self._origins
        known = tf.minimum(known + 1, len(self._values) - 1)
        seen = restart | (start & (stimuli > 0))
        known = tf.where(seen, tf.where(activated, activating, other), known)
        known = tf.where(activated & tf.equal(age, isi), us_onset, known)

        more, background = self._background(restart, more, words[:, 2:])
        observation = tf.concat([us[:, tf.newaxis], tf.cast(shown, tf.float32), *background], axis=1)
        return (age, isi, iti, stimuli, known, *more), observation, us, restart & False, restart & False

    def _background(self, restart, state, words):
        """(state, list of float32 [B, ...]) of stimuli that do not depend on trials."""
        del restart, words
        return state, []


class TraceConditioning(_Conditioning):
    """`num_envs` streams of trace conditioning as a TFEnvironment that runs under jit_compile.

    Observation, float32 [12]: US, CS, 10 distractors. Distractor k comes on with probability 1 / (10 k) a step, stays
    for 4 steps and then is off for at least one. Predicting `mean_return` has a mean squared error of 0.149,
    `ideal_prediction` one of 0.0125.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
    """

    def __init__(self, num_envs: int, *, seed: int | None = None):
        activating, chance = np.array([False, True]), np.array([0.0, 1.0])
        on = (tf.zeros([num_envs, _DISTRACTORS], tf.int32),)
        super().__init__(num_envs, seed, 1, activating, chance, 2 + _DISTRACTORS, on, _DISTRACTORS)

    def _stimuli(self, words):
        return tf.ones_like(words[:, 0])

    def _background(self, restart, state, words):
        left = tf.where(restart[:, tf.newaxis], 0, state[0])  # steps to stay on
        drawn = tf.bitwise.bitwise_and(words, _31_BITS) < tf.constant(_DISTRACTOR_WORDS)
        left = tf.where(left > 0, left - 1, tf.where(drawn, _CS_STEPS, 0))
        return (left,), [tf.cast(left > 0, tf.float32)]


class TracePatterning(_Conditioning):
    """`num_envs` streams of trace patterning as a TFEnvironment that runs under jit_compile.

    Observation, float32 [12]: US, 6 CSs, 5 distractors, which come with the CSs, each in every second trial. 10 of the
    20 sets of three CSs activate the US, drawn from `seed` and the same in all streams. A trial shows one of those,
    or any of all 64 sets, so that every second trial activates. The sizes are those of Javed et al. (arXiv 2302.05326),
    the times those of the benchmark. The mean squared error of `mean_return` is 0.083, that of `ideal_prediction`
    0.0100.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
    """

    def __init__(self, num_envs: int, *, seed: int | None = None):
        seed = new_seed() if seed is None else seed
        self._patterns = _draw_patterns(seed)
        cs_activating = np.isin(np.arange(2**_CSS), self._patterns)
        cs_chance = cs_activating * 0.5 / _PATTERNS + ~cs_activating * 0.5 / (2**_CSS - _PATTERNS)
        activating = np.tile(cs_activating, 2**_COINCIDING)
        chance = np.tile(cs_chance, 2**_COINCIDING) / 2**_COINCIDING
        super().__init__(num_envs, seed, _CSS + _COINCIDING, activating, chance, words=5)

    def _stimuli(self, words):
        free = tf.bitwise.bitwise_and(words[:, 2], 2 ** (_CSS + _COINCIDING) - 1)
        pattern = tf.gather(tf.constant(self._patterns, tf.int32), _uniform(words[:, 1], range(_PATTERNS)))
        chosen = tf.bitwise.bitwise_and(words[:, 0], _31_BITS) < _PATTERN_WORD
        distractors = tf.bitwise.bitwise_and(free, (2**_COINCIDING - 1) << _CSS)
        return tf.where(chosen, tf.bitwise.bitwise_or(distractors, pattern), free)


class _ConditioningEnv(InGraphEnv):
    def __init__(self, stream, stimuli, words, background=0):
        super().__init__(stream, words)
        self._num_stimuli = stimuli
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1 + stimuli + background,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(1)

    def _begin(self, words):
        self._start_trial(words)
        return np.array([0.0, *self._shown(), *self._background(words[2:])], np.float32)

    def _advance(self, action, words):
        self._age += 1
        if self._age == self._isi + self._iti:
            self._start_trial(words)
        us = 1.0 if self._activated and 0 <= self._age - self._isi < _US_STEPS else 0.0
        return np.array([us, *self._shown(), *self._background(words[2:])], np.float32), us, False

    def _start_trial(self, words):
        self._age = 0
        self._isi, self._iti = (x[(word & _31_BITS) % len(x)] for x, word in zip((_ISI, _ITI), words, strict=False))
        self._stimuli, self._activated = self._drawn(words[2:])

    def _shown(self):
        return [float(self._stimuli >> i & 1 and self._age < _CS_STEPS) for i in range(self._num_stimuli)]

    def _background(self, words):
        return []


class TraceConditioningEnv(_ConditioningEnv):
    """One stream of trace conditioning as a gymnasium environment, equal to stream `stream` of `TraceConditioning`.

    Args:
      stream: which stream of the vector this is.
    """

    def __init__(self, stream=0):
        super().__init__(stream, 1, 2 + _DISTRACTORS, _DISTRACTORS)

    def _begin(self, words):
        self._left = [0] * _DISTRACTORS
        return super()._begin(words)

    def _drawn(self, words):
        return 1, True

    def _background(self, words):
        for k, word in enumerate(words):
            drawn = (word & _31_BITS) < _DISTRACTOR_WORDS[k]
            self._left[k] = self._left[k] - 1 if self._left[k] else _CS_STEPS if drawn else 0
        return [float(left > 0) for left in self._left]


class TracePatterningEnv(_ConditioningEnv):
    """One stream of trace patterning as a gymnasium environment, equal to stream `stream` of `TracePatterning`.

    Args:
      stream: which stream of the vector this is.
    """

    def __init__(self, stream=0):
        super().__init__(stream, _CSS + _COINCIDING, 5)

    def _begin(self, words):
        if self._clock == 0:
            self._patterns = _draw_patterns(self._seed)
        return super()._begin(words)

    def _drawn(self, words):
        stimuli = words[2] & 2 ** (_CSS + _COINCIDING) - 1
        if (words[0] & _31_BITS) < _PATTERN_WORD:
            stimuli = stimuli >> _CSS << _CSS | int(self._patterns[(words[1] & _31_BITS) % _PATTERNS])
        return stimuli, stimuli % 2**_CSS in self._patterns


def _uniform(words, values):
    """One of the consecutive `values` for each word, equally likely up to 1 part in 10^7."""
    return values.start + tf.math.floormod(tf.bitwise.bitwise_and(words, _31_BITS), len(values))


def _draw_patterns(seed):
    """The activating sets of CSs, as ints whose bit i is CS i."""
    halves = [sum(1 << i for i in chosen) for chosen in itertools.combinations(range(_CSS), _CSS // 2)]
    return np.random.default_rng(seed).choice(halves, _PATTERNS, replace=False)


def _ideal_values(activating, chance):
    """E[G_t | observations up to t] by the time since the last telling event.

    The telling events are the start of an activating trial, that of another trial, and a US onset. Other trials without
    any stimulus tell nothing: they only make the wait for the next event longer.

    Returns:
      (values, (activating, other, us_onset)): a table with the places of the three events in it; a step later the
      place is one further. What lies behind the table's end has a probability below 1e-12.
    """
    q_hidden = chance[0] if not activating[0] else 0.0
    q_activating = chance[activating].sum() / (1 - q_hidden)
    isi, iti = (np.bincount(x, minlength=len(x)) / len(x) for x in (_ISI, _ITI))
    period = np.convolve(isi, iti)  # pmf of the steps from a trial's start to the next; index 0 means 0 steps
    wait, after_us, after_other = np.ones(1), iti, period
    for _ in range(4 if q_hidden else 0):  # each convolution is one more hidden trial
        wait = np.convolve(wait, q_hidden * period)
        wait[0] += 1.0
    after_us, after_other = (np.convolve(x, wait) / np.convolve(x, wait).sum() for x in (iti, period))

    def discounted(pmf):
        """E[gamma^(steps to go)] for each number of steps gone, until nothing is left."""
        steps = np.arange(len(pmf))
        gone = steps[:-1, np.newaxis]
        left = np.where(steps > gone, pmf, 0.0)
        return (left * _GAMMA ** np.maximum(steps - gone, 0)).sum(1) / left.sum(1)

    # w: the mean value at the start of a telling trial. At a US onset 1 + (discounted wait) w is to come.
    to_us, from_us, from_other = discounted(isi), discounted(after_us), discounted(after_other)
    # w = q (to_us[0] / gamma + to_us[0] (1 + from_us[0] w)) + (1 - q) from_other[0] w
    w = q_activating * to_us[0] * (1 / _GAMMA + 1)
    w /= 1 - q_activating * to_us[0] * from_us[0] - (1 - q_activating) * from_other[0]
    us_onset = from_us * w
    us_onset[0] += 1.0
    parts = [to_us * (1 / _GAMMA + us_onset[0]), from_other * w, us_onset]
    return np.concatenate(parts), (0, len(parts[0]), len(parts[0]) + len(parts[1]))
