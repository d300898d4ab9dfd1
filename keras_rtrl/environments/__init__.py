"""Environments as batched TF-Agents environments: `make` builds one by name, `with_history` adds what a memory needs.

Simulators come as a PyEnvironment, in-graph tasks as a TFEnvironment, both batched, also for one environment. They end
episodes as TF-Agents expects: a termination gives LAST with discount 0, a truncation LAST with discount 1, and the step
after LAST gives FIRST and ignores the action, each stream for itself. One family of environments is one file here.
"""

from keras_rtrl._tf_agents import require_legacy_keras

require_legacy_keras()

import gymnasium  # noqa: E402

from keras_rtrl.environments import cartpole, mujoco  # noqa: E402
from keras_rtrl.environments.history import with_history  # noqa: E402
from keras_rtrl.environments.registry import make  # noqa: E402

__all__ = ["make", "with_history"]

_IN_GRAPH = {
    "TMaze-v0": "tmaze:TMazeEnv",
    "MemoryChain-v0": "memory_chain:MemoryChainEnv",
    "TraceConditioning-v0": "conditioning:TraceConditioningEnv",
    "TracePatterning-v0": "conditioning:TracePatterningEnv",
}
for _name, _entry_point in _IN_GRAPH.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=f"keras_rtrl.environments.{_entry_point}")
cartpole.register()
mujoco.register()
