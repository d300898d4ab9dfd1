"""The verdict on a cell: each fault that an author can make is named, then the proofs of exactness are run."""

import inspect

import numpy as np
import tensorflow as tf

from keras_rtrl._checks import shown, whole_number
from keras_rtrl.engine import autodiff_derivatives, native
from keras_rtrl.engine.blocks import dense, matmul, matvec
from keras_rtrl.engine.cell import Local, RTRLCell
from keras_rtrl.testing import proofs
from keras_rtrl.testing.proofs import Case, close, require

_MATH = "docs/rtrl-math.md"
_LEADING = ((4,), (2, 3))  # streams, as `phi` is called; steps and streams, as `derivatives` is


def check_rtrl_cell(cell: RTRLCell, *, seed: int = 0) -> str:
    """Proves a cell to be exact RTRL, or names what is wrong with it.

    First it checks each function of the cell, so that an error names the function at fault: wrong shapes, a phi that
    keeps something from call to call or mixes streams or units, a wrong entry of J, a or v. Then it runs every proof of
    `keras_rtrl.testing.proofs`: resets, streams, chunks, BPTT through the whole history, finite differences, and the
    native op if the cell has one. Everything is in float64, on random parameters and sequences.

    Args:
      cell: an `RTRLCell`, small: 3 units prove as much as 300.
      seed: seed of the random parameters and sequences, a whole number of at least 0.

    Returns:
      A report to print, with one line for each proof.

    Raises:
      TypeError: `cell` is not an RTRLCell.
      ValueError: `seed` is not a whole number of at least 0.
      AssertionError: the first fault; the message names the function, component, gate or parameter.
    """
    if not isinstance(cell, RTRLCell):
        raise TypeError(f"cell must be an instance of keras_rtrl.cells.RTRLCell, got {shown(cell)}.")
    seed = whole_number("seed", seed, low=0)
    report = [f"{type(cell).__name__}: exact RTRL, proved in float64 with seed {seed} ({_MATH}, section 10)"]
    try:
        check_declarations(cell)
        case = Case(cell, seed)
        report.append(_line(check_declarations))
        own = (check_functions, check_apart, check_derivatives)
        for proof in (*own, proofs.check_resets, proofs.check_streams):
            proof(case)
            report.append(_line(proof))
        # Keras runs the cell in graphs, and much that works eagerly fails there.
        _call("the cell", proofs.check_chunk, case, proofs.graph, where=" in a graph")
        for proof in (proofs.check_broken_past, *proofs.PROOFS):
            proof(case)
            report.append(_line(proof))
        reason = native.why_not(cell, "float64")
        if reason is None:
            for dtype in proofs.NATIVE_RTOL:
                proofs.check_native(case, dtype)
            report.append(_line(proofs.check_native))
    except AssertionError as error:
        raise AssertionError(f"{type(cell).__name__}: {error}") from error
    closed = cell.derivatives(*_draw(case, (1,)), cell.coefficients(case.rho)) is not None
    report.append(f"- Derivatives: {'closed forms' if closed else 'by automatic differentiation of phi'}.")
    report.append(f"- Native op: {'used if it applies' if reason is None else f'none: {reason}'}.")
    return "\n".join(report)


def _line(proof):
    return "- " + inspect.getdoc(proof).split("\n\n")[0].replace("\n", " ")


