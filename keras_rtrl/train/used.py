"""Checks which settings a command uses: refuses those that nothing uses, and those that a resume cannot change."""

from keras_rtrl._checks import shown
from keras_rtrl._errors import UsageError
from keras_rtrl.train import building, config, settings

_COMMANDS = {  # the settings of a command, and its name; train uses all but those of other agents
    "evaluate": (("environment.name", "environment.options", "environment.workers", "actors."), "evaluate"),
    "bench": (
        (
            "environment.", "agent.", "train.rollout_length", "train.optimizer", "train.overlap",
            "train.intra_op_threads", "ActorCriticNetwork.",
        ),
        "bench env",
    ),
}  # fmt: skip
_ACTORS_ELSEWHERE = ("actors.num_streams", "actors.queue")  # for training alone
_CHANGEABLE = (
    "train.frames", "train.log_updates", "train.checkpoint_minutes", "train.strategy", "environment.workers", "actors."
)  # fmt: skip


def check(command, own, given):
    """Refuses bindings that nothing uses; the configuration must be loaded.

    Args:
      command: "train", "evaluate" or "bench".
      own: bindings of the named file, as `config.load` gives them. It may also set values of a sweep, and settings of
        the agents that the sweep trains.
      given: bindings of the command line.

    Raises:
      UsageError: names the first such binding, and the closest setting if there is one.
    """
    agent, optimizer = config.value("agent.name", "r2ac"), _name(config.value("train.optimizer", None))
    agents, optimizers = [agent], [optimizer]
    for setting, value in _swept(own):
        if setting == "agent.name":
            agents.append(value)
        if setting == "train.optimizer":
            optimizers.append(_name(value))
    for binding in own:
        _check_agent(binding, agents, optimizers)
    for binding in given:
        setting, _, where, _ = binding
        if setting.startswith("sweep."):
            raise UsageError(f"{where}: {setting} is for keras-rtrl sweep, in a gin file")
        uses, name = _COMMANDS.get(command, (("",), command))
        known = setting.rpartition(".")[0] in settings.CONFIGURABLES
        if known and not setting.startswith(uses) and setting.rpartition(".")[0] != _settings_of(agent, command):
            raise UsageError(f"{where}: {name} has no use for {setting}; it takes {', '.join(_shown(uses))}")
        _check_agent(binding, [agent], [optimizer])
        without = not config.value("actors.num_actors", 0)
        alone = without and setting.startswith("actors.") and setting != "actors.num_actors"
        if (alone and binding.value is not None) or (command != "train" and setting in _ACTORS_ELSEWHERE):
            raise UsageError(f"{where}: nothing uses {setting} {'without --actors' if alone else f'in {name}'}")


def check_once(flags, given):
    """Refuses a setting that a flag sets and --gin sets too: one of them would have no effect.

    Args:
      flags: the bindings that flags stand for, as text; those of None may be replaced.
      given: bindings of the command line, those of flags too.

    Raises:
      UsageError: names the setting.
    """
    for text in flags:
        setting, _, value = text.partition(" = ")
        if value != "None" and sum(binding.setting == setting for binding in given) > 1:
            raise UsageError(f"{setting} is given twice, by its flag and by --gin: leave one out")


def check_resumed(run, before, given):
    """Refuses other settings for a run that was begun; the configuration must be loaded, with the bindings.

    Args:
      run: its RunFolder.
      before: `snapshot()` of the run's own settings.
      given: bindings of the command line.

    Raises:
      UsageError: names the first that a run keeps for its whole life.
    """
    where = {binding.setting: binding.where for binding in given}
    for setting, value in snapshot().items():
        if value != before[setting] and not setting.startswith(_CHANGEABLE):
            raise UsageError(
                f"{where.get(setting, setting)}: {run.path} was begun with {setting} = {before[setting]} and keeps it; "
                f"what may change is {', '.join(_shown(_CHANGEABLE))}"
            )


def snapshot():
    """All settings of a run, and their values in words."""
    return {
        f"{configurable}.{name}": _written(config.value(f"{configurable}.{name}", default))
        for configurable in settings.CONFIGURABLES
        for name, default in settings.parameters(configurable).items()
    }


def _written(value):
    return f"@{value.__name__}" if isinstance(value, type) else shown(value)


def check_set(source):
    """Raises UsageError for a configuration, of `source`, without environment, frames or optimiser."""
    for setting in ("environment.name", "train.frames", "train.optimizer"):
        if config.value(setting, None) is None:
            raise UsageError(f"{source}: {setting} must be set, got None")


def _check_agent(binding, agents, optimizers):
    setting, _, where, _ = binding
    configurable = setting.rpartition(".")[0]
    if configurable in settings.OPTIMIZERS and configurable not in optimizers:
        used = " or ".join(f"@{name}" for name in optimizers)
        raise UsageError(f"{where}: nothing uses {setting}; train.optimizer is {used}")
    known = {made[1].__name__ for made in building.AGENTS.values()}
    fitting = [_settings_of(agent, "train") for agent in agents]
    if configurable in known and configurable not in fitting:
        last = setting.rpartition(".")[2]
        like = [f"{other}.{last}" for other in fitting if other and last in settings.parameters(other)]
        hint = f" (did you mean {like[0]!r}?)" if like else ""
        raise UsageError(f"{where}: nothing uses {setting}; agent.name is {' or '.join(map(shown, agents))}{hint}")


def _settings_of(agent, command):
    """The name of an agent's settings; None if the command does not read them, or there is no such agent."""
    fits = command != "evaluate" and isinstance(agent, str) and agent in building.AGENTS
    return building.AGENTS[agent][1].__name__ if fits else None


def _swept(bindings):
    """What the bindings of a file say, and those that its sweep adds: pairs (setting, value)."""
    for setting, value, where, file in bindings:
        yield setting, value
        if setting in ("sweep.tasks", "sweep.conditions") and isinstance(value, dict):
            texts = [text for group in value.values() if isinstance(group, (list, tuple)) for text in group]
            for text in texts:
                if isinstance(text, str):
                    yield from ((b.setting, b.value) for b in settings.parse(text, where, file, "").bindings)


def _name(optimizer):
    if isinstance(optimizer, settings.Reference):
        return optimizer.name.removeprefix("keras_rtrl.")
    return getattr(optimizer, "__name__", None)


def _shown(uses):
    return [f"{name}*" if name.endswith(".") else name for name in uses]
