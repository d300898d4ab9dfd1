"""The exported learner of an agent that learns at every step, loaded by TensorFlow alone.

```python
import tensorflow as tf
agent = tf.saved_model.load("agent").signatures
out = agent["step"](observation=..., reward=..., discount=..., step_type=...)
```
"""

import tensorflow as tf
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory

from keras_rtrl._errors import UsageError
from keras_rtrl.agents.experience import is_finite, only_if
from keras_rtrl.agents.streaming import StreamingAgent
from keras_rtrl.export import stock_ops
from keras_rtrl.export.controls import Controlled, by_name, must_be_finite
from keras_rtrl.export.module import concrete
from keras_rtrl.train import building, checkpoints, config, setup
from keras_rtrl.train.export import flat
from keras_rtrl.train.run_folder import writing

COUNTERS = ("steps", "updates", "skipped", "held")


class AgentLearner(Controlled):
    """A `StreamingAgent` that acts and learns on, from one stream, in any process with TensorFlow.

    Functions of flat tensors by name; `save` writes them as signatures of the same names:

      step(observation [1, ...], reward float32 [1], discount float32 [1], step_type int32 [1]) -> action [1, ...],
        value float32 [1] (of an agent that predicts: prediction), td_error float32 [], applied bool [].
      reset(): the stream breaks off; the next step learns nothing from the one before.
      get, set, freeze, thaw, snapshot, rollback, info: as of `keras_rtrl.export.Learner`.

    A call of `step` is one time step of TF-Agents: it learns from the transition from the last call to this one, and
    then acts. `reward` and `discount` came with the observation; the discount is 0 if the episode terminated there,
    else 1. `step_type` is 0 at the first step of an episode, whose reward and discount mean nothing, 2 at its last,
    whose action is not to be played, else 1. `value` is that of this observation by the weights just learnt; `td_error`
    is of the transition that was learnt from. Actions are drawn from the agent's policy and its generator, which is
    part of the state; continuous ones may exceed their bounds: clip them. An observation with parts is given as
    observation_rgb, observation_instruction.

    Inputs that are not finite, or out of range, raise an error before anything is changed. An update that is not finite
    is not applied and counted in `skipped`. If the network's outputs or state are not finite, the action before is
    given again, the state stays (zero if an episode begins), and `held` counts it. Frozen, the agent acts by the same
    weights and running statistics; its carries move. Snapshots keep these, and the optimiser.
    """

    functions = ("step", "reset")

    def __init__(self, agent: StreamingAgent):
        """Traces; shares the variables of `agent`, whose carry becomes zero."""
        agent.reset_carry()
        scaler, normalizer = agent.reward_scaler, agent.network.normalizer
        observed = [] if normalizer is None else normalizer.variables
        rewards, returns = ([], []) if scaler is None else (scaler.statistics.variables, scaler.by_stream.whole)
        statistics = {variable.ref() for variable in observed}
        weights = [variable for variable in agent.network.variables if variable.ref() not in statistics]
        frame, policy_state, begun = _stream(agent)
        super().__init__(
            COUNTERS,
            kept={
                **by_name("weight", weights),
                **by_name("optimizer", agent.optimizer.variables),
                **by_name("observations", observed),
                **by_name("rewards", rewards),
            },
            carried={
                **by_name("learner", [*tf.nest.flatten((agent.carry, agent.eligibility)), *returns]),
                **by_name("policy", policy_state),
                **{f"frame_{name}": variable for name, variable in flat(frame).items()},
                "begun": begun,
                "generator": agent.collect_policy.generator.state,
            },
        )
        self._frame, self._policy_state, self._begun = frame, policy_state, begun
        specs = _inputs(agent.time_step_spec)
        with stock_ops(agent.network.submodules):
            self.step = concrete(lambda **given: self._stepped(agent, specs, given), specs)
        self.reset = concrete(lambda: self._broken_off(agent), {})
        self._control(self.step, self.reset)

    # What is traced.

    def _stepped(self, agent, specs, given):
        given = {name: tf.ensure_shape(value, specs[name].shape, f"{name}_checked") for name, value in given.items()}
        with tf.control_dependencies([*given.values(), *_checks(given)]):
            time_step = self._time_step(agent, {name: tf.identity(value) for name, value in given.items()})
            nothing = {"td_error": tf.zeros([]), "applied": tf.constant(False)}
            begun = self._begun.read_value()
            learned = tf.cond(begun, lambda: self._learned(agent, time_step), lambda: nothing)
            acted = self._acted(agent, time_step)
            self._counters["steps"].assign_add(1)
            return {**acted, **learned}

    def _time_step(self, agent, given):
        """The TimeStep, its observation with the history."""
        reward, discount, step_type = (given.pop(name) for name in ("reward", "discount", "step_type"))
        observation = {
            "observation": tf.nest.pack_sequence_as(
                agent.time_step_spec.observation["observation"], list(given.values())
            ),
            "last_reward": reward,
            "last_action": self._frame["action"].read_value(),  # the network takes it for none if an episode begins
        }
        return ts.TimeStep(step_type, reward, discount, observation)

    def _learned(self, agent, now):
        """Learns the transition from the frame before."""
        frame = tf.nest.map_structure(tf.convert_to_tensor, self._frame)

        def both(before, after):
            return tf.nest.map_structure(lambda *parts: tf.stack(parts, axis=1), before, after)

        experience = trajectory.Trajectory(
            step_type=both(frame["step_type"], now.step_type),
            observation=both(frame["observation"], now.observation),
            action=both(frame["action"], tf.zeros_like(frame["action"])),
            policy_info=(),
            next_step_type=both(now.step_type, now.step_type),
            reward=both(now.reward, tf.zeros_like(now.reward)),
            discount=both(now.discount, tf.zeros_like(now.discount)),
        )
        frozen = self._frozen.read_value()
        info, finite = agent.transition(experience, frozen=frozen)
        first, last = (tf.equal(frame["step_type"][0], kind) for kind in (ts.StepType.FIRST, ts.StepType.LAST))
        only_if(~finite & first, agent.reset_carry)  # nothing of the episode before may reach this one
        applied = finite & ~last & ~frozen
        self._counters["updates"].assign_add(tf.cast(applied, tf.int64))
        self._counters["skipped"].assign_add(tf.cast(~finite & ~frozen, tf.int64))
        return {"td_error": info.extra.td_error, "applied": applied}

    def _acted(self, agent, now):
        """Acts as the agent's policy does, and keeps the frame."""
        network = agent.network
        before = tf.nest.map_structure(tf.convert_to_tensor, self._policy_state)
        state = tf.nest.pack_sequence_as(network.state_spec, before)
        (outputs, value), state = network(now.observation, step_type=now.step_type, network_state=state)
        drawn = network.actions.sample(outputs, agent.collect_policy.generator.make_seeds()[:, 0])
        after = tf.nest.flatten(state)
        sound = is_finite((outputs, value, after))
        anew = tf.equal(now.step_type[0], ts.StepType.FIRST)
        frame = {
            "observation": now.observation,
            "action": tf.where(sound, drawn, self._frame["action"]),
            "step_type": now.step_type,
        }
        tf.nest.map_structure(lambda variable, new: variable.assign(new), dict(self._frame), frame)
        for variable, old, new in zip(self._policy_state, before, after, strict=True):
            variable.assign(tf.where(sound, new, tf.where(anew, tf.zeros_like(old), old)))
        self._begun.assign(True)
        self._counters["held"].assign_add(tf.cast(~sound, tf.int64))
        return {"action": frame["action"], "prediction" if agent.predicts else "value": value}

    def _broken_off(self, agent):
        agent.reset_carry()
        for variable in self._policy_state:
            variable.assign(tf.zeros_like(variable))
        self._begun.assign(False)
        return self._told()


