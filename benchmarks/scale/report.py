"""Tables and figure of the measurements."""

from benchmarks import common
from benchmarks.scale import model

PRESET = "atari_r2ac_cpu"
STREAMS = 16  # of each actor in the model
FASTER = (1, 30)  # times as fast as the measured learner


def tables(found):
    """The measurements, what the simulation makes of them, and the model, as Markdown."""
    parts = [_header(found), _sizes(found), _learner(found), _store(found)]
    parts += [_waiting(streams, rows) for streams, rows in found["waiting"].items()]
    if found["atari"]:
        parts += [_atari(found), _simulation(found), *(_model(found, faster) for faster in FASTER)]
    return "\n\n".join(parts) + "\n"


def _header(found):
    before, after = (", ".join(f"{x:.1f}" for x in found[name]) for name in ("load_before", "load_after"))
    return (
        f"{found['cores']} cores; {found['when']}; medians of {found['rounds']} rounds; load averages (1, 5, 15 "
        f"minutes) before {before}, after {after}."
    )


def _section(title, head, rows):
    return "\n".join([f"### {title}", "", *common.table(head, rows)])


def _kb(size):
    return f"{size / 1e3:,.1f}"


def _sizes(found):
    rows = []
    for name, size in found["sizes"].items():
        step = model.rollout_bytes(size) / size["steps"]
        sizes = map(_kb, (size["frames"], size["else"], step, size["weights"], size["traces"]))
        computed = ", computed from shapes" if size["computed"] else ""
        rows.append([f"{name}{computed}", size["streams"], size["steps"], *sizes])
    head = ["preset", "B", "T", "frames", "all else", "both, an agent step", "weights, all", "traces, a stream"]
    return _section("Bytes (kB; of one stream's rollout unless the column says otherwise)", head, rows)


def _learner(found):
    rows = []
    for name, row in found["learner"].items():
        fixed, per_stream = model.fit(found, name)
        steps = found["sizes"][name]["steps"]
        for streams, seconds, cores in zip(row["streams"], row["seconds"], row["cores"], strict=True):
            error = (fixed + per_stream * streams) / seconds - 1
            rows.append([
                name, streams, f"{1e3 * seconds:.1f}", f"{cores:.2f}", f"{streams * steps / seconds:,.0f}",
                f"{1e3 * fixed:.1f} + {1e3 * per_stream:.2f} B", f"{100 * error:+.0f} %",
            ])  # fmt: skip
    head = ["preset", "B", "update, ms", "cores used", "agent steps a second", "fit, ms", "its error"]
    return _section("A learner's update", head, rows)


def _store(found):
    store = found["store"]
    rows = [
        [_kb(size), *(f"{1e6 * store[what][i]:,.0f}" for what in ("put", "make", "get"))]
        for i, size in enumerate(store["sizes"])
    ]
    waits = ", ".join(f"{1e3 * s:.2f} ms on {n:,}" for n, s in zip(store["pending"], store["wait"], strict=True))
    joining = zip(found["joining"]["rollouts"], found["joining"]["seconds"], strict=True)
    joins = ", ".join(f"{1e3 * s:.1f} ms from {n}" for n, s in joining)
    head = ["kB", "`ray.put`", "call of an actor that returns as much", "`ray.get` of it"]
    calls = (
        f"A call of many that returns nothing: {1e6 * store['call']:.0f} µs, both sides. `ray.wait` without time-out "
        f"over pending calls: {waits}. A batch ({_kb(found['joining']['bytes'])} kB) made of rollouts: {joins}."
    )
    return _section("Ray's objects and calls (µs)", head, rows) + f"\n\n{calls}"


