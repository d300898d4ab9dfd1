"""Online prediction by TD(lambda) on RTRL gradients."""

import collections

from keras_rtrl.agents.obgd import ObGD
from keras_rtrl.agents.streaming import StreamingAgent
from keras_rtrl.agents.td_lambda.config import TDLambdaConfig

TDLambdaExtra = collections.namedtuple("TDLambdaExtra", ["prediction", "td_error"])


class TDLambdaAgent(StreamingAgent):
    """Predicts the discounted return of one stream, with an update at every step:

        delta = r + gamma v(s') - v(s),   z = k gamma lambda z + grad v(s),   parameters += learning rate * delta z

    (the optimiser is given the gradient -delta z). The values are the network's; its policy acts and is not trained.
    `extra`: the prediction v(s) before the update and the TD error delta; the loss is delta^2 / 2.
    """

    extra_class = TDLambdaExtra
    config_class = TDLambdaConfig
    objectives = ("critic",)
    predicts = True

    def _objectives(self, forward, action, td_error):
        del action, td_error
        return [forward.value]

    def _extra(self, forward, td_error):
        return TDLambdaExtra(forward.value, td_error)

    def _direction(self, td_error, traces):
        (critic,) = traces
        factor = td_error
        if isinstance(self._optimizer, ObGD):
            factor *= self._optimizer.bound(td_error, critic, self._optimizer.critic_kappa)
        return [-factor * part for part in critic]