def check_declarations(cell):
    """The declarations fit the contract, initialisers make what they should, the configuration makes the same cell."""
    try:
        cell.check()
    except (AttributeError, TypeError, ValueError) as error:
        raise AssertionError(f"the declarations do not fit: {error}") from error
    dim = 4
    kernel = ("kernel", (dim, len(cell.gates) * cell.units), cell.kernel_initializer)
    parameters = (*cell.unit_parameters(), *cell.output_parameters(dim))
    for name, shape, initializer in (kernel, *((p.name, p.shape, p.initializer) for p in parameters)):
        for dtype in ("float32", "float64"):
            value = _call(f"initializer of {name!r}", initializer, shape, dtype=dtype)
            got, wanted = (tuple(value.shape), tf.as_dtype(value.dtype).name), (tuple(shape), dtype)
            require(
                got == wanted,
                f"initializer of {name!r}, asked for shape and dtype {wanted}, makes {got}",
            )
    config = cell.get_config()
    for name, argument in inspect.signature(type(cell).__init__).parameters.items():
        if name != "self" and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            require(
                name in config, f"get_config leaves out {name!r}, an argument of __init__: saved models would lose it"
            )
    try:
        again = type(cell).from_config(config)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"from_config(get_config()) fails: {error}") from error
    require(again.get_config() == config, f"from_config(get_config()) gives other arguments: {again.get_config()}")


def check_functions(case):
    """phi, derivatives and output are functions of their arguments alone, of the declared shapes, in any dtype."""
    cell = case.cell
    c = _coefficients(cell, case.rho)
    one, other = _draw(case, (4,), 1), _draw(case, (4,), 2)
    # A call with other arguments between two that must agree: it would change anything that the cell keeps.
    new, local = _phi(cell, *one, c), _derivatives(cell, *one, c)
    for leaf in tf.nest.flatten((new, local)):
        require(leaf is None or np.all(np.isfinite(leaf)), "phi or derivatives give numbers that are not finite")
    _phi(cell, *other, c)
    _same("derivatives", _derivatives(cell, *one, c), local)
    _phi(cell, *other, cell.coefficients({name: value + 1 for name, value in case.rho.items()}))
    _same("phi", _phi(cell, *one, cell.coefficients(case.rho)), new)
    again = type(cell).from_config(cell.get_config())
    agree = all(np.array_equal(a, b) for a, b in zip(_phi(again, *one, again.coefficients(case.rho)), new, strict=True))
    require(agree, "from_config(get_config()) makes a cell with another phi: get_config leaves something out")
    largest = np.abs(case.bptt_states(case.kernel, case.rho, case.x, case.carry.state)).max()
    require(
        largest < 1e4, f"phi lets the state grow to {largest:.0e} in {case.steps} random steps: rounding hides faults"
    )
    for leading in _LEADING:
        for dtype in ("float32", "float64"):
            state, u, rho, x = tf.nest.map_structure(
                lambda value, dtype=dtype: tf.cast(value, dtype),
                (*_draw(case, leading), case.rho, tf.zeros((*leading, case.input_dim))),
            )
            c = _coefficients(cell, rho)
            _phi(cell, state, u, c)
            _derivatives(cell, state, u, c)
            w = {p.name: p.initializer(p.shape, dtype=dtype) for p in cell.output_parameters(case.input_dim)}
            y = _call("output", cell.output, x, state, w)
            _tensor("output", y, (*leading, cell.output_size), dtype)


def _same(what, again, before):
    for got, want in zip(tf.nest.flatten(again), tf.nest.flatten(before), strict=True):
        require(
            want is None or np.array_equal(got, want),
            f"missing reset: {what} remembers. Called again with the same arguments it gives another result. A new "
            "episode resets the state that is handed in, and nothing that a cell keeps in attributes, variables or "
            "random numbers: what is to be remembered must be a component of the state "
            f"({_MATH}, sections 1 and 7)",
        )


