"""POPGym's games of cards inside TensorFlow's graph (Morad et al., arXiv 2303.01859).

The same rules, observations, rewards and ends as popgym's, step for step for the same shuffles. Only the shuffles are
drawn otherwise: a deck is the order of random words (in_graph.py) drawn at the step that begins an episode.

As in popgym, decks of 52 cards are laid side by side. Card i has colour i mod 2, suit i mod 4 and rank (i mod 52) / 4.
Cards are dealt from the end of the shuffled deck. Observations are one-hot, choice beside choice.
"""

import math

import tensorflow as tf
from tf_agents.specs import tensor_spec

from keras_rtrl.environments.in_graph import InGraphTask

_KINDS = {"colors": 2, "suits": 4, "ranks": 13}


def _values(cards, kind):
    """Colours, suits or ranks, from 0, of cards."""
    return cards % 52 // 4 if kind == "ranks" else cards % _KINDS[kind]


class CardGame(InGraphTask):
    """`num_envs` streams of a game as a TFEnvironment that runs under jit_compile.

    The state of a stream is its decks, each int32 [cards] in their shuffled order, then the number of steps since the
    episode began, then what the game adds.

    Args:
      num_envs: number of streams B.
      seed: a non-negative int below 2**63, or None for a new one.
      num_decks: decks of 52 cards in each pile.
      choices: numbers of values of the choices that an observation is made of.
      actions: number of actions.
      piles: number of shuffled piles.
      state: tensors [B, ...], more state.
    """

    def __init__(self, num_envs, seed, num_decks, choices, actions, piles=1, state=()):
        self._cards, self._piles = 52 * num_decks, piles
        super().__init__(
            tensor_spec.BoundedTensorSpec((sum(choices),), tf.float32, 0.0, 1.0, name="observation"),
            tensor_spec.BoundedTensorSpec((), tf.int64, 0, actions - 1, name="action"),
            num_envs,
            seed,
            state=(
                *(tf.zeros([num_envs, self._cards], tf.int32) for _ in range(piles)),
                tf.zeros([num_envs], tf.int32),
                *state,
            ),
        )

    def _advance(self, restart, action, state, words):
        decks, (time, *more) = self._shuffled(restart, state[: self._piles], words), state[self._piles :]
        time = tf.where(restart, 0, time + 1)
        more, observation, reward, terminated, truncated = self._play(restart, action, decks, time, *more)
        playing = ~restart
        reward = tf.where(playing, tf.cast(reward, tf.float32), 0.0)
        return (*decks, time, *more), observation, reward, playing & terminated, playing & truncated

    def _play(self, restart, action, decks, time, *more):
        """One step of every stream.

        Args:
          restart: bool [B], the streams that begin an episode; their action and `more` mean nothing.
          action: int32 [B].
          decks: int32 [B, cards], the pile, or one for each.
          time: int32 [B], steps since the episode began.
          more: the rest of the state.

        Returns:
          (more, observation, reward [B], terminated bool [B], truncated bool [B]); the last three may be anything for
          streams that begin.
        """
        raise NotImplementedError

    def _shuffled(self, restart, decks, words):
        """The piles, new for streams that begin."""

        def new():
            piles = tf.split(words(self._piles * self._cards), self._piles, axis=1)
            orders = [tf.argsort(pile, axis=1) for pile in piles]
            return tuple(tf.where(restart[:, None], order, deck) for order, deck in zip(orders, decks, strict=True))

        return tf.cond(tf.reduce_any(restart), new, lambda: tuple(decks))  # sorting takes long

    def _dealt(self, deck, number):
        """The cards [B] that were dealt as number `number` [B], from 0; some card for a number that there is not."""
        return tf.gather(deck, (self._cards - 1 - number) % self._cards, axis=1, batch_dims=1)


class RepeatFirst(CardGame):
    """At every step the suit of the first card is to be named."""

    def __init__(self, num_envs, seed, num_decks):
        super().__init__(num_envs, seed, num_decks, [4], 4)

    def _play(self, restart, action, decks, time):
        (deck,) = decks
        right = tf.equal(action, _values(deck[:, -1], "suits"))
        reward = tf.where(right, 1.0, -1.0) / (self._cards - 1)
        observation = tf.one_hot(_values(self._dealt(deck, time), "suits"), 4)
        return (), observation, reward, tf.equal(time, self._cards - 1), tf.zeros_like(restart)


class RepeatPrevious(CardGame):
    """The suit of the card before the last k - 1 is to be named, as soon as there is one."""

    def __init__(self, num_envs, seed, num_decks, k):
        self._k = k
        super().__init__(num_envs, seed, num_decks, [4], 4)

    def _play(self, restart, action, decks, time):
        (deck,) = decks
        right = tf.equal(action, _values(self._dealt(deck, time - self._k), "suits"))
        reward = tf.where(time >= self._k, tf.where(right, 1.0, -1.0), 0.0) / (self._cards - self._k)
        observation = tf.one_hot(_values(self._dealt(deck, time), "suits"), 4)
        return (), observation, reward, tf.equal(time, self._cards - 1), tf.zeros_like(restart)


