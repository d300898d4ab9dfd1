"""The contract of a cell: one element-wise function, from which the engine makes exact RTRL."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import tensorflow as tf

from keras_rtrl._checks import whole_number

State = tuple[tf.Tensor, ...]  # the m components, each [..., N]
ByName = dict[str, tf.Tensor]
ROLES = ("kernel", "recurrent", "bias")


class Parameter(NamedTuple):
    """A trainable array that a cell declares.

    Attributes:
      name: its name, also the name of the layer's weight.
      role: "kernel", "recurrent" or "bias": which initialiser, regulariser and constraint of the layer apply.
      shape: its shape.
      initializer: callable (shape, dtype) -> tensor, taken if the layer is given none.
      offset: added to the initial value, whichever initialiser made it.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    initializer: Callable[..., tf.Tensor]
    offset: float = 0.0


class Local(NamedTuple):
    """Local derivatives of phi (rtrl-math.md, section 1), entries [..., N] or broadcastable to it, None for zero.

    Attributes:
      J: m rows of m entries, `J[i][j]` = d s_i / d s'_j, before the factor k of a reset.
      a: by gate name, m entries, `a[gate][i]` = d s_i / d u_gate. A gate in `trace_rotations` may be left out.
      v: by per-unit parameter name, m entries, `v[name][i]` = d s_i / d rho_name.
    """

    J: tuple
    a: dict[str, tuple]
    v: dict[str, tuple]