def check_apart(case):
    """phi and derivatives act on each stream and each unit alone, output on each stream and step."""
    cell, rng = case.cell, np.random.default_rng(case.seed + 2)
    for leading in _LEADING:
        state, u = _draw(case, leading)
        w = {p.name: p.initializer(p.shape, "float64") for p in cell.output_parameters(case.input_dim)}
        x = tf.constant(rng.normal(size=(*leading, case.input_dim)))

        def results(state=state, u=u, rho=case.rho, x=x, w=w):
            c = cell.coefficients(rho)
            local = cell.derivatives(state, u, c)
            local = () if local is None else _spread(local, state[0])
            return {"phi": cell.phi(state, u, c), "derivatives": local, "output": cell.output(x, state, w)}

        base = results()
        first = (0,) * len(leading)
        for what, changed in _changes(state, u, case.rho, x, (*first, 0)):
            for function, new in results(**changed).items():
                for got, want in zip(tf.nest.flatten(new), tf.nest.flatten(base[function]), strict=True):
                    # Sums in another order may differ in the last digit; a leak is of the order of the change.
                    moved = np.abs(np.asarray(got) - np.asarray(want)) > 1e-12
                    if "rho" not in changed:
                        elsewhere = moved.reshape(-1, moved.shape[-1])[1:].any()
                        require(
                            not elsewhere,
                            f"{function} mixes streams: its result for one stream changes with {what} of another, and "
                            f"traces would leak between them ({_MATH}, section 1). Look for sums and means over the "
                            "first axes",
                        )
                    require(
                        function == "output" or not moved[..., 1:].any(),
                        f"{function} mixes units: its result for one unit changes with {what} of another. What mixes "
                        f"units must be left to output, or to the next layer ({_MATH}, section 1)",
                    )


def _changes(state, u, rho, x, at):
    """Each argument with its first unit (of the first stream) changed: (words, arguments of `results`)."""

    def changed(value, at):
        value = np.array(value)
        value[at] += 0.5
        return tf.constant(value)

    for i, value in enumerate(state):
        yield f"component {i} of the state", {"state": (*state[:i], changed(value, at), *state[i + 1 :])}
    for gate, value in u.items():
        yield f"the pre-activation of gate {gate!r}", {"u": {**u, gate: changed(value, at)}}
    for name, value in rho.items():
        yield f"the parameter {name!r}", {"rho": {**rho, name: changed(value, 0)}}
    yield "the input", {"x": changed(x, at)}


def check_derivatives(case):
    """J, a and v, in closed form or by automatic differentiation, are the slopes of phi, and rotations hold."""
    cell = case.cell
    state, u = _draw(case, (5,))
    c = cell.coefficients(case.rho)
    found = _spread(autodiff_derivatives(cell, state, u, case.rho), state[0])
    slopes, given = _slopes(case, state, u), cell.derivatives(state, u, c)
    true = dict(_entries(found))
    for key, want in _entries(slopes):
        off = _off(true[key], want, 1e-6)
        require(
            off is None,
            f"phi is not differentiated as it is computed: {_words(key)} is {off}, automatic differentiation against "
            "finite differences. Look for stop_gradient, custom gradients and steps in phi or coefficients",
        )
    if given is not None:
        for key, got in _entries(_spread(given, state[0])):
            off = _off(got, true[key], 1e-10)
            require(
                off is None,
                f"{_words(key)} is wrong in derivatives: {off}, closed form against automatic differentiation of phi. "
                f"{'' if off is None else _explain(key, got, case, true, c)}({_MATH}, section 1)",
            )
    words = {"J": "the previous state", "a": "gate {!r}", "v": "parameter {!r}"}
    groups = {key: (key[0], None if key[0] == "J" else key[1]) for key in true}
    alive = {groups[key] for key, value in true.items() if np.any(value)}
    for kind, name in groups.values():
        what = words[kind].format(name)
        require((kind, name) in alive, f"phi does not depend on {what}: its derivatives are zero everywhere")
    for gate, (source, rotation) in cell.trace_rotations.items():
        where = f"trace_rotations: the rotation of {gate!r} from {source!r} is wrong"
        turned = dense(matvec(rotation, found.a[source]), state[0])
        close(f"{where}: M a[{source!r}] against a[{gate!r}]", turned, found.a[gate], 1e-10)
        close(
            f"{where}: J M against M J, which must agree for it to hold at later steps",
            dense(matmul(found.J, rotation), state[0]),
            dense(matmul(rotation, found.J), state[0]),
            1e-10,
        )


