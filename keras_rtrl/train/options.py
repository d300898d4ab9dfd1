"""The settings of training and of actors, which a gin configuration sets."""

import dataclasses

import gin

from keras_rtrl._checks import flag, number, renamed, whole_number


def _keep(options, name, value):
    object.__setattr__(options, name, value)  # whole numbers come as floats too


@gin.configurable("train", module="keras_rtrl")
@renamed(rollout="rollout_length")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of training.

    The learning rate goes linearly from `learning_rate` to `final_learning_rate` at the run's end.

    Attributes:
      frames: environment frames of the whole run (Atari: 4 an agent step).
      rollout_length: T, agent steps of a stream between two updates.
      optimizer: class of tf-keras optimiser, called with the schedule of the learning rate.
      learning_rate: at the start.
      final_learning_rate: at the end.
      seed: int, of the weights, the actions and the environment.
      log_updates: updates between two rows of metrics.csv; an in-graph task makes as many in one compiled call.
      checkpoint_minutes: minutes between two checkpoints.
      return_window: number of last games that mean_return is over.
      encoder_from: folder of a run; a new run starts with the encoder of its newest checkpoint. None for a new encoder.
        ActorCriticNetwork.train_encoder says whether the encoder goes on learning.
      strategy: "mirrored" spreads the streams over this machine's GPUs (or its CPUs, if several are configured).
        "multi_worker_mirrored" spreads them over the processes that TF_CONFIG describes. Each process runs this with
        the same settings on its part of the streams. Only the chief writes files; it counts only its own games. All
        processes must be able to read the checkpoints. None for one device.
      intra_op_threads: threads that one of TensorFlow's operations may use; None: as TensorFlow has it, one a core.
        With 1 small networks are faster: a second thread costs them more than it gains.
      overlap: make the next rollout of a simulator while the agent learns from the last one. The weights that act are
        then those before the last update. R2AC corrects for that; PPO, whose ratios then do not begin at 1, learned
        less on Ant-P. For cores that would wait; without actors, `strategy`, and tasks inside the graph.

    Raises:
      ValueError: a number out of its range.
    """

    frames: int = gin.REQUIRED
    rollout_length: int = 20
    optimizer: type = gin.REQUIRED
    learning_rate: float = 6e-4
    final_learning_rate: float = 0.0
    seed: int = 0
    log_updates: int = 10
    checkpoint_minutes: float = 3.0
    return_window: int = 100
    encoder_from: str | None = None
    strategy: str | None = None
    intra_op_threads: int | None = None
    overlap: bool = False

    def __post_init__(self):
        for name in ("frames", "rollout_length", "log_updates", "return_window"):
            _keep(self, name, whole_number(f"train.{name}", getattr(self, name)))
        if self.intra_op_threads is not None:
            _keep(self, "intra_op_threads", whole_number("train.intra_op_threads", self.intra_op_threads))
        flag("train.overlap", self.overlap)
        _keep(self, "seed", whole_number("train.seed", self.seed, 0, 2**32 - 1))
        for name in ("learning_rate", "final_learning_rate"):
            _keep(self, name, number(f"train.{name}", getattr(self, name), low=0))
        _keep(self, "checkpoint_minutes", number("train.checkpoint_minutes", self.checkpoint_minutes, above=0))


@gin.configurable("actors", module="keras_rtrl")
@renamed(number="num_actors", streams="num_streams")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """Settings of the actors on Ray.

    Attributes:
      num_actors: 0 for none: then the environment runs in the learner's process or its workers.
      address: address of a Ray cluster ("auto": the one this machine is part of); None starts one on this machine,
        which ends with the run.
      num_streams: E, of each actor, a divisor of B = environment.num_envs with num_actors x E >= B. The learner takes
        the rollouts of B / E actors for each update, those that came first. None for the smallest E.
      queue: rollouts of each actor that are being made or wait for the learner. With 1 an actor waits for the weights
        that result from its last rollout; with 2 it acts while the learner learns.
      cpus: CPUs that Ray reserves for each actor, and threads of its TensorFlow.
      timeout: seconds that an update waits for the next of its rollouts, before training ends with an error.

    Raises:
      ValueError: a setting out of its range.
    """

    num_actors: int = 0
    address: str | None = None
    num_streams: int | None = None
    queue: int = 2
    cpus: int = 1
    timeout: float = 300.0

    def __post_init__(self):
        if self.address is not None and (not isinstance(self.address, str) or not self.address):
            raise ValueError(f"actors.address must be None or a string such as 'auto', got {self.address!r}")
        _keep(self, "num_actors", whole_number("actors.num_actors", self.num_actors, 0))
        if self.num_streams is not None:
            _keep(self, "num_streams", whole_number("actors.num_streams", self.num_streams))
        for name in ("queue", "cpus"):
            _keep(self, name, whole_number(f"actors.{name}", getattr(self, name)))
        _keep(self, "timeout", number("actors.timeout", self.timeout, above=0))

    def for_ray(self):
        """The settings of the cluster and of each actor's process: keyword arguments of `distributed`."""
        return {"address": self.address, "cpus": self.cpus, "timeout": self.timeout}

    def for_batch(self, batch):
        """These settings with `num_streams` decided for a batch of B streams.

        If `num_streams` is None, the smallest divisor of B with which all actors together have at least B streams.

        Raises:
          ValueError: `num_streams` is not a divisor of B, or all actors together have fewer than B streams.
        """
        fitting = [size for size in range(1, batch + 1) if batch % size == 0 and size * self.num_actors >= batch]
        if self.num_streams is not None and self.num_streams not in fitting:
            raise ValueError(
                f"actors.num_streams must be one of {', '.join(map(str, fitting))} for environment.num_envs={batch} "
                f"and {self.num_actors} actors, got {self.num_streams}"
            )
        return dataclasses.replace(self, num_streams=self.num_streams or fitting[0])
