"""The table of profiles in docs/devices.md says what the profiles say."""

from collections import Counter
from pathlib import Path

import pytest

from devices import compute, profile

DOCS = Path(__file__).parents[2] / "docs" / "devices.md"


def table_row(name: str) -> str:
    p = profile.load(name)
    rates = ", ".join(f"{e.name} {e.flop_per_s / 1e12:.3g}" for e in p.engines.values())
    w = p.engine("simple").power
    return (
        f"| `{name}` | {p.kind} | {p.memory_bytes / 2**30:.1f} | {p.memory_bandwidth_bytes_per_s / 1e9:.1f} | {rates} "
        f"| {w.compute_w:g} / {w.uplink_w:.3g} / {w.downlink_w:.3g} / {w.idle_w:g} | {p.jitter_cv:g} |"
    )


def held_out_rows() -> list[str]:
    rows = []
    for name in profile.names():
        p = profile.load(name)
        for m in p.measurements:
            if not m.fitted:
                s = compute.seconds(p, m.engine, m.flop, m.bytes_moved)
                workload = m.workload.split(",")[0]
                rows.append(f"| `{name}` | {workload} | {m.seconds:.3g} | {s:.3g} | {s / m.seconds - 1:+.1%} |")
    return rows


@pytest.mark.parametrize("name", profile.names())
def test_the_table_of_profiles_matches_the_files(name):
    assert table_row(name) in DOCS.read_text()


def test_the_table_of_held_out_errors_matches_the_files():
    assert held_out_rows()
    for row in held_out_rows():
        assert row in DOCS.read_text()


def test_the_docs_say_how_many_numbers_are_only_estimated():
    bases = Counter(origin.basis for name in profile.names() for origin in profile.load(name).provenance.values())
    sentence = (
        f"Of the {bases.total()} numbers shipped, {bases['measured']} are measured, {bases['derived']} derived, "
        f"{bases['data-sheet']} data-sheet, {bases['recalled']} recalled and {bases['estimated']} estimated."
    )
    assert sentence in " ".join(DOCS.read_text().split())
