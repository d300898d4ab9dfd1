"""What is particular to a cell; their gradients are proved in tests/conformance."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import keras
from keras_rtrl.cells import EGRUCell, ELSTMCell, LRUCell, MinGRUCell, RTRLCell, RTUCell
from keras_rtrl.layers import EGRU, LRU


def values(cell, seed=0):
    tf.random.set_seed(seed)
    return {p.name: p.initializer(p.shape, "float64") for p in cell.unit_parameters()}


def test_elstm_step_by_hand():
    cell = ELSTMCell(1)
    u = {"f": tf.constant([0.2]), "z": tf.constant([-0.4])}
    rho = {name: tf.constant([v]) for name, v in {"w_f": 0.5, "w_z": -0.3, "b_f": 0.1, "b_z": 0.2}.items()}
    f = 1 / (1 + np.exp(-(0.2 + 0.5 * 2.0 + 0.1)))
    z = np.tanh(-0.4 - 0.3 * 2.0 + 0.2)
    (c,) = cell.phi((tf.constant([2.0]),), u, cell.coefficients(rho))
    np.testing.assert_allclose(c, [f * 2.0 + (1 - f) * z], rtol=1e-6)


@pytest.mark.parametrize("reset_after", [False, True])
def test_egru_is_keras_gru_with_diagonal_recurrent_weights(reset_after):
    """And the reset gate's two places are one."""
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    layer = EGRU(3, return_sequences=True, bias_initializer="random_normal", recurrent_initializer="random_uniform")
    gru = keras.layers.GRU(3, return_sequences=True, reset_after=reset_after)
    y, _ = layer(x), gru(x)
    w = {name: np.array(value) for name, value in layer.recurrent_weights().items()}
    recurrent = np.concatenate([np.diag(w[f"w_{gate}"]) for gate in layer.cell.gates], axis=1)
    bias = np.concatenate([w[f"b_{gate}"] for gate in layer.cell.gates])
    gru.set_weights([w["kernel"], recurrent, np.stack([bias, 0 * bias]) if reset_after else bias])
    np.testing.assert_allclose(y, gru(x), rtol=1e-5, atol=1e-6)


def test_mingru_step_by_hand():
    cell = MinGRUCell(1)
    rho = {name: tf.constant([v]) for name, v in {"b_z": 0.1, "b_h": 0.2}.items()}
    z, g = 1 / (1 + np.exp(-(0.3 + 0.1))), -1.4 + 0.2
    u = {"z": tf.constant([0.3]), "h": tf.constant([-1.4])}
    (h,) = cell.phi((tf.constant([2.0]),), u, cell.coefficients(rho))
    np.testing.assert_allclose(h, [(1 - z) * 2.0 + z * g], rtol=1e-5)


def test_rtu_is_the_complex_recurrence():
    cell = RTUCell(4, activation="linear")
    rho = values(cell)
    c = cell.coefficients(rho)
    rng = np.random.default_rng(0)
    s, u = rng.normal(size=4) + 1j * rng.normal(size=4), rng.normal(size=4) + 1j * rng.normal(size=4)
    r = np.exp(-np.exp(rho["nu"]))
    expected = r * np.exp(1j * np.exp(rho["vartheta"])) * s + np.sqrt(1 - r**2) * u
    a, b = cell.phi((s.real, s.imag), {"u1": u.real, "u2": u.imag}, c)
    np.testing.assert_allclose(np.array(a) + 1j * np.array(b), expected, rtol=1e-10)


def test_rtu_initial_ring():
    cell = RTUCell(4000, r_min=0.5, r_max=0.8, max_phase=1.0)
    rho = values(cell)
    r, theta = np.exp(-np.exp(rho["nu"])), np.exp(rho["vartheta"])
    assert 0.5 <= r.min() < 0.51
    assert 0.79 < r.max() <= 0.8
    assert abs(np.mean(r**2) - (0.25 + 0.64) / 2) < 0.01  # uniform over the ring's area
    assert 0 < theta.min() < 0.01
    assert 0.99 < theta.max() <= 1.0


@pytest.mark.parametrize("cell", [LRUCell, RTUCell])
def test_phases_above_a_smallest_one_are_log_uniform(cell):
    vartheta = values(cell(4000, min_phase=0.01, max_phase=2.0))["vartheta"]
    counts, _ = np.histogram(vartheta, bins=4, range=(np.log(0.01), np.log(2.0)))
    assert counts.sum() == 4000  # none outside
    assert (abs(counts - 1000) < 150).all()  # 5 standard deviations; uniform phases have 3760 in the last


