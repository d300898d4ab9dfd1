"""Past one process: actors on Ray that make the rollouts, and the learner's side of them.

Traces never travel: they stay with the learner, one set a stream, as on one machine.
"""

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

from keras_rtrl.distributed.fleet import ActorFailure, Fleet, play_games  # noqa: E402
from keras_rtrl.distributed.streams import StreamBank  # noqa: E402

__all__ = ["ActorFailure", "Fleet", "StreamBank", "play_games"]
