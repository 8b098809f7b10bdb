"""report.md and the printed table: what `validate` found, with the real thing's own spread beside
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table

from sim.views import escaping

HEADINGS = ("", "simulated, and its error", "real, and its own spread")


def rows(found: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """For each method: (measure, the simulated run against the real ones, the later real runs
    against the first).
    """
    for label, result in found["methods"].items():
        yield label, list(_rows_of(result))


def _rows_of(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Percentiles are those of the worst real run, totals are means over the real runs;
    validation.json has each.
    """
    ours, repeats = result["agreement"], result["spread"]["against_first"]
    reals_s = ", ".join(f"{seconds:.3f}" for seconds in result["spread"]["makespans_s"])
    yield "makespan", f"{ours[0]['makespan']['simulated_s']:.3f} s", f"{reals_s} s"
    errors = [_each(f"{one['makespan']['error']:+.2%}" for one in ones) for ones in (ours, repeats)]
    yield "makespan, error", errors[0], errors[1]
    finish = [_percentiles([one["finish times"] for one in ones]) for ones in (ours, repeats)]
    yield "finish times, p50 / p95", finish[0], finish[1]
    for group in ours[0]["spans"]:
        mine, theirs = (
            [one["spans"][group] for one in ones if group in one["spans"]]
            for ones in (ours, repeats)
        )
        yield f"{group} ({mine[0]['n']}), p50 / p95; total", _spans(mine), _spans(theirs)
    for kind in ("upload", "download"):
        yield (
            f"bytes, {kind}s",
            f"{ours[0]['bytes'][kind]['simulated']:,}",
            _alike(f"{one['bytes'][kind]['real']:,}" for one in ours),
        )
    yield (
        "bytes, every transfer",
        _alike("exact" if one["bytes"]["exact"] else "DIFFERENT" for one in ours),
        "",
    )
    yield (
        "accuracy",
        f"{ours[0]['accuracy']['simulated']:.3f}",
        _alike(f"{one['accuracy']['real']:.3f}" for one in ours),
    )
    shares = [
        max(host[f"real_share_of_{who}"] for host in result["host"])
        for who in ("devices", "server")
    ]
    yield (
        "real computing in the modelled, at most",
        "",
        f"device {shares[0]:.0%}, server {shares[1]:.0%}",
    )


def _each(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _alike(texts: Iterable[str]) -> str:
    return _each(dict.fromkeys(texts))


def _percentiles(found: list[dict[str, Any]]) -> str:
    found = [one for one in found if one["n"]]
    return (
        f"{max(one['p50'] for one in found):.2%} / {max(one['p95'] for one in found):.2%}"
        if found
        else ""
    )


def _spans(found: list[dict[str, Any]]) -> str:
    if not any(one["n"] for one in found):
        return ""
    missing = max(one.get("unmatched", 0) for one in found)
    total = sum(one["total"] for one in found if one["n"]) / len(found)
    return f"{_percentiles(found)}; {total:+.2%}" + (
        f"; {missing} without a partner" if missing else ""
    )


def _named(names: Iterable[str]) -> str:
    return ", ".join(map(escaping.markdown, names))


def conclusion(found: dict[str, Any]) -> str:
    """The ranking in a sentence."""
    ranked = found["ranking"]
    if len(ranked["real"]) < 2:
        return "One method: there is no ranking to check."
    order = " < ".join(ranked["real"])
    if ranked["agrees"]:
        return f"Both worlds rank the methods alike: {order}."
    return (
        f"The worlds DISAGREE on the ranking: real {order}; simulated "
        f"{' < '.join(ranked['simulated'])}."
    )


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """One table a method, for a terminal."""
    for label, lines in rows(found):
        view = Table(
            title=label, title_justify="left", box=None, header_style="bold", padding=(0, 1)
        )
        for heading in HEADINGS:
            view.add_column(heading)
        for line in lines:
            view.add_row(*line)
        yield view


def markdown(found: dict[str, Any]) -> str:
    """report.md."""
    about, machine = found["range"], found["machine"]
    parts = [
        f"# {escaping.markdown(found['scenario'])}: simulated against executed",
        f"{found['compress']:.4g} virtual seconds in a real one; {found['repeats']} real runs a "
        "method. An error is "
        "(simulated - real) / real; percentiles are of its magnitude.",
        f"Checked range: {about['devices']} devices ({_named(about['kinds'])}), backbones "
        f"{_named(about['backbones'])}, "
        f"links {_named(about['links'])}, cells "
        f"{escaping.markdown(str(about['cells'] or 'none'))}, server "
        f"{about['server']} behind {about['ingress_bps'] or 'unlimited'} bit/s; variation of work: "
        f"{about['jitter']}. "
        f"Machine: {machine['cores']} cores of {machine['processor']}, {machine['system']}, Python "
        f"{machine['python']}.",
        escaping.markdown(conclusion(found)),
    ]
    for label, lines in rows(found):
        table = [f"| {' | '.join(line)} |" for line in (HEADINGS, ("---",) * 3, *lines)]
        parts += [
            f"## {escaping.markdown(label)}",
            "\n".join(table),
            f"![both timelines](figures/{label}.png)",
        ]
    return "\n\n".join(parts) + "\n"