def test_lru_is_the_complex_recurrence_and_its_read_out():
    cell = LRUCell(4)
    rho, rng = values(cell), np.random.default_rng(0)
    c = cell.coefficients(rho)

    def draw(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    s, u, C, D, x = draw(4), draw(4), draw(4, 4), rng.normal(size=(2, 4)), rng.normal(size=(1, 2))
    turn = np.exp(-np.exp(rho["nu"]) + 1j * np.exp(rho["vartheta"]))
    expected = turn * s + np.exp(rho["gamma_log"]) * u
    state = cell.phi((s.real, s.imag), {"u1": u.real, "u2": u.imag}, c)
    np.testing.assert_allclose(np.array(state[0]) + 1j * np.array(state[1]), expected, rtol=1e-10)
    y = cell.output(tf.constant(x), tuple(part[None] for part in state), {"C_re": C.real, "C_im": C.imag, "D": D})
    np.testing.assert_allclose(y, (expected @ C).real[None] + x @ D, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("graph", [False, True])
def test_lru_gamma_starts_at_its_own_radius(dtype, graph):
    seen = []
    for seed in (1, 1, 2):
        tf.random.set_seed(seed)
        layer = LRU(300, r_min=0.5, r_max=0.999, dtype=dtype)

        def build(layer=layer):
            if not layer.built:  # a function is traced twice where it makes variables
                layer.build((None, None, 4))

        tf.function(build)() if graph else build()
        nu, gamma_log = (np.array(layer.recurrent_weights()[name], "float64") for name in ("nu", "gamma_log"))
        np.testing.assert_allclose(np.exp(2 * gamma_log), 1 - np.exp(-2 * np.exp(nu)), rtol=1e-4)
        assert 0.5 <= np.exp(-np.exp(nu)).min() < 0.53
        seen.append(nu)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.any(seen[0] != seen[2])


RING = "0 <= r_min < r_max <= 1"
WRONG = [
    *(
        (cell, {"units": units}, "units must be a whole number of at least 1, got")
        for cell, units in [
            (EGRUCell, 0),
            (ELSTMCell, 2.5),
            (LRUCell, "3"),
            (MinGRUCell, None),
            (RTUCell, True),
            (RTRLCell, -1),
        ]
    ),
    (ELSTMCell, {"forget_bias": "much"}, "forget_bias must be a finite number, got 'much'"),
    (ELSTMCell, {"forget_bias": float("nan")}, "forget_bias must be a finite number, got nan"),
    *(
        (cell, wrong, message)
        for cell in (LRUCell, RTUCell)
        for wrong, message in [
            ({"r_min": 0.5, "r_max": 0.5}, RING),
            ({"r_min": -0.1}, RING),
            ({"r_max": 1.1}, RING),
            ({"r_min": None}, "r_min must be a finite number, got None"),
            ({"r_max": "1"}, "r_max must be a finite number, got '1'"),
            ({"max_phase": 0}, "max_phase must be a finite number above 0, got 0"),
            ({"max_phase": "2 pi"}, "max_phase must be a finite number above 0, got '2 pi'"),
            ({"min_phase": -0.1}, "min_phase must be a finite number of at least 0, got -0.1"),
            ({"min_phase": 1.0, "max_phase": 1.0}, r"min_phase must be below max_phase, 1.0, got 1.0"),
        ]
    ),
    (RTUCell, {"recurrence": "convex"}, "recurrence must be 'linear' or 'nonlinear', got 'convex'"),
    (RTUCell, {"recurrence": None}, "recurrence must be 'linear' or 'nonlinear', got None"),
    (RTUCell, {"activation": "softmax"}, "activation must be one of .*'tanh'.* got 'softmax'"),
    (RTUCell, {"activation": ["relu"]}, "activation must be one of .*'tanh'.* got .'relu'"),
]


@pytest.mark.parametrize(("cell", "wrong", "message"), WRONG)
def test_wrong_arguments_are_named(cell, wrong, message):
    with pytest.raises(ValueError, match=message):
        cell(**{"units": 2, **wrong})


@pytest.mark.parametrize("nu", [-40.0, -20.0, 5.0, 20.0])
def test_rtu_derivatives_are_finite_at_the_edges(nu):
    cell = RTUCell(2)
    c = cell.coefficients({"nu": tf.fill((2,), nu), "vartheta": tf.zeros((2,))})
    one = tf.ones((2,))
    local = cell.derivatives((one, one), {"u1": one, "u2": one}, c)
    for entry in tf.nest.flatten((local.J, local.v)):
        assert np.isfinite(entry).all()


@pytest.mark.parametrize(
    "cell",
    [
        EGRUCell(3),
        ELSTMCell(3, forget_bias=2.0),
        LRUCell(3, r_min=0.1, r_max=0.9, min_phase=0.5, max_phase=1.0),
        MinGRUCell(3),
        RTUCell(3, recurrence="nonlinear", activation="tanh", r_min=0.1, r_max=0.9, min_phase=0.5, max_phase=1.0),
    ],
)
def test_config_round_trip(cell):
    assert type(cell).from_config(cell.get_config()).get_config() == cell.get_config()


def test_a_cell_without_phi_says_so():
    with pytest.raises(TypeError, match="defines no phi"):
        RTRLCell(2).phi((None,), {}, {})


@pytest.mark.parametrize(
    "cell", [RTUCell(3), RTUCell(3, recurrence="nonlinear"), LRUCell(3)], ids=["linear", "relu", "lru"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_that_ran_away_give_finite_numbers(cell, dtype):
    """exp(exp(nu)) and exp(vartheta) would overflow: the derivatives end before, as those of what is computed do."""
    rho = {p.name: tf.zeros([5], dtype) for p in cell.unit_parameters()}
    rho["nu"], rho["vartheta"] = tf.constant([-3, 1e3, 80, -3, -3], dtype), tf.constant([500, 85, 1, 8.01, -1], dtype)
    state, u = (tf.ones([5], dtype),) * 2, {gate: tf.ones([5], dtype) for gate in cell.gates}
    local = cell.derivatives(state, u, cell.coefficients(rho))
    new = cell.phi(state, u, cell.coefficients(rho))
    for part in tf.nest.flatten((new, local)):
        assert part is None or np.all(np.isfinite(part))
    with tf.GradientTape() as tape:
        tape.watch(rho["vartheta"])
        new = cell.phi(state, u, cell.coefficients(rho))[0]
    np.testing.assert_allclose(tape.gradient(new, rho["vartheta"]), local.v["vartheta"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.array(local.v["vartheta"][0])[[0, 3, 4]] != 0, [False, False, True])


def test_a_cell_without_a_read_out_is_as_wide_as_its_state():
    class Two(RTRLCell):
        gates = ("u",)
        components = 2

    assert Two(3).output_size == 6