def _explain(key, got, case, true, c):
    """A guess at what is wrong with a closed form: left out, the sign, a factor of the parameters, or a term."""
    kind, name, i = key
    got, want = np.asarray(got), np.asarray(true[key])

    def equal(a, b):
        return np.abs(a - b).max() <= 1e-8 * np.abs(want).max()

    if not np.any(got):
        return "It is left out. "
    if equal(got, -want):
        return "Its sign is wrong. "
    known = {f"c[{name!r}]": value for name, value in c.items()}
    if kind == "v":
        known = {f"exp({name})": tf.exp(case.rho[name]), **known}
    for words, value in known.items():
        if equal(got * value, want):
            return f"It lacks the factor {words}. "
    for words, value in known.items():
        if equal(got, want * value):
            return f"It has the factor {words} once too often. "
    for words, value in known.items():
        for (kind_a, gate, i_a), a in true.items():
            for sign, verb in ((1, "lacks"), (-1, "has, wrongly,")):
                if (kind_a, i_a) == ("a", i) and equal(got + sign * np.asarray(value * a), want):
                    return f"It {verb} the term {words} a[{gate!r}][{i}]. "
    return "Does it count every way from the previous state, that through each gate too? " if kind == "J" else ""


def _entries(local):
    """((kind, name, i), tensor) of every entry of a `Local`: i the component, name the gate's, parameter's or j."""
    for i, row in enumerate(local.J):
        for j, entry in enumerate(row):
            yield ("J", j, i), entry
    for kind, block in (("a", local.a), ("v", local.v)):
        for name, vector in block.items():
            for i, entry in enumerate(vector):
                yield (kind, name, i), entry


def _words(key):
    kind, name, i = key
    if kind == "J":
        return f"J[{i}][{name}] = d s_{i} / d s'_{name}"
    return f"{kind}[{name!r}][{i}] = d s_{i} / d {'u_' if kind == 'a' else ''}{name}"


def _slopes(case, state, u, step=1e-6):
    """Central differences of phi, as a `Local`. Units do not depend on each other, so all are moved at once."""
    cell = case.cell

    def slope(name, values, build):
        sides = [cell.phi(*build({**values, name: values[name] + sign * step})) for sign in (1, -1)]
        return tuple((a - b) / (2 * step) for a, b in zip(*sides, strict=True))

    c = cell.coefficients(case.rho)
    components = dict(enumerate(state))
    columns = [slope(j, components, lambda s: (tuple(s.values()), u, c)) for j in components]
    found = autodiff_derivatives(cell, state, u, case.rho)
    return found._replace(
        J=tuple(zip(*columns, strict=True)),
        a={gate: slope(gate, u, lambda new: (state, new, c)) for gate in found.a},
        v={name: slope(name, case.rho, lambda new: (state, u, cell.coefficients(new))) for name in found.v},
    )


def _off(got, want, rtol):
    """None if `got` is close to `want`, else a text with the entries that differ most."""
    got, want = np.asarray(got), np.asarray(want)
    off = np.abs(got - want)
    if not np.any(off > rtol * max(np.abs(want).max(), 1e-3)):
        return None
    at = np.unravel_index(np.argmax(off), off.shape)
    return f"{got[at]:.6g} instead of {want[at]:.6g}"


# What the cell's functions get and give.


def _draw(case, leading, seed=0):
    """A random state and random pre-activations [*leading, N] in float64."""
    rng = np.random.default_rng((case.seed, seed))
    cell, shape = case.cell, (*leading, case.cell.units)
    state = tuple(tf.constant(rng.normal(size=shape)) for _ in range(cell.components))
    return state, {gate: tf.constant(rng.normal(size=shape)) for gate in cell.gates}