class CountRecall(CardGame):
    """A card is dealt, and how often another kind of card was dealt so far is asked for."""

    def __init__(self, num_envs, seed, num_decks, kind):
        self._kind, self._count = kind, _KINDS[kind]
        actions = 52 * num_decks // self._count + 1
        counts = tf.zeros([num_envs, self._count], tf.int32)
        super().__init__(num_envs, seed, num_decks, [self._count] * 2, actions, piles=2, state=(counts,))

    def _play(self, restart, action, decks, time, counts):
        values, queries = decks
        counts = tf.where(restart[:, None], 0, counts)
        asked = _values(self._dealt(queries, time - 1), self._kind)
        right = tf.equal(action, tf.gather(counts, asked, axis=1, batch_dims=1))
        reward = tf.where(right, 1.0, -1.0) / (self._cards - 1)
        value, query = (_values(self._dealt(deck, time), self._kind) for deck in (values, queries))
        counts += tf.one_hot(value, self._count, dtype=tf.int32)
        observation = tf.concat([tf.one_hot(value, self._count), tf.one_hot(query, self._count)], axis=1)
        return (counts,), observation, reward, tf.equal(time, self._cards - 1), tf.zeros_like(restart)


class Autoencode(CardGame):
    """All cards are shown, then their suits are to be named, the last one first."""

    def __init__(self, num_envs, seed, num_decks):
        super().__init__(num_envs, seed, num_decks, [2, 4], 4)

    def _play(self, restart, action, decks, time):
        (deck,) = decks
        n = self._cards
        asked = time >= n
        right = tf.equal(action, _values(self._dealt(deck, 2 * n - 1 - time), "suits"))
        reward = tf.where(asked, tf.where(right, 1.0, -1.0), 0.0) / n
        mode = tf.where(time >= n - 1, 0, 1)
        suit = tf.where(asked, 0, _values(self._dealt(deck, time), "suits"))
        observation = tf.concat([tf.one_hot(mode, 2), tf.one_hot(suit, 4)], axis=1)
        return (), observation, reward, tf.equal(time, 2 * n - 1), tf.zeros_like(restart)


class HigherLower(CardGame):
    """Whether the next card's rank is higher (action 0) or lower (1) is to be guessed."""

    def __init__(self, num_envs, seed, num_decks):
        super().__init__(num_envs, seed, num_decks, [13], 2)

    def _play(self, restart, action, decks, time):
        (deck,) = decks
        before, now = (_values(self._dealt(deck, t), "ranks") for t in (time - 1, time))
        right = tf.equal(now > before, tf.equal(action, 0))
        reward = tf.where(tf.equal(now, before), 0.0, tf.where(right, 1.0, -1.0)) / self._cards
        return (), tf.one_hot(now, 13), reward, tf.equal(time, self._cards - 1), tf.zeros_like(restart)


class Concentration(CardGame):
    """Cards lie face down; two are turned at a time, and stay if they match."""

    def __init__(self, num_envs, seed, num_decks, kind):
        self._kind, n = kind, 52 * num_decks
        self._length = math.ceil(2 * n - n / (2 * n - 1))
        # more state: whether each card lies face up for good, and the one that was turned first, -1 for none
        state = (tf.zeros([num_envs, n], tf.bool), tf.zeros([num_envs], tf.int32))
        super().__init__(num_envs, seed, num_decks, [_KINDS[kind] + 1] * n, n, state=state)

    def _play(self, restart, action, decks, time, up, first):
        (deck,) = decks
        n, kinds = self._cards, _values(deck, self._kind)
        up, first = up & ~restart[:, None], tf.where(restart, -1, first)
        turned = tf.one_hot(action, n, True, False, dtype=tf.bool) & ~restart[:, None]
        held = tf.one_hot(first, n, True, False, dtype=tf.bool)
        seen = tf.where(up | turned | held, kinds, _KINDS[self._kind])
        observation = tf.reshape(tf.one_hot(seen, _KINDS[self._kind] + 1), [-1, n * (_KINDS[self._kind] + 1)])

        second = first >= 0
        was_up = tf.reduce_any(up & turned, axis=1)
        same_kind = tf.equal(
            tf.gather(kinds, action, axis=1, batch_dims=1),
            tf.gather(kinds, tf.maximum(first, 0), axis=1, batch_dims=1),
        )
        match = second & ~was_up & same_kind & tf.not_equal(action, first)
        failed = -1.0 / self._length
        reward = tf.where(second, 2 * failed, tf.where(was_up, failed, 0.0))
        reward = tf.where(match, 1.0 / (n // 2), reward)
        first = tf.where(second | was_up | restart, -1, action)
        up |= match[:, None] & (turned | held)
        terminated = match & tf.reduce_all(up, axis=1)
        return (up, first), observation, reward, terminated, time >= self._length


# name without "popgym-" and "-v0": (class, its arguments)
GAMES = {
    "RepeatFirstEasy": (RepeatFirst, (1,)),
    "RepeatFirstMedium": (RepeatFirst, (8,)),
    "RepeatFirstHard": (RepeatFirst, (16,)),
    "RepeatPreviousEasy": (RepeatPrevious, (1, 4)),
    "RepeatPreviousMedium": (RepeatPrevious, (2, 32)),
    "RepeatPreviousHard": (RepeatPrevious, (3, 64)),
    "CountRecallEasy": (CountRecall, (1, "colors")),
    "CountRecallMedium": (CountRecall, (2, "suits")),
    "CountRecallHard": (CountRecall, (4, "ranks")),
    "ConcentrationEasy": (Concentration, (1, "colors")),
    "ConcentrationMedium": (Concentration, (2, "colors")),
    "ConcentrationHard": (Concentration, (1, "ranks")),
    "AutoencodeEasy": (Autoencode, (1,)),
    "AutoencodeMedium": (Autoencode, (2,)),
    "AutoencodeHard": (Autoencode, (3,)),
    "HigherLowerEasy": (HigherLower, (1,)),
    "HigherLowerMedium": (HigherLower, (2,)),
    "HigherLowerHard": (HigherLower, (3,)),
}
