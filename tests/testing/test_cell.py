"""`check_rtrl_cell` names the fault of a broken cell, and lists what it proved of a sound one."""

import pytest
import tensorflow as tf

from keras_rtrl.cells import EGRUCell, ELSTMCell, Local, Parameter, RTRLCell, RTUCell
from keras_rtrl.cells.initializers import zeros
from keras_rtrl.testing import check_rtrl_cell


class Leaky(RTRLCell):
    """The sound cell that most of the broken ones below are made of: s = w s' + (1 - w) tanh(u + b), w = exp(log_w)."""

    gates = ("u",)

    def unit_parameters(self):
        return (
            Parameter("log_w", "recurrent", (self.units,), lambda shape, dtype=None: zeros(shape, dtype) - 0.5),
            Parameter("b", "bias", (self.units,), zeros),
        )

    def coefficients(self, rho):
        return {"w": tf.exp(rho["log_w"]), "b": rho["b"]}

    def phi(self, state, u, c):
        return (c["w"] * state[0] + (1 - c["w"]) * self.squash(u["u"] + c["b"]),)

    def squash(self, u):
        return tf.tanh(u)


class Closed(Leaky):
    """With the derivatives in closed form."""

    def derivatives(self, state, u, c):
        z = tf.tanh(u["u"] + c["b"])
        a = (1 - c["w"]) * (1 - z * z)
        return Local(J=((c["w"],),), a={"u": (a,)}, v={"log_w": (c["w"] * (state[0] - z),), "b": (a,)})


def broken(base, **methods):
    """An instance of a subclass of `base` with these methods or attributes."""
    return type("Broken", (base,), methods)(3)


def changed(base, change):
    """An instance of a subclass of `base` whose local derivatives go through change(local, state, u, c)."""

    def derivatives(self, state, u, c):
        return change(base.derivatives(self, state, u, c), state, u, c)

    return broken(base, derivatives=derivatives)


def with_v(local, **entries):
    return local._replace(v={**local.v, **entries})


def keeps_state(self, state, u, c):
    """The state of the call before, whatever the engine hands in."""
    mine, self.kept = getattr(self, "kept", state), Leaky.phi(self, state, u, c)
    return Leaky.phi(self, mine, u, c)


def keeps_gates(self, state, u, c):
    self.z = self.squash(u["u"] + c["b"])
    return Leaky.phi(self, state, u, c)


def from_kept_gates(self, state, u, c):
    z = getattr(self, "z", tf.zeros_like(state[0]))
    a = (1 - c["w"]) * (1 - z * z)
    return Local(J=((c["w"],),), a={"u": (a,)}, v={"log_w": (c["w"] * (state[0] - z),), "b": (a,)})


def explode(self, state, u, c):
    return (Leaky.phi(self, state, u, c)[0] + state[0] ** 3,)


class Forgetful(Leaky):
    """get_config leaves an argument out."""

    def __init__(self, units, scale=1.0):
        super().__init__(units)
        self.scale = scale


class Renamed(Forgetful):
    """get_config gives the argument's first value, not the present one."""

    def squash(self, u):
        return self.scale * tf.tanh(u)

    def get_config(self):
        return {"units": self.units, "scale": 1.0}


class WrongRotation(RTUCell):
    """The trace of W2 turned the other way."""

    def __init__(self, units):
        super().__init__(units)
        self.trace_rotations = {"u2": ("u1", ((0.0, 1.0), (-1.0, 0.0)))}

    def get_config(self):
        return {"units": self.units}


class TwoRates(RTRLCell):
    """What drives the components is turned as declared, but they decay at different rates."""

    gates = ("u1", "u2")
    components = 2
    trace_rotations = RTUCell(1).trace_rotations

    def phi(self, state, u, c):
        return (0.9 * state[0] + u["u1"], 0.5 * state[1] + u["u2"])


