"""Tables on a terminal: no word is broken or cut, however narrow it is."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from sim.cli.listing import LISTINGS
from sim.views.terminal_tables import show


def printed(table: Table, width: int) -> list[str]:
    file = io.StringIO()
    show(table, Console(file=file, width=width, markup=False, emoji=False))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [72, 80, 120])
@pytest.mark.parametrize("what", LISTINGS)
def test_a_narrow_list_has_the_words_of_a_wide_one(what, width):
    wide, narrow = printed(LISTINGS[what](), 500), printed(LISTINGS[what](), width)
    words = set(" ".join(wide).split())
    assert words == set(" ".join(narrow).split())
    assert len(words) > 10 and max(map(len, narrow)) <= width


def table(columns: int, cell: str, title: str = "") -> Table:
    made = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    made.add_column("", min_width=10)
    for number in range(columns):
        made.add_column(f"fedavg-bitfit-linear-{number}", justify="right", min_width=14)
    made.add_row("time", *[cell] * columns)
    made.caption = "the end"
    return made


def test_columns_without_room_stand_below_behind_the_first():
    lines = printed(table(5, "1 s", title="costs"), 80)  # 12 and 24 characters each
    text = "\n".join(lines)
    assert [line.split() for line in lines if "fedavg" in line] == [
        ["fedavg-bitfit-linear-0", "fedavg-bitfit-linear-1"],
        ["fedavg-bitfit-linear-2", "fedavg-bitfit-linear-3"],
        ["fedavg-bitfit-linear-4"],
    ]
    assert (text.count("time"), text.count("costs"), text.count("the end")) == (3, 3, 1)
    assert printed(table(5, "1 s"), 132)[1].split() == ["time"] + ["1", "s"] * 5


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        ("2 min 42 s (56.6 s to 4 min 19 s)", ["2 min 42 s", "(56.6 s to", "4 min 19 s)"]),
        ("12.41 GFLOP ± 2.52 GFLOP", ["12.41 GFLOP", "± 2.52 GFLOP"]),
        ("1 h 2 min\n+9 min 1 s", ["1 h 2 min", "+9 min 1 s"]),
    ],
)
def test_a_number_stays_with_its_unit(cell, lines):
    made = Table(box=None, padding=(0, 1))
    made.add_column("", min_width=4)
    for _ in range(3):
        made.add_column("x", justify="right", min_width=12)
    made.add_row("a", *[cell] * 3)
    shown = [line[-13:].strip() for line in printed(made, 48)]
    assert shown[1:] == lines


def test_what_is_longer_than_a_line_goes_on_in_the_next():
    made = Table(box=None, show_header=False)
    made.add_row("name", "x" * 100)
    lines = printed(made, 40)
    assert "".join(lines).count("x") == 100 and max(map(len, lines)) <= 40


@pytest.mark.parametrize("width", [80, 100])
def test_a_comparison_keeps_its_names_whole(width, mobifleet, monkeypatch, scenario_file):
    methods = {
        "fed-mobillm-adapters-alone": {"kind": "fed-mobillm"},
        "fedavg-bitfit-linear-head": {"kind": "fedavg-bitfit", "rounds": 2},
        "centralised-logistic-regression": {"kind": "centralised"},
    }
    scenario = scenario_file(compare={"methods": methods})
    shown = Console(width=width, markup=False, emoji=False)
    monkeypatch.setattr("sim.cli.compare.console", shown)
    said = mobifleet("compare", scenario, "--dry")
    assert said.code == 0, said.err
    assert {*methods, "communication", "(reference)", "MFLOP"} <= set(said.out.split()), said.out
    assert max(map(len, said.out.splitlines())) <= width
