"""docs/devices.md and the README say what the profiles say; `python tests/devices/test_docs.py`
writes the tables anew.
"""

import statistics
from collections import Counter
from pathlib import Path

import pytest

from devices import compute, hardware, profile

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "devices.md"
PROFILES = [profile.load(name) for name in profile.names()]


def table(columns: str, *rows: str) -> str:
    return "\n".join([columns, "|---" * (columns.count("|") - 1) + "|", *rows])


def devices_table() -> str:
    rows = []
    for p in PROFILES:
        w = next(iter(p.engines.values())).power
        radio = f"{w.uplink_w:.3g} / {w.downlink_w:.3g} / {w.idle_w:g}"
        memory = f"{p.memory_bytes / 2**30:.1f} | {p.memory_bandwidth_bytes_per_s / 1e9:.1f}"
        rows.append(f"| `{p.name}` | {p.kind} | {memory} | {radio} | {p.jitter_cv:g} |")
    return table(
        "| profile | kind | RAM, GiB | achieved bandwidth, GB/s | uplink / downlink / idle, W | "
        "jitter CV |",
        *rows,
    )


def engines_table() -> str:
    rows = []
    for p in PROFILES:
        for e in p.engines.values():
            default = p.provenance.get("power.compute_w")
            basis = p.provenance.get(f"engines.{e.name}.compute_w", default).basis
            speed = f"{e.flop_per_s / 1e12:.3g} | {1e3 * e.overhead_s:.3g}"
            mode = f", {e.power_mode}" if e.power_mode else ""
            path = f"{e.description}; {e.precision}{mode}"
            rows.append(
                f"| `{p.name}` | `{e.name}` | {path} | {speed} | {e.power.compute_w:g}, {basis} |"
            )
    return table("| profile | engine | path | TFLOP/s | overhead, ms | power, W |", *rows)


def measured() -> list[tuple[hardware.DeviceProfile, hardware.Measurement, float]]:
    return [
        (p, m, compute.seconds(p, m.engine, m.flop, m.bytes_moved))
        for p in PROFILES
        for m in p.measurements
    ]


def rows_table() -> str:
    rows = []
    for p, m, s in measured():
        error = f"{s / m.seconds - 1:+.1%}".replace("-0.0%", "+0.0%")
        use = "fitted" if m.fitted else "held out"
        rows.append(
            f"| `{p.name}` | `{m.engine}` | {m.workload} | {m.seconds:.3g} | {s:.3g} | {error} | "
            f"{use} |"
        )
    return table(
        "| profile | engine | workload | published, s | modelled, s | error | row |", *rows
    )


def errors_sentence() -> str:
    def median(keep) -> str:
        errors = [abs(s / m.seconds - 1) for p, m, s in measured() if keep(p, m)]
        return f"{statistics.median(errors):.0%} over the {len(errors)}"

    def shared(p, m) -> bool:
        return m.fitted and sum(o.fitted and o.engine == m.engine for o in p.measurements) > 1

    every = [abs(s / m.seconds - 1) for _, m, s in measured()]
    return (
        f"The median error is {statistics.median(every):.0%} over all {len(every)} rows; "
        f"{median(lambda _, m: not m.fitted)} held out, {median(shared)} fitted ones that share an "
        "engine, "
        f"and nothing, by construction, where one row gave an engine its rate."
    )


def bases_sentence() -> str:
    n = Counter(origin.basis for p in PROFILES for origin in p.provenance.values())
    return (
        f"Of the {n.total()} numbers in the device profiles, {n['measured']} are measured, "
        f"{n['published']} published, "
        f"{n['derived']} derived, {n['data-sheet']} from data sheets, {n['recalled']} recalled and "
        f"{n['estimated']} estimated."
    )


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("made", [devices_table, engines_table, rows_table])
def test_the_tables_match_the_files(made):
    assert made() in DOCS.read_text(), f"run `python {Path(__file__).relative_to(ROOT)}`"


@pytest.mark.parametrize("page", ["README.md", "docs/devices.md"])
def test_the_docs_say_how_many_numbers_are_only_estimated(page):
    assert bases_sentence() in flat((ROOT / page).read_text())


def test_the_docs_say_how_far_the_model_is_off():
    assert errors_sentence() in flat(DOCS.read_text())


def write_tables() -> None:
    """Put the tables of now in the place of those that begin with the same header; the sentences
    are written by hand.
    """
    lines = DOCS.read_text().splitlines()
    for made in (devices_table(), engines_table(), rows_table()):
        first = lines.index(made.partition("\n")[0])
        last = next(
            i
            for i in range(first, len(lines) + 1)
            if i == len(lines) or not lines[i].startswith("|")
        )
        lines[first:last] = made.splitlines()
    DOCS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_tables()
    print(bases_sentence(), errors_sentence(), sep="\n")