J_WITHOUT_TERM = changed(  # as one printing of the paper has it
    ELSTMCell, lambda local, s, u, c: local._replace(J=((local.J[0][0] - c["w_z"] * local.a["z"][0],),))
)
J_WITHOUT_RESET_GATE = changed(
    EGRUCell, lambda local, s, u, c: local._replace(J=((local.J[0][0] - c["w_r"] * local.a["r"][0],),))
)
WITHOUT_THETA = changed(  # as the released code has it
    RTUCell, lambda local, s, u, c: with_v(local, vartheta=tuple(e / c["d_theta"] for e in local.v["vartheta"]))
)
KNOWN = "none of the names it was given: u has 'u'; c has 'w', 'b'"
FAULTS = {
    "J lacks a term": (J_WITHOUT_TERM, r"J\[0\]\[0\] = d s_0 / d s'_0 is wrong .* lacks the term c\['w_z'\] a\['z'\]"),
    "J lacks a gate": (J_WITHOUT_RESET_GATE, r"J\[0\]\[0\] .* lacks the term c\['w_r'\] a\['r'\].*section 1"),
    "J is of another form": (
        changed(Closed, lambda local, s, u, c: local._replace(J=((local.J[0][0] + 0.1 * s[0],),))),
        r"J\[0\]\[0\] = .* instead of .* every way from the previous state, that through each gate too",
    ),
    "J of components exchanged": (
        changed(RTUCell, lambda local, s, u, c: local._replace(J=tuple(zip(*local.J, strict=True)))),
        r"J\[0\]\[1\] = d s_0 / d s'_1 is wrong in derivatives.*Its sign is wrong",
    ),
    "theta missing": (
        WITHOUT_THETA,
        r"v\['vartheta'\]\[0\] = d s_0 / d vartheta is wrong .* lacks the factor exp\(var",
    ),
    "a factor too many": (
        changed(Closed, lambda local, s, u, c: with_v(local, log_w=(local.v["log_w"][0] * c["w"],))),
        r"v\['log_w'\]\[0\] .* It has the factor exp\(log_w\) once too often",
    ),
    "a is wrong": (
        changed(Closed, lambda local, s, u, c: local._replace(a={"u": (local.a["u"][0] * s[0],)})),
        r"a\['u'\]\[0\] = d s_0 / d u_u is wrong",
    ),
    "v left out": (changed(Closed, lambda local, s, u, c: with_v(local, b=(None,))), r"v\['b'\]\[0\].*It is left out"),
    "v not given": (
        changed(Closed, lambda local, s, u, c: local._replace(v={"b": local.v["b"]})),
        "derivatives must give v for 'log_w', 'b', got",
    ),
    "a rotation the other way": (WrongRotation(3), r"rotation of 'u2' from 'u1' is wrong: M a\['u1'\] against a"),
    "a rotation for one step": (TwoRates(3), "rotation of 'u2' from 'u1' is wrong: J M against M J"),
    "state kept outside": (broken(Leaky, phi=keeps_state), "missing reset: phi remembers.*component of the state"),
    "gates kept for derivatives": (
        broken(Leaky, phi=keeps_gates, derivatives=from_kept_gates),
        "missing reset: derivatives remembers",
    ),
    "noise in phi": (
        broken(Leaky, squash=lambda self, u: tf.tanh(u) + 0.1 * tf.random.normal(tf.shape(u), dtype=u.dtype)),
        "missing reset: .* random numbers",
    ),
    "streams mixed in phi": (
        broken(Leaky, squash=lambda self, u: tf.tanh(u - tf.reduce_mean(u, axis=0))),
        "phi mixes streams: .* pre-activation of gate 'u' of another.*traces would leak between them",
    ),
    "streams mixed in derivatives": (
        changed(Closed, lambda local, s, u, c: local._replace(J=((local.J[0][0] + tf.reduce_mean(s[0], 0),),))),
        "derivatives mixes streams: .* component 0 of the state of another",
    ),
    "streams mixed in output": (
        broken(Leaky, output=lambda self, x, state, w: state[0] - tf.reduce_mean(state[0], axis=0)),
        "output mixes streams",
    ),
    "units mixed in phi": (
        broken(Leaky, squash=lambda self, u: tf.nn.softmax(u)),
        "phi mixes units: .* pre-activation of gate 'u' of another",
    ),
    "units mixed in coefficients": (
        broken(Leaky, coefficients=lambda self, rho: {"w": tf.nn.softmax(rho["log_w"]), "b": rho["b"]}),
        "phi mixes units: .* parameter 'log_w' of another",
    ),
    "a gradient stopped": (
        broken(Leaky, squash=lambda self, u: tf.stop_gradient(tf.tanh(u))),
        r"a\['u'\]\[0\] = d s_0 / d u_u is 0 instead of .*stop_gradient",
    ),
    "no memory": (
        broken(Leaky, phi=lambda self, s, u, c: (u["u"] + c["b"] + c["w"],)),
        "does not depend on the previous",
    ),
    "a dead parameter": (
        broken(Leaky, coefficients=lambda self, rho: {"w": tf.exp(rho["log_w"]), "b": 0.0}),
        "phi does not depend on parameter 'b'",
    ),
    "a dead gate": (broken(Leaky, gates=("u", "g")), "phi does not depend on gate 'g'"),
    "no tuple": (broken(Leaky, phi=lambda self, s, u, c: s[0] + u["u"]), "new state that phi returns must be a tuple"),
    "another shape": (
        broken(Leaky, phi=lambda self, s, u, c: (tf.reduce_sum(s[0] + u["u"], -1),)),
        r"component 0 of the state that phi returns must have shape \(4, 3\)",
    ),
    "a constant of one dtype in phi": (
        broken(Leaky, squash=lambda self, u: tf.constant(0.5) * u),
        r"phi fails: .*A constant must have the dtype .* and not tf.constant\(0.5\), which is float32",
    ),
    "a constant of the other in coefficients": (
        broken(Leaky, coefficients=lambda self, rho: {"w": tf.constant(0.5, "float64") * rho["log_w"], "b": 0.0}),
        "coefficients fails: .*A constant must have the dtype",
    ),
    "an unknown gate in phi": (
        broken(Leaky, phi=lambda self, s, u, c: (c["w"] * s[0] + u["z"],)),
        f"phi fails: KeyError: 'z', which is {KNOWN}",
    ),
    "an unknown gate in derivatives": (
        broken(Leaky, derivatives=lambda self, s, u, c: Local(((c["w"],),), {"u": (u["z"],)}, {})),
        f"derivatives fails: KeyError: 'z', which is {KNOWN}",
    ),
    "a gate left out": (
        changed(Closed, lambda local, s, u, c: local._replace(a={})),
        r"derivatives must give a for 'u', got \[\]",
    ),
    "more components than declared": (
        broken(Leaky, phi=lambda self, s, u, c: (s[0] + u["u"], s[0])),
        r"new state that phi returns must be a tuple of length 1, got a tuple of length 2$",
    ),
    "a state of two components unpacked": (
        broken(Leaky, phi=lambda self, state, u, c: tuple(a for a, b in [state])),
        r"phi fails: ValueError: not enough values to unpack .*\. state is a tuple of 1$",
    ),
    "J in no rows": (
        changed(Closed, lambda local, s, u, c: local._replace(J=local.J[0])),
        r"J\[0\] of derivatives must be a tuple of length 1, got a tensor of shape \(3,\) in float64$",
    ),
    "v in no tuples": (
        changed(Closed, lambda local, s, u, c: with_v(local, b=local.v["b"][0])),
        r"v\['b'\] of derivatives must be a tuple of length 1, got a tensor of shape \(4, 3\) in float64$",
    ),
    "a without names": (
        changed(Closed, lambda local, s, u, c: local._replace(a=local.a["u"])),
        "a of derivatives must be a dict by name, got a tuple of length 1",
    ),
    "derivatives in no Local": (
        broken(Closed, derivatives=lambda self, s, u, c: (1, 2, 3)),
        r"derivatives must return a Local\(J, a, v\) or None, got a tuple of length 3",
    ),
    "numbers that are none": (broken(Leaky, squash=lambda self, u: tf.math.log(u)), "phi or derivatives .* not finite"),
    "a state that explodes": (broken(Leaky, phi=explode), "phi lets the state grow to inf in 8 random steps"),
    "an initialiser of one dtype": (
        broken(Leaky, kernel_initializer=staticmethod(lambda shape, dtype=None: tf.zeros(shape))),
        "initializer of 'kernel', asked for .*float64.*makes .*float32",
    ),
    "output of another width": (broken(Leaky, output_size=7), r"output must have shape \(4, 7\)"),
    "coefficients without names": (
        broken(Leaky, coefficients=lambda self, rho: tuple(rho.values())),
        "coefficients must return a dict by name",
    ),
    "parameters that are none": (
        broken(Leaky, unit_parameters=lambda self: ("log_w", "b")),
        "the declarations do not fit: Broken: parameters must be a tuple of Parameter, .* got 'log_w'",
    ),
    "no gates": (broken(Leaky, gates=()), "the declarations do not fit: Broken.gates must be a tuple"),
    "gates in no tuple": (broken(Leaky, gates="u"), "Broken.gates must be a tuple of different names, got 'u'"),
    "configuration left out": (Forgetful(3, 2.0), "get_config leaves out 'scale', an argument of __init__"),
    "configuration not kept": (Renamed(3, 2.0), "makes a cell with another phi"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_cell_is_caught_and_the_fault_named(fault):
    cell, message = FAULTS[fault]
    with pytest.raises(AssertionError, match=rf"(?s)^{type(cell).__name__}: .*{message}"):
        check_rtrl_cell(cell)


def test_phi_that_cannot_run_in_a_graph_is_caught():
    def squash(self, u):
        return tf.tanh(u) if tf.reduce_any(u > 9) else tf.sin(u)

    with pytest.raises(AssertionError, match=r"(?s)the cell fails in a graph: .*in squash.*bool"):
        check_rtrl_cell(broken(Leaky, squash=squash))


@pytest.mark.parametrize(
    ("cell", "derivatives"), [(Leaky(3), "by automatic differentiation"), (Closed(3), "closed forms")]
)
def test_a_sound_cell_gets_a_report(cell, derivatives):
    report = check_rtrl_cell(cell, seed=1)
    assert report.startswith(f"{type(cell).__name__}: exact RTRL, proved in float64 with seed 1")
    for line in (
        f"Derivatives: {derivatives}",
        "Native op: none",
        "A reset leaves nothing",
        "BPTT through all history",
    ):
        assert line in report


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cell": Leaky}, TypeError, "cell must be an instance of keras_rtrl.cells.RTRLCell, got <class"),
        ({"cell": None}, TypeError, "cell must be an instance of keras_rtrl.cells.RTRLCell, got None"),
        ({"seed": -1}, ValueError, "seed must be a whole number of at least 0, got -1"),
        ({"seed": "a"}, ValueError, "seed must be a whole number of at least 0, got 'a'"),
        ({"seed": 0.5}, ValueError, "seed must be a whole number of at least 0, got 0.5"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        check_rtrl_cell(**{"cell": Leaky(3), **arguments})