class RTRLCell:
    """An element-wise recurrence `s_t = phi(k_t s_{t-1}, x_t W; rho)` (rtrl-math.md, section 1).

    A subclass gives the class attributes below, `unit_parameters`, `phi`, and if they are wanted `coefficients`,
    `derivatives` (closed forms, else automatic differentiation is used) and `output`. Used through
    `keras_rtrl.layers.RTRL(cell)`; a cell holds no variables.

    All functions act on tuples of m real components and dictionaries by name; every entry is a tensor [..., N], with
    any leading dimensions, and `phi` may mix components of one unit, never units.

    Attributes:
      units: N.
      gates: names of the G pre-activations; gate i is the columns [i N, (i + 1) N) of the layer's kernel [D, G N].
      components: m, real numbers of state a unit.
      trace_rotations: {gate: (source gate, M)}: the trace of `gate` is at all times the matrix M [m, m] times that of
        the source. Only the sources' traces are stored.
      native: name of the kernels in `custom_ops/` that compute this cell; None: plain TensorFlow does. A subclass that
        changes the recurrence does not inherit it.
    """

    gates: tuple[str, ...] = ()
    components: int = 1
    trace_rotations: Mapping[str, tuple[str, tuple]] = MappingProxyType({})
    native: str | None = None

    def __init__(self, units: int):
        self.units = whole_number("units", units)

    # What a cell is.

    def kernel_initializer(self, shape: Sequence[int], dtype: tf.DType | str | None = None) -> tf.Tensor:
        """Initial kernel [D, G N]; Normal(0, 0.1) unless a cell says otherwise."""
        return tf.random.normal(shape, 0.0, 0.1, tf.as_dtype(dtype or tf.float32))

    def unit_parameters(self) -> tuple[Parameter, ...]:
        """The P parameters rho that act on each unit alone, each of shape [N]."""
        return ()

    def coefficients(self, rho: ByName) -> ByName:
        """What `phi` reads of the per-unit parameters, computed once a call instead of once a step."""
        return rho

    def phi(self, state: State, u: ByName, c: ByName) -> State:
        """Next state (m components) from the previous one, the pre-activations by gate, and the coefficients."""
        raise TypeError(f"{type(self).__name__} defines no phi(state, u, c).")

    def derivatives(self, state: State, u: ByName, c: ByName) -> Local | None:
        """Closed forms of J, a and v at the same arguments as `phi`; None: by automatic differentiation."""
        return None

    # What comes after the recurrence: ordinary differentiable code.

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.units * self.components

    def output_parameters(self, input_dim: int) -> tuple[Parameter, ...]:
        """Parameters of `output`, of any shape."""
        return ()

    def output(self, x: tf.Tensor, state: State, w: ByName) -> tf.Tensor:
        """Output [..., output_size] from the input [..., D], the new state and the output parameters by name."""
        return tf.concat(state, axis=-1)

    # Serialisation, as Keras does it.

    def get_config(self) -> dict[str, Any]:
        return {"units": self.units}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RTRLCell":
        return cls(**config)

    def check(self) -> None:
        """Raises ValueError if the declarations of this cell do not fit the contract."""
        gates, name = self.gates, type(self).__name__
        different = isinstance(gates, tuple) and len(set(gates)) == len(gates) and all(type(g) is str for g in gates)
        if not gates or not different:
            raise ValueError(f"{name}.gates must be a tuple of different names, got {gates!r}.")
        for gate, (source, _) in self.trace_rotations.items():
            if gate not in gates or source not in self.stored_gates:
                raise ValueError(f"{name}.trace_rotations: {gate!r} from {source!r}, where gates are {gates!r}.")
        parameters = (*self.unit_parameters(), *self.output_parameters(1))
        for parameter in parameters:
            if not isinstance(parameter, Parameter) or not callable(parameter.initializer):
                raise ValueError(
                    f"{name}: parameters must be a tuple of Parameter, each with a function (shape, dtype) as "
                    f"initializer, got {parameter!r}."
                )
            if parameter.role not in ROLES:
                raise ValueError(f"{name}: role of {parameter.name!r} must be one of {ROLES}, got {parameter.role!r}.")
        for parameter in self.unit_parameters():
            if tuple(parameter.shape) != (self.units,):
                raise ValueError(f"{name}: {parameter.name!r} must have shape ({self.units},), got {parameter.shape}.")
        names = ["kernel", *(parameter.name for parameter in parameters)]
        if len(set(names)) < len(names):
            raise ValueError(f"{name}: parameters must have different names, and none 'kernel', got {names[1:]}.")

    # Derived names.

    @property
    def stored_gates(self) -> tuple[str, ...]:
        """The G' gates whose traces are stored, in the order of S's third axis."""
        return tuple(g for g in self.gates if g not in self.trace_rotations)

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Names of the per-unit parameters, in the order of r's second axis."""
        return tuple(p.name for p in self.unit_parameters())

    def _refuse_keras_rnn(self):
        raise TypeError(
            f"{type(self).__name__} cannot be put into keras.layers.RNN or StackedRNNCells, which cannot carry its "
            f"traces: use keras_rtrl.layers.RTRL({type(self).__name__}(...))."
        )

    @property
    def state_size(self) -> NoReturn:
        self._refuse_keras_rnn()

    def call(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse_keras_rnn()


def local_derivatives(cell: RTRLCell, state: State, u: ByName, rho: ByName, c: ByName) -> Local:
    """J, a and v of `cell` at every leading position, in closed form or else by automatic differentiation.

    Args:
      state: the state before the step, m tensors [..., N].
      u: pre-activations by gate, each [..., N].
      rho: per-unit parameters by name, each [N].
      c: the cell's coefficients of rho.
    """
    local = cell.derivatives(state, u, c)
    return autodiff_derivatives(cell, state, u, rho) if local is None else local


def autodiff_derivatives(cell: RTRLCell, state: State, u: ByName, rho: ByName) -> Local:
    """J, a and v by automatic differentiation of `cell.phi`."""
    # Every position needs a derivative of its own, so the shared parameters are spread out first.
    spread = {name: tf.broadcast_to(value, tf.shape(state[0])) for name, value in rho.items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((state, u, spread))
        new = cell.phi(state, u, cell.coefficients(spread))
    by_component = [tape.gradient(s, (state, u, spread)) for s in new]
    return Local(
        J=tuple(tuple(d_state) for d_state, _, _ in by_component),
        a={gate: tuple(d_u[gate] for _, d_u, _ in by_component) for gate in u},
        v={name: tuple(d_rho[name] for _, _, d_rho in by_component) for name in rho},
    )