def _waiting(streams, rows):
    first = rows["1"]["rate"]
    table = [
        [
            name if name != "alone" else "1, nobody learns", f"{row['rate']:.1f}",
            f"{100 * row['rate'] / (first * (1 if name == 'alone' else int(name))):.1f} %",
            f"{row['own']:.2f}", f"{row['busy']:.2f}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    head = ["actors", "agent steps a second", "of linear", "cores used", "busy on the machine"]
    which = f"{streams} streams, each of which" if streams != "1" else "1 stream that"
    return _section(f"Actors of {which} waits 20 ms a step", head, table)


def _atari(found):
    single = found["atari"]["single machine"]["rate"]
    rows = []
    for name, row in found["atari"].items():
        extra = row["extra"]
        rows.append([
            name, f"{row['rate']:,.0f}", f"{min(row['rates']):,.0f} to {max(row['rates']):,.0f}",
            f"{row['rate'] / single:.2f}", f"{row['own']:.2f}", f"{row['busy']:.2f}",
            f"{extra['lag']:.2f}" if extra else "", f"{extra['queue']:.1f}" if extra else "",
        ])  # fmt: skip
    head = ["", "agent steps a second", "rounds", "of single", "cores used", "busy on the machine", "lag", "queue"]
    return _section("Breakout, `atari_r2ac_cpu`", head, rows)


def _simulation(found):
    rows = [
        [name, f"{measured:,.0f}", f"{predicted:,.0f}", f"{100 * (predicted / measured - 1):+.0f} %"]
        for name, measured, predicted in model.predictions(found, PRESET)
    ]
    return _section("Simulated", ["", "measured", "simulated", "error"], rows)


def _model(found, faster):
    rate, cores = model.actor_rate(found, STREAMS)
    rows = []
    for actors in (48, 1_000, 10_000):
        for learners in (1, 4, 16, 64):
            if learners > actors:
                continue
            load = model.load(found, PRESET, rate, STREAMS, actors, learners, faster)
            thread = load.learning + load.process  # one after the other
            shared = load._asdict() | {"learning" if load.learning > load.process else "process": thread}
            worst = max(shared, key=shared.get)
            lag = model.lag(found["sizes"][PRESET], STREAMS, actors, learners)
            left = actors * rate / max(1.0, thread, load.rollouts, load.weights)
            rows.append([
                f"{actors:,}", learners, *(_share(x) for x in load), worst if shared[worst] > 1 else "nothing",
                f"{left:,.0f}", _share(lag),
            ])  # fmt: skip
    head = ["actors", "learners", *load._fields, "breaks first", "agent steps a second left", "lag"]
    title = "as measured" if faster == 1 else f"{faster} times as fast (assumed)"
    actors = f"actors of {STREAMS} streams at {rate:,.0f} agent steps a second ({cores:.1f} cores) each"
    return _section(f"The model: a learner {title}, {actors}", head, rows)


def _share(x):
    return f"{x:.2g}" if x < 10 else f"{x:,.0f}"


def figure(found, path):
    """Measured points, simulated points, and the predicted curves for more actors."""
    drawing, (left, right) = common.figure((10, 4), columns=2)
    rows = model.predictions(found, PRESET)
    for streams, color in zip(found["waiting"], ("C0", "C1"), strict=False):
        chosen = [row for row in rows if row[0].startswith("waiting") and row[0].endswith(f" of {streams}")]
        numbers = [int(name.split()[1]) for name, _, _ in chosen]
        left.plot(numbers, [chosen[0][1] * n for n in numbers], ":", color="gray")
        label = f"{streams} streams each, simulated"
        left.plot(numbers, [predicted for _, _, predicted in chosen], color=color, label=label)
        left.plot(numbers, [measured for _, measured, _ in chosen], "o", color=color, label="measured")
    left.set(xlabel="actors", ylabel="agent steps a second", title="20 ms of waiting a step, 2 cores for all")
    left.legend()
    numbers = [1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256]
    for faster in FASTER:
        rates = model.curve(found, PRESET, STREAMS, numbers, faster)
        label = "learner as measured" if faster == 1 else f"learner {faster} times as fast (assumed)"
        right.loglog(numbers, rates, label=label)
    measured = [(int(name.split()[0]), found["atari"][name]["rate"]) for name in found["fleets"]]
    right.loglog(*zip(*measured, strict=True), "o", label="measured, all on the learner's 2 cores")
    right.set(xlabel="actors of 16 streams, on machines of their own", title="Breakout, atari_r2ac_cpu: simulated")
    right.legend()
    drawing.savefig(path, dpi=100)
