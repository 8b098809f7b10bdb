"""What a calibration leaves behind: profile.yaml, report.json, report.md, fit.png, and a table on
the screen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from devices import calibration, profile
from devices.calibration import Errors, Point
from devices.hardware import DeviceProfile
from inputs.units import format_bytes, format_seconds, format_si
from sim.calibrate.device_plan import DeviceMeasurements, Plan
from sim.views.terminal_tables import show

BAR_MEAN_PCT, BAR_P95_PCT = 10.0, 25.0  # of shapes that the fit did not see
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito
BUSY = 0.9  # median share of the processor below which a machine is called busy
FORMULA = "seconds = overhead + FLOP / rate + bytes / bandwidth"


# --- profile.yaml
# ------------------------------------------------------------------------------------------


def write_device_profile(
    measured: DeviceMeasurements, lender: DeviceProfile, name: str, path: Path
) -> DeviceProfile:
    """Write the profile, each number with its source, and return it as `devices.profile` reads
    it.
    """
    path.write_text(
        yaml.safe_dump(_profile(measured, lender, name), sort_keys=False, width=120),
        encoding="utf-8",
    )
    return profile.load(path)


def _profile(m: DeviceMeasurements, lender: DeviceProfile, name: str) -> dict[str, Any]:
    source = (
        f"mobifleet calibrate device --from {m.table}" if m.table else "mobifleet calibrate device"
    )

    def own(value: float, conditions: str, basis: str) -> dict[str, Any]:
        return _number(value, source, f"{conditions}; {m.conditions}", basis)

    def lent(key: str) -> dict[str, Any]:
        origin = lender.provenance[key]
        why = f"not measured here: that of {lender.name} ({origin.conditions})"
        number = _number(origin.value, f"profile {lender.name}: {origin.source}", why, "estimated")
        return {**number, "date": origin.date or origin.version}

    engines = {}
    for engine, found in m.fit.engines.items():
        own_errors = m.errors(False, engine) or m.errors(True, engine)
        seen = "held-out" if m.errors(False, engine) else "own"
        count = sum(p.fitted for p in m.points if p.engine == engine)
        how = (
            f"{FORMULA}, robust fit to {count} workloads; error {_words(own_errors)} {seen} "
            "workloads"
        )
        known = lender.engines.get(engine)
        mode = {"power_mode": known.power_mode} if m.table and known and known.power_mode else {}
        engines[engine] = {
            "description": f"{_engine_words(engine)}, {m.conditions}"
            if not m.table
            else known.description
            if known
            else f"fitted to {m.table}",
            "precision": known.precision if m.table and known else _precision(m),
            "flop_per_s": own(found.flop_per_s, how, "derived"),
            "overhead_s": _number(
                found.overhead_s, f"profile {lender.name}", "too few rows to fit it", "estimated"
            )
            if found.rate_alone
            else own(found.overhead_s, how, "derived"),
            "compute_w": _compute_w(m, engine, lender, own, lent),
            **mode,
        }
    if m.fit.bandwidth_fitted:
        ceiling = (
            f"; copying reaches {format_si(m.copy_bytes_per_s, 'B/s')}"
            if m.copy_bytes_per_s
            else ""
        )
        how = (
            "fitted with the engines: weights read a second, with what each layer costs besides "
            f"FLOP{ceiling}"
        )
        bandwidth = own(m.fit.bandwidth_bytes_per_s, how, "derived")
    elif m.copy_bytes_per_s:
        bandwidth = own(m.copy_bytes_per_s, "copy of a block beyond any cache", "measured")
    else:
        bandwidth = lent("memory_bandwidth_bytes_per_s")
    jitter = calibration.jitter_cv(m.points)
    return {
        "name": name,
        "title": m.title,
        "kind": m.kind,
        "memory_bytes": own(m.memory_bytes, "all that the operating system reports", "measured")
        if m.memory_bytes
        else lent("memory_bytes"),
        "memory_bandwidth_bytes_per_s": bandwidth,
        "engines": engines,
        "power": _power(m, lender, own, lent),
        "jitter_cv": lent("jitter_cv")
        if jitter is None
        else own(jitter, "median over workloads of the CV of equal work", "measured"),
        **_sustained(m, own, lent),
        **({"battery_wh": lent("battery_wh")} if lender.battery_wh and m.table else {}),
        "measurements": [_row(p, source, m) for p in m.points],
    }


def _number(value: float, source: str, conditions: str, basis: str) -> dict[str, Any]:
    short = int(value) if float(value).is_integer() else float(f"{value:.6g}")
    return {
        "value": short,
        "source": source,
        "date": date.today().isoformat(),
        "conditions": conditions,
        "basis": basis,
    }


def _precision(m: DeviceMeasurements) -> str:
    return next((p for p in ("float16", "bfloat16") if f", {p}," in m.conditions), "float32")


def _engine_words(engine: str) -> str:
    return (
        "eager PyTorch, training steps with AdamW"
        if engine == "training"
        else "eager PyTorch, forward passes"
    )


def _compute_w(
    m: DeviceMeasurements, engine: str, lender: DeviceProfile, own: Any, lent: Any
) -> dict[str, Any]:
    """Measured for the engine under the steady load where a counter counts; else what the lender's
    like engine draws.
    """
    if m.compute_w is not None:
        steady = f"steady load of forward passes: {_counted(m)}"
        return own(m.compute_w, steady, "measured" if engine == "simple" else "estimated")
    like = engine if engine in lender.engines else next(iter(lender.engines))
    key = f"engines.{like}.compute_w"
    return lent(key if key in lender.provenance else "power.compute_w")


def _counted(m: DeviceMeasurements) -> str:
    return f"{', '.join(m.energy_sources)} alone, not the whole machine"


def _power(m: DeviceMeasurements, lender: DeviceProfile, own: Any, lent: Any) -> dict[str, Any]:
    """Idle and radio, measured where a counter counts; the radio adds to idle what it adds in the
    lender.
    """
    keys = [key.removeprefix("power.") for key in lender.provenance if key.startswith("power.")]
    states = {key: lent(f"power.{key}") for key in keys if key != "compute_w"}
    if m.compute_w is None or m.idle_w is None:
        return states
    idle_w, lent_idle_w = min(m.idle_w, m.compute_w), states["idle_w"]["value"]
    for state in {"uplink_w", "downlink_w", "uplink_base_w", "downlink_base_w"} & set(states):
        states[state]["value"] = round(idle_w + states[state]["value"] - lent_idle_w, 4)
        states[state]["conditions"] = (
            f"idle as measured + what the radio adds; {states[state]['conditions']}"
        )
    states["idle_w"] = own(idle_w, f"3 s without load: {_counted(m)}", "measured")
    return states


def _sustained(m: DeviceMeasurements, own: Any, lent: Any) -> dict[str, Any]:
    if m.sustained is None:
        return {key: lent(key) for key in ("sustained_factor", "sustained_tau_s")}
    how = sustained_words(m.sustained)
    return {
        "sustained_factor": own(m.sustained.factor, how, "measured"),
        "sustained_tau_s": own(m.sustained.tau_s, how, "measured"),
    }


def sustained_words(s: calibration.Sustained) -> str:
    """One line about how the rate sank."""
    seen = f"{format_seconds(s.observed_s)} of steady load"
    if s.factor >= 1:
        return f"no sinking stood out from the noise (CV {s.noise_cv:.2g}) in {seen}"
    more = "; still sinking at the end, so measure for longer" if s.still_sinking else ""
    return (
        f"fell to {s.factor:.0%} with tau {s.tau_s:.3g} s in {seen} (explains "
        f"{s.explained:.0%}){more}"
    )


def _row(p: Point, source: str, m: DeviceMeasurements) -> dict[str, Any]:
    cold = m.sustained.factor if m.sustained else 1.0
    scaled = f", times {cold:.4g} for the cold device" if cold < 1 else ""
    return {
        "workload": p.workload,
        "engine": p.engine,
        "flop": float(p.flop),
        "bytes_moved": float(p.bytes_moved),
        "seconds": float(f"{p.seconds:.6g}"),
        "fitted": p.fitted,
        "source": f"{source}, median of {p.repeats}{scaled}",
    }


# --- report
# ------------------------------------------------------------------------------------------


def write_report(m: DeviceMeasurements, plan: Plan, console: Console) -> None:
    """report.json, report.md, fit.png and the table on the screen."""
    facts, verdict = _facts(m, plan), _verdict(m)
    report = {
        "name": plan.name,
        "machine": m.title,
        "conditions": m.conditions,
        "date": date.today().isoformat(),
        "formula": FORMULA,
        "engines": {name: asdict(e) for name, e in m.fit.engines.items()},
        "bandwidth_bytes_per_s": m.fit.bandwidth_bytes_per_s,
        "bandwidth_fitted": m.fit.bandwidth_fitted,
        "errors": {
            engine: {
                "held_out": _dict(m.errors(False, engine)),
                "fitted": _dict(m.errors(True, engine)),
            }
            for engine in m.fit.engines
        },
        "bar": {"mean_pct": BAR_MEAN_PCT, "p95_pct": BAR_P95_PCT, "met": verdict[0]},
        "gemm_flop_per_s": m.gemm_flop_per_s,
        "copy_bytes_per_s": m.copy_bytes_per_s,
        "jitter_cv": calibration.jitter_cv(m.points),
        "sustained": asdict(m.sustained) if m.sustained else None,
        "energy_sources": list(m.energy_sources),
        "idle_w": m.idle_w,
        "compute_w": m.compute_w,
        "cpu_share": m.cpu_share,
    }
    (plan.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {plan.name}", "", f"{verdict[1]}", "", "| what | found |", "|---|---|"]
    lines += [f"| {what} | {found} |" for what, found in facts]
    lines += ["", "![measured against predicted](fit.png)", ""]
    (plan.folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    predicted_s = [m.fit.seconds(p) for p in m.points]
    held = m.errors(False)
    title = (
        f"held-out error: mean {held.mean_pct:.1f} %, p95 {held.p95_pct:.1f} %"
        if held
        else "nothing held out"
    )
    draw_fit(m.points, predicted_s, f"{plan.name}, {title}", plan.folder / "fit.png")
    _show(
        f"{plan.name}: {m.title}", [*facts, ("written to", f"{plan.folder}/profile.yaml")], console
    )
    console.print(verdict[1])


def _facts(m: DeviceMeasurements, plan: Plan) -> list[tuple[str, str]]:
    rows = [("machine", m.title), ("conditions", m.conditions)]
    for name, e in m.fit.engines.items():
        share = (
            f", {e.flop_per_s / m.gemm_flop_per_s:.0%} of a matrix product's"
            if m.gemm_flop_per_s
            else ""
        )
        lent = " (lent)" if e.rate_alone else ""
        rows.append(
            (
                f"engine {name}",
                f"{format_si(e.flop_per_s, 'FLOP/s')}{share}; {_ms(e.overhead_s)} overhead{lent}",
            )
        )
        rows.append(("  held-out error", _words(m.errors(False, name))))
        rows.append(("  error of fitted ones", _words(m.errors(True, name))))
    how = "fitted" if m.fit.bandwidth_fitted else "not fitted: the bytes vary too little"
    rows.append(("bandwidth", f"{format_si(m.fit.bandwidth_bytes_per_s, 'B/s')} ({how})"))
    if m.gemm_flop_per_s and m.copy_bytes_per_s:
        ceilings = (
            f"{format_si(m.gemm_flop_per_s, 'FLOP/s')}, {format_si(m.copy_bytes_per_s, 'B/s')}"
        )
        rows.append(("ceilings (product, copy)", ceilings))
    if m.memory_bytes:
        rows.append(("memory", format_bytes(m.memory_bytes)))
    jitter = calibration.jitter_cv(m.points)
    rows.append(
        ("jitter, CV of equal work", "no repeats, so lent" if jitter is None else f"{jitter:.3f}")
    )
    if m.table is None:
        rows.append(
            ("steady load", sustained_words(m.sustained) if m.sustained else "not measured")
        )
        counted = (
            f"idle {m.idle_w:.1f} W, computing {m.compute_w:.1f} W ({', '.join(m.energy_sources)})"
            if m.compute_w
            else ""
        )
        rows.append(
            (
                "energy",
                counted or f"no counter on this machine: power is that of {plan.lender().name}",
            )
        )
    else:
        rows.append(("memory, power", f"lent by {plan.like}"))
    if m.cpu_share < BUSY:
        rows.append(
            ("share of the processor", f"{m.cpu_share:.0%}: other programs ran, or threads waited")
        )
    return rows


def _verdict(m: DeviceMeasurements) -> tuple[bool | None, str]:
    """Whether the held-out shapes are within the bar (None: nothing was held out), and a line that
    says so.
    """
    held = m.errors(False)
    if held is None:
        return (
            None,
            "too few workloads to hold any out; own workloads come out within "
            f"{_words(m.errors(True))}",
        )
    met = held.mean_pct <= BAR_MEAN_PCT and held.p95_pct <= BAR_P95_PCT
    bar = (
        f"the bar of {BAR_MEAN_PCT:g} % mean and {BAR_P95_PCT:g} % p95 is "
        f"{'met' if met else 'missed'}"
    )
    why = (
        "; close other programs, or take --threads 1, which is timed by processor time"
        if not met and m.cpu_share < BUSY
        else ""
    )
    return met, f"held-out error {_words(held)}: {bar}{why}"


def _words(e: Errors | None) -> str:
    return (
        "none"
        if e is None
        else f"mean {e.mean_pct:.1f} %, p95 {e.p95_pct:.1f} %, "
        f"worst {e.worst_pct:.1f} % of {e.count}"
    )


def _dict(e: Errors | None) -> dict[str, float] | None:
    return asdict(e) if e else None


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _show(title: str, rows: Sequence[tuple[str, str]], console: Console) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for what, found in rows:
        table.add_row(what, found)
    show(table, console)


def write_validation(
    old: DeviceProfile,
    points: Sequence[Point],
    predicted_s: Sequence[float],
    found: Errors,
    cpu_share: float,
    machine: str,
    folder: Path,
    console: Console,
) -> None:
    """validation.json, validation.png, and on the screen each shape with how far the profile is
    off.
    """
    off = [100 * (p_s / p.seconds - 1) for p, p_s in zip(points, predicted_s, strict=True)]
    order = sorted(range(len(points)), key=lambda i: -abs(off[i]))
    shapes: list[dict[str, Any]] = [
        {
            "workload": points[i].workload,
            "measured_s": points[i].seconds,
            "predicted_s": predicted_s[i],
            "off_pct": off[i],
        }
        for i in order
    ]
    report = {
        "profile": old.name,
        "machine": machine,
        "date": date.today().isoformat(),
        "cpu_share": cpu_share,
    }
    report |= {"errors": asdict(found), "shapes": shapes}
    (folder / "validation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    words = f"{old.name} is off by {_words(found)} shapes; {_direction(found)}"
    title = f"{old.name}, off by {found.mean_pct:.1f} % in the mean, p95 {found.p95_pct:.1f} %"
    draw_fit(points, predicted_s, title, folder / "validation.png")
    table = Table(
        title=f"the worst of {len(points)} shapes (all in {folder}/validation.json)",
        title_justify="left",
        box=None,
    )
    for heading in ("workload", "measured", "profile says", "off by"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for s in shapes[:10]:
        table.add_row(
            s["workload"], _ms(s["measured_s"]), _ms(s["predicted_s"]), f"{s['off_pct']:+.0f} %"
        )
    show(table, console)
    rate = old.provenance[f"engines.{next(iter(old.engines))}.flop_per_s"]
    console.print(f"profile made {rate.date or rate.version}: {rate.conditions}", soft_wrap=True)
    console.print(
        f"now: {machine}" + (f"; got {cpu_share:.0%} of the processor" if cpu_share < BUSY else ""),
        soft_wrap=True,
    )
    console.print(words, soft_wrap=True)


def _direction(e: Errors) -> str:
    if abs(e.bias_pct) < 2:
        return "neither slower nor faster on the whole"
    kind = (
        "the machine is faster now than it says"
        if e.bias_pct > 0
        else "the machine is slower now than it says"
    )
    return f"{e.bias_pct:+.1f} % on the whole: {kind}"


# --- figure
# ------------------------------------------------------------------------------------------


def draw_fit(points: Sequence[Point], predicted_s: Sequence[float], title: str, path: Path) -> None:
    """Predicted against measured seconds on logarithmic axes; shapes held out are hollow, the band
    is 25 %.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sim.views.page import STYLE
    from sim.views.saving_figures import save

    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        ends = [
            min([*predicted_s, *(p.seconds for p in points)]) / 1.5,
            max([*predicted_s, *(p.seconds for p in points)]) * 1.5,
        ]
        axes.fill_between(
            ends,
            [0.75 * s for s in ends],
            [1.25 * s for s in ends],
            color="#EEEEEE",
            label="within 25 %",
        )
        axes.plot(ends, ends, color="#888888", linewidth=0.6)
        names = dict.fromkeys(p.engine for p in points)
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        for engine, colour in colours.items():
            for fitted in (True, False):
                mine = [
                    i for i, p in enumerate(points) if p.engine == engine and p.fitted == fitted
                ]
                if mine:
                    axes.scatter(
                        [points[i].seconds for i in mine],
                        [predicted_s[i] for i in mine],
                        s=14,
                        linewidths=0.8,
                        edgecolors=colour,
                        facecolors=colour if fitted else "none",
                        label=f"{engine}, {'fitted' if fitted else 'held out'} ({len(mine)})",
                    )
        axes.set(
            xscale="log",
            yscale="log",
            xlim=ends,
            ylim=ends,
            xlabel="measured, s",
            ylabel="predicted, s",
        )
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        axes.set_title(title, wrap=True)
        save(figure, path)
