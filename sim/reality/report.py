"""report.md and the printed table: what `validate` found, with the real thing's own spread beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

HEADINGS = ("", "simulated against real", "real against real")


def rows(found: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """For each method: (measure, the simulated run against the real ones, a repeated real run against the first)."""
    for label, result in found["methods"].items():
        yield label, list(_rows_of(result))


def _rows_of(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    ours, repeats = result["agreement"], result["spread"]["against_first"]
    simulated_s = ours[0]["makespan"]["simulated_s"]
    reals_s = ", ".join(f"{seconds:.3f}" for seconds in result["spread"]["makespans_s"])
    yield "makespan", f"{simulated_s:.3f} s, real {reals_s} s", ""
    yield (
        "makespan, error",
        _each(f"{one['makespan']['error']:+.2%}" for one in ours),
        _each(f"{one['makespan']['error']:+.2%}" for one in repeats),
    )
    yield "finish times, p50 / p95", _each(map(_finish, ours)), _each(map(_finish, repeats))
    for group in ours[0]["spans"]:
        name = f"{group} ({ours[0]['spans'][group]['n']}), p50 / p95; total"
        yield name, _each(_span(one, group) for one in ours), _each(_span(one, group) for one in repeats)
    yield "bytes, up", _each(_sent(one, "upload") for one in ours), ""
    yield "bytes, down", _each(_sent(one, "download") for one in ours), ""
    yield "bytes, every transfer", _each("exact" if one["bytes"]["exact"] else "DIFFERENT" for one in ours), ""
    yield (
        "accuracy",
        f"{ours[0]['accuracy']['simulated']:.3f}, real " + ", ".join(f"{one['accuracy']['real']:.3f}" for one in ours),
        "",
    )
    yield (
        "computed for real, share of modelled",
        _each(
            f"device {host['real_share_of_devices']:.0%}, server {host['real_share_of_server']:.0%}"
            for host in result["host"]
        ),
        "",
    )


def _each(texts: Any) -> str:
    return "; ".join(texts)


def _finish(one: dict[str, Any]) -> str:
    return f"{one['finish times']['p50']:.2%} / {one['finish times']['p95']:.2%}"


def _span(one: dict[str, Any], group: str) -> str:
    found = one["spans"].get(group, {"n": 0})
    if not found["n"]:
        return "none"
    missing = f", {found['unmatched']} without a partner" if found.get("unmatched") else ""
    return f"{found['p50']:.2%} / {found['p95']:.2%}; {found['total']:+.2%}{missing}"


def _sent(one: dict[str, Any], kind: str) -> str:
    sent = one["bytes"][kind]
    return (
        f"{sent['simulated']:,}" if sent["simulated"] == sent["real"] else f"{sent['simulated']:,} / {sent['real']:,}"
    )


def conclusion(found: dict[str, Any]) -> str:
    """The ranking in a sentence."""
    ranked = found["ranking"]
    if len(ranked["real"]) < 2:
        return "One method: there is no ranking to check."
    order = " < ".join(ranked["real"])
    if ranked["agrees"]:
        return f"Both worlds rank the methods alike: {order}."
    return f"The worlds DISAGREE on the ranking: real {order}; simulated {' < '.join(ranked['simulated'])}."


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """One table a method, for a terminal."""
    for label, lines in rows(found):
        view = Table(title=label, title_justify="left", box=None, header_style="bold", padding=(0, 1))
        for heading in HEADINGS:
            view.add_column(heading)
        for line in lines:
            view.add_row(*line)
        yield view


def markdown(found: dict[str, Any]) -> str:
    """report.md."""
    about, machine = found["range"], found["machine"]
    parts = [
        f"# {found['scenario']}: simulated against executed",
        f"{found['compress']:.4g} virtual seconds in a real one; {found['repeats']} real runs a method. An error is "
        "(simulated - real) / real; percentiles are of its magnitude.",
        f"Checked range: {about['devices']} devices ({', '.join(about['kinds'])}), backbones "
        f"{', '.join(about['backbones'])}, links {', '.join(about['links'])}, cells {about['cells'] or 'none'}, server "
        f"{about['server']} behind {about['ingress_bps'] or 'unlimited'} bit/s; variation of work: {about['jitter']}. "
        f"Machine: {machine['cores']} cores of {machine['processor']}, {machine['system']}, Python {machine['python']}.",
        conclusion(found),
    ]
    for label, lines in rows(found):
        table = [f"| {' | '.join(line)} |" for line in (HEADINGS, ("---",) * 3, *lines)]
        parts += [f"## {label}", "\n".join(table), f"![both timelines](figures/{label}.png)"]
    return "\n\n".join(parts) + "\n"