def _call(what, function, *args, where="", **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        hint = _hint(error, function, args)
        raise AssertionError(f"{what} fails{where}: {type(error).__name__}: {error}{hint}") from error


def _hint(error, function, args):
    """A hint to add to the message of TensorFlow or Python; "" if there is none."""
    message = str(error)
    if "tensor but is a" in message or "does not match type" in message:
        return (
            ". A constant must have the dtype of the other operand, float32 or float64: write 0.5, or "
            "tf.cast(0.5, x.dtype), and not tf.constant(0.5), which is float32"
        )
    given = dict(zip(inspect.signature(function).parameters, args, strict=False))
    if isinstance(error, KeyError):
        known = [
            f"{name} has {', '.join(map(repr, value)) or 'none'}"
            for name, value in given.items()
            if isinstance(value, dict)
        ]
        return f", which is none of the names it was given: {'; '.join(known)}"
    if isinstance(error, IndexError) or "unpack" in message:
        sizes = [f"{name} is a tuple of {len(value)}" for name, value in given.items() if isinstance(value, tuple)]
        return f". {'; '.join(sizes)}" if sizes else ""
    return ""


def _shown(value):
    if tf.is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)} in {value.dtype.name}"
    return f"a tuple of length {len(value)}" if isinstance(value, tuple) else repr(value)


def _coefficients(cell, rho):
    c = _call("coefficients", cell.coefficients, rho)
    require(isinstance(c, dict), f"coefficients must return a dict by name, got {_shown(c)}")
    return c


def _tensor(what, value, shape, dtype):
    require(tf.is_tensor(value), f"{what} must be a tensor, got {_shown(value)}")
    got = (tuple(value.shape), value.dtype.name)
    require(got == (tuple(shape), dtype), f"{what} must have shape {tuple(shape)} in {dtype}, got {got[0]} in {got[1]}")


def _tuple(what, value, length):
    fits = isinstance(value, tuple) and len(value) == length
    require(fits, f"{what} must be a tuple of length {length}, got {_shown(value)}")
    return value


def _phi(cell, state, u, c):
    new = _tuple("the new state that phi returns", _call("phi", cell.phi, state, u, c), cell.components)
    for i, value in enumerate(new):
        _tensor(f"component {i} of the state that phi returns", value, state[0].shape, state[0].dtype.name)
    return new


def _derivatives(cell, state, u, c):
    local = _call("derivatives", cell.derivatives, state, u, c)
    if local is None:
        return None
    require(isinstance(local, Local), f"derivatives must return a Local(J, a, v) or None, got {_shown(local)}")
    m = cell.components
    for i, row in enumerate(_tuple("J of derivatives", local.J, m)):
        _tuple(f"J[{i}] of derivatives", row, m)
    for kind, names in (("a", cell.stored_gates), ("v", cell.unit_names)):
        block = getattr(local, kind)
        known = cell.gates if kind == "a" else names
        require(isinstance(block, dict), f"{kind} of derivatives must be a dict by name, got {_shown(block)}")
        require(
            set(names) <= set(block) <= set(known),
            f"derivatives must give {kind} for {', '.join(map(repr, names)) or 'nothing'}, got {sorted(block)}",
        )
        for name, vector in block.items():
            _tuple(f"{kind}[{name!r}] of derivatives", vector, m)
    for key, entry in _entries(local):
        what, fits = _words(key), entry is None or tf.is_tensor(entry)
        require(fits, f"{what} of derivatives must be a tensor or None, got {entry!r}")
        if entry is not None:
            try:
                shape = tf.broadcast_static_shape(entry.shape, state[0].shape)
            except ValueError:
                shape = None
            require(
                shape == state[0].shape and entry.dtype == state[0].dtype,
                f"{what} of derivatives must have, or broadcast to, shape {tuple(state[0].shape)} in "
                f"{state[0].dtype.name}, got {tuple(entry.shape)} in {entry.dtype.name}",
            )
    return local


def _spread(local, like):
    """`local` with every entry a tensor of the shape of `like`."""
    return local._replace(
        J=dense(tuple(local.J), like),
        a={gate: dense(vector, like) for gate, vector in local.a.items()},
        v={name: dense(vector, like) for name, vector in local.v.items()},
    )