def _stream(agent):
    """Variables of the last frame by name, of the policy's state, and whether there was a frame."""

    def zeros(spec, name=None):
        return tf.Variable(tf.zeros([1, *spec.shape], spec.dtype), trainable=False, name=name)

    spec = agent.time_step_spec
    frame = {"observation": spec.observation, "action": agent.action_spec, "step_type": spec.step_type}
    policy_state = [zeros(part, "state") for part in tf.nest.flatten(agent.network.state_spec)]
    return tf.nest.map_structure(zeros, frame), policy_state, tf.Variable(False, trainable=False)


def _inputs(spec):
    """TensorSpecs of `step` by name, those of the observation first."""
    parts = flat({"observation": spec.observation["observation"]})
    parts.update(reward=spec.reward, discount=spec.discount, step_type=spec.step_type)
    return {name: tf.TensorSpec([1, *part.shape], part.dtype) for name, part in parts.items()}


def _checks(given):
    """Operations that raise InvalidArgumentError for values that no environment gives."""
    checks = [must_be_finite(name, value) for name, value in given.items() if value.dtype.is_floating]
    for name, high in (("discount", 1), ("step_type", 2)):
        inside = tf.reduce_all((given[name] >= 0) & (given[name] <= high))
        checks.append(tf.debugging.Assert(inside, [f"{name} must lie in 0..{high}, got", given[name]]))
    return checks


def check_agent(run):
    """Raises UsageError unless a run is of an agent that learns at every step; its configuration must be loaded."""
    fitting = [name for name, (kind, _) in building.AGENTS.items() if issubclass(kind, StreamingAgent)]
    name = config.value("agent.name", "r2ac")
    if name not in fitting:
        raise UsageError(
            f"{run.path}: --learner exports agents that learn at every step, {' and '.join(fitting)}; this is {name!r}"
        )


def save(run, path):
    """Writes the learner of a run's newest checkpoint as a SavedModel into the folder `path`.

    Raises:
      UsageError: a run of another agent, or whose learning rate ends at 0, or that does not fit its settings.
      OSError: `path` cannot be written.
    """
    check_agent(run)
    options = building.training()
    if options.final_learning_rate == 0:
        raise UsageError(f"{run.path}: a learner of this run would stop learning: train.final_learning_rate is 0")
    agent = setup.make_agent(building.environment(seed=0, streams=1), options, streams=1).agent
    checkpoints.restore_agent(run, agent)
    module = AgentLearner(agent)
    with writing(path):
        tf.saved_model.save(module, path, signatures=module.signatures())
