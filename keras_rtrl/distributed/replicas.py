"""Streams spread over the replicas of a tf.distribute strategy."""

import concurrent.futures

import tensorflow as tf

from keras_rtrl._checks import whole_number


def all_sum(values):
    """The sum over all replicas of a nest of tensors; `values` itself if there is one replica.

    Every replica must call it, and with a MirroredStrategy outside TensorFlow's loops and conditions.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def on_host(function):
    """function(); in a strategy's scope it makes its variables in this process alone, on the CPU."""
    if not tf.distribute.has_strategy():
        return function()

    def on_cpu():
        with tf.device("CPU:0"):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # a scope holds for one thread; this one is outside
        return thread.submit(on_cpu).result()


class Streams:
    """B streams over R replicas: replica k has streams k B / R to (k + 1) B / R - 1.

    The strategy is the one in whose scope this is made; without one, one replica has all streams, and functions are
    called as they are.

    Attributes:
      count: B.
      replica: number of streams of a replica.
      worker: number of streams of this process, all replicas of it together.

    Raises:
      ValueError: `count` is not a whole number of at least 1, or not a multiple of the number of replicas.
    """

    def __init__(self, count):
        self.count = whole_number("num_streams", count)
        self.strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
        replicas, self._ids = 1, (0,)
        if self.strategy is not None:
            replicas = self.strategy.num_replicas_in_sync
            ids = self.strategy.experimental_distribute_values_from_function(lambda c: c.replica_id_in_sync_group)
            self._ids = self.strategy.experimental_local_results(ids)
            self._reduce = tf.function(self._sum_of_replicas)  # made once: an eager reduction is traced at every call
        if self.count % replicas:
            raise ValueError(f"num_streams must be a multiple of the strategy's {replicas} replicas, got {self.count}")
        self.replica = self.count // replicas
        self.worker = self.replica * len(self._ids)

    @property
    def is_chief(self):
        """Whether this process is the one that writes files: the only one, the chief, or worker 0 without a chief."""
        return self.worker_index == 0

    @property
    def worker_index(self):
        """Number of this process among those that learn, by its streams: 0 has the first."""
        return self._ids[0] * self.replica // self.worker

    def any_process(self, flag):
        """Whether `flag` is true in any process; each must ask."""
        if self.worker == self.count:
            return bool(flag)
        return bool(self._sum(tf.constant(float(flag))) > 0)

    def wait_for_all(self):
        """Returns once every process has come here."""
        self.any_process(False)

    def from_first(self, value):
        """The `value` that replica 0 has, in every process."""
        if self.worker == self.count:
            return value
        return self._sum(value if self.is_chief else tf.zeros_like(value))

    def _sum(self, value):
        """Sum of `value` over all processes."""
        values = self.of_replicas(lambda i: value if i == 0 else tf.zeros_like(value))
        return self._reduce(values)

    def _sum_of_replicas(self, values):
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def run(self, function, *args):
        """function(*args) on every replica, with its own part of what is split among `args`."""
        return function(*args) if self.strategy is None else self.strategy.run(function, args=args)

    def one(self, values):
        """The values of one replica in this process, of what `run` gave."""
        if self.strategy is None:
            return values
        return tf.nest.map_structure(lambda x: self.strategy.experimental_local_results(x)[0], values)

    def split(self, values):
        """Splits a nest of tensors [worker's streams, ...] into replicas' own [replica's streams, ...]."""
        if self.strategy is None:
            return values
        flat = tf.nest.flatten(values)
        size = self.replica
        rows = self.of_replicas(lambda i: [x[i * size : (i + 1) * size] for x in flat])
        return tf.nest.pack_sequence_as(values, rows)

    def of_replicas(self, function):
        """What function(i) gives for the replicas i = 0, 1, .. in this process, each as its replica's own."""
        first = self._ids[0]
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: function(context.replica_id_in_sync_group - first)
        )

    def ranges(self):
        """For each replica in this process the slice of its streams, numbered among all."""
        return [slice(i * self.replica, (i + 1) * self.replica) for i in self._ids]


class StreamVariables:
    """Variables [B, ...], zero at first. Every replica has the rows of its own streams.

    Checkpoints hold `whole`, for any number of replicas. With one replica these are the variables themselves. With
    several, `gather` updates them from the replicas, and after a restore `scatter` gives their rows to the replicas.
    This is not a Trackable, so the variables of the replicas are not saved.

    Args:
      streams: `Streams`.
      names: names of the variables.
      rows: nest that holds for each variable a TensorSpec, or a tensor, of one stream's row. All values come and go in
        its structure.

    Attributes:
      whole: tuple of non-trainable variables [B, ...]; with several replicas they are in the memory of the host.
    """

    def __init__(self, streams, names, rows):
        def zeros(count, **options):
            return tuple(
                tf.Variable(tf.zeros([count, *row.shape], row.dtype), trainable=False, name=name, **options)
                for name, row in zip(names, tf.nest.flatten(rows), strict=True)
            )

        self._streams, self._structure = streams, rows
        self._whole_is_own = streams.replica == streams.count
        if self._whole_is_own:
            self.whole = self._own = zeros(streams.count)
        else:
            self._own = zeros(streams.replica, synchronization=tf.VariableSynchronization.ON_READ)
            self.whole = on_host(lambda: zeros(streams.count))

    def packed(self, values):
        """The structure of the rows with these in it, a value for each variable."""
        return tf.nest.pack_sequence_as(self._structure, list(values))

    def values(self):
        """The present rows of this replica, as tensors."""
        return self.packed(variable.value() for variable in self._own)

    def assign(self, values):
        """Assigns this replica's rows."""
        for variable, value in zip(self._own, tf.nest.flatten(values), strict=True):
            variable.assign(value)

    def local(self):
        """The rows of this process' streams, [worker's streams, ...] each; outside the replicas' functions."""
        if self._whole_is_own:
            return self.values()
        with tf.device("CPU:0"):
            return self.packed(tf.concat([part.value() for part in self._parts(own)], axis=0) for own in self._own)

    def assign_local(self, values):
        """Assigns the rows of this process' streams; outside the replicas' functions."""
        if self._whole_is_own:
            self.assign(values)
            return
        for own, value in zip(self._own, tf.nest.flatten(values), strict=True):
            for i, part in enumerate(self._parts(own)):
                part.assign(value[i * self._streams.replica : (i + 1) * self._streams.replica])

    def _parts(self, own):
        return self._streams.strategy.experimental_local_results(own)

    def reset(self):
        """Zeroes all rows. As `gather` and `scatter` called by every process, outside the replicas' functions."""
        for variable in self.whole:
            variable.assign(tf.zeros_like(variable))
        self.scatter()

    def gather(self):
        """Brings `whole` up to date."""
        if self._whole_is_own:
            return
        streams = self._streams
        for variable, own in zip(self.whole, self._own, strict=True):
            parts = self._parts(own)
            if streams.worker < streams.count:
                rows = streams.strategy.gather(streams.of_replicas(lambda i, parts=parts: parts[i].value()), axis=0)
            else:  # not on the devices, which may have no room for the rows of all
                with tf.device("CPU:0"):
                    rows = tf.concat([part.value() for part in parts], axis=0)
            variable.assign(rows)

    def scatter(self):
        """Gives each replica its rows of `whole`."""
        if self._whole_is_own:
            return
        for variable, own in zip(self.whole, self._own, strict=True):
            for part, rows in zip(self._parts(own), self._streams.ranges(), strict=True):
                with tf.device("CPU:0"):
                    value = variable[rows]
                part.assign(value)
