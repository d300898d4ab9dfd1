"""The tables, the project's goals and the figure, from what the harness measured."""

from benchmarks import common

_NAMES = {
    "dmlab": "DMLab",
    "atari": "Atari",
    "rtu_ppo": "RTU-PPO",
    "wide_rtu": "wide RTU",
    "stream": "streaming, an update at every step",
}


def fastest(limits, kind):
    """(framework, median seconds, work) of the fastest way measured; None if there is none."""
    found = ((name.partition("_"), row) for name, row in limits.items())
    rows = [(name[2], row["median"], row["work"]) for name, row in found if name[0] == kind]
    return min(rows, key=lambda row: row[1]) if rows else None


def tables(results):
    """Markdown: a table for each shape, the machine's limits in it, the streaming update, and the goals."""
    parts = []
    for name, found in results["shapes"].items():
        parts += [f"### {_NAMES[name]}: {_sizes(found['size'])}", "", *_shape_table(name, found), ""]
    if "update" in results:
        parts += ["### streaming.update at the DMLab shape, K = 1", "", *_update_lines(results["update"]), ""]
    if "context" in results:
        parts += [f"### One update against its context, {_sizes(results['context']['size'])}", ""]
        parts += [*_context_table(results["context"]), ""]
    reached = [] if results["quick"] else goals(results)
    if reached:
        met = {True: "met", False: "missed"}
        rows = [
            [text, f"{sense} {bound:g}", f"{value:.3g}", met[value <= bound if sense == "at most" else value >= bound]]
            for text, value, sense, bound in reached
        ]
        parts += ["### Goals", "", *common.table(["goal", "bound", "measured", ""], rows), ""]
    if results["left_out"]:
        parts += ["Left out:", "", *(f"- {name}: {why}" for name, why in results["left_out"].items()), ""]
    return "\n".join(parts)


def goals(results):
    """What the project promises: [(text, value, "at most" or "at least", bound)], as far as measured."""
    found = []

    def goal(text, value, sense, bound):
        if value is not None:
            found.append((text, value, sense, bound))

    for shape, of_lstm, of_torch in (("dmlab", 0.22, 35), ("atari", 0.33, 15)):
        if shape not in results["shapes"]:
            continue
        rows, limits = (results["shapes"][shape][part] for part in ("rows", "limits"))
        rtrl, tbptt = _best(rows, "elstm_rtrl"), _best(rows, "elstm_tbptt")
        goal(f"{_NAMES[shape]}: eLSTM, RTRL / keras LSTM", _quotient(rtrl, rows.get("keras_lstm")), "at most", of_lstm)
        goal(f"{_NAMES[shape]}: torch eLSTM / eLSTM", _quotient(rows.get("torch_elstm"), rtrl), "at least", of_torch)
        if shape == "dmlab":
            goal("DMLab: eLSTM, truncated BPTT / keras LSTM", _quotient(tbptt, rows.get("keras_lstm")), "at most", 0.18)
            goal("DMLab: eLSTM, RTRL / torch LSTM", _quotient(rtrl, rows.get("torch_lstm")), "at most", 1)
            copy, trace = fastest(limits, "copy"), fastest(limits, "trace")
            price = (rtrl["median"] - tbptt["median"]) / (trace[1] + 1.5 * copy[1])
            goal("DMLab: (RTRL - truncated BPTT) / (trace GEMM + 1.5 copies of S)", price, "at most", 1.25)
    for shape, bound in (("atari", 40), ("wide_rtu", 30)):
        if shape in results["shapes"]:
            rows = results["shapes"][shape]["rows"]
            for name, way in (("jax_rtu", "gradient at each step"), ("jax_rtu_scan", "gradient of the scan")):
                value = _quotient(rows.get(name), _best(rows, "rtu_rtrl"))
                goal(f"{_NAMES[shape]}: JAX RTU, {way} / RTU", value, "at least", bound)
    if "update" in results:
        share, growth = _update_figures(results["update"])
        goal("streaming.update: share of the rate of a copy of S", share, "at least", 0.7)
        goal("streaming: growth of memory over the run / S", growth, "at most", 0.2)
    if "stream" in results["shapes"]:
        rows = results["shapes"]["stream"]["rows"]
        ours = [rows[name] for name in ("stream_auto", "stream_native", "stream_xla") if name in rows]
        ours = min(ours, key=lambda row: row["median"])
        for name, bound in (("jax_stream", 1.5), ("jax_stream_carried", 1)):
            peer = rows.get(name)
            goal(f"streaming: steps a second / {peer and peer['label']}", _quotient(peer, ours), "at least", bound)
    return found


def figure(results, path):
    """Draws the cost of one update against the length of its context."""
    drawing, axis = common.figure((6.4, 4))
    for name, row in results["context"]["rows"].items():
        steps = [point["steps"] for point in row["contexts"]]
        low, middle, high = ([1e3 * point[key] for point in row["contexts"]] for key in ("lower", "median", "upper"))
        order = 3 if "rtrl" in name else 2
        (line,) = axis.plot(steps, middle, marker="o", markersize=3, label=row["label"], zorder=order)
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="context of one update, steps", ylabel="one training step, ms")
    axis.set_title(_sizes(results["context"]["size"]), fontsize=10)
    axis.set_xticks(steps, [str(step) for step in steps])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    drawing.savefig(path, dpi=130)


def _sizes(size):
    return f"B {size['batch']}, N {size['units']}, D {size['inputs']}, T {size['steps']}"


def _shape_table(name, found):
    stream, rows = name == "stream", []
    for row in sorted(found["rows"].values(), key=lambda row: row["median"]):
        times = [row["median"], row["lower"], row["upper"]]
        if stream:
            times = [row["steps_in_one"] / time for time in (times[0], times[2], times[1])]
        middle, low, high = (f"{time:,.0f}" if stream else f"{1e3 * time:.3g}" for time in times)
        ratio = f"{row['ratio']:.3g}" if "ratio" in row else ""
        peak = f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else ""
        rows.append([row["label"], middle, f"{low} to {high}", ratio, peak])
    median = f"median, {'steps/s' if stream else 'ms'}"
    lines = common.table(["training step", median, "quartiles", "time x keras LSTM", "peak memory, MB"], rows)
    limits = found["limits"]
    if limits:
        copy, gemm, trace = (fastest(limits, kind) for kind in ("copy", "gemm", "trace"))
        lines += [
            "",
            f"The machine in the same run: copy of S {1e3 * copy[1]:.3g} ms ({copy[2] / copy[1] / 1e9:.1f} GB/s both "
            f"ways, {copy[0]}), GEMM {gemm[2] / gemm[1] / 1e9:.0f} GFLOP/s ({gemm[0]}), trace GEMM "
            f"{1e3 * trace[1]:.3g} ms ({trace[2] / trace[1] / 1e9:.0f} GFLOP/s, {trace[0]}).",
        ]
    gaps = [row["loss_gap"] for row in found["rows"].values() if "loss_gap" in row]
    if gaps:
        lines += [
            "",
            f"On the same data the losses of the first steps of the RTU loops differ by {max(gaps):.1e} at most.",
        ]
    return lines


def _update_lines(found):
    share, growth = _update_figures(found)
    rows = []
    for row in [*found["rows"].values(), *found["limits"].values()]:
        one = 1e3 / row.get("steps_in_one", 1)
        middle, low, high = (f"{one * row[key]:.3g}" for key in ("median", "lower", "upper"))
        rows.append([row["label"], middle, f"{low} to {high}"])
    grown = found["growth"]
    return [
        *common.table(["", "median, ms", "quartiles"], rows),
        "",
        f"S has {found['trace_bytes'] / 1e6:.1f} MB. The update runs at {100 * share:.0f} % of the fastest copy. Over "
        f"{grown['steps']} steps resident memory grew by {grown['resident'] / 1e6:.2f} MB ({growth:.3f} of S), its "
        f"peak by {grown['peak'] / 1e6:.2f} MB.",
    ]


def _update_figures(found):
    """Share of the copy's rate (2 |S| bytes counted for either), and growth relative to |S|."""
    update = found["rows"]["update"]
    share = fastest(found["limits"], "copy")[1] / (update["median"] / update["steps_in_one"])
    return share, found["growth"]["resident"] / found["trace_bytes"]


def _context_table(found):
    of_all = list(found["rows"].values())
    rows = [
        [points[0]["steps"], *(f"{1e3 * point['median']:.3g} ms" for point in points)]
        for points in zip(*(row["contexts"] for row in of_all), strict=True)
    ]
    return common.table(["context", *(row["label"] for row in of_all)], rows)


def _best(rows, way):
    """The native row, or the twin's if there is none."""
    return rows.get(f"{way}_native") or rows.get(f"{way}_twin")


def _quotient(above, below):
    return above["median"] / below["median"] if above and below else None
