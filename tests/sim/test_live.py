"""What a person sees while it runs: a panel on a terminal, lines elsewhere, nothing when quiet."""

import io
import re

import pytest
from rich.console import Console

from sim.cli.live import LiveView, _facts
from sim.simulation import RunCallbacks


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, record=True)


@pytest.fixture
def watched(simulate):
    """Runs the tiny world under a view and returns what it showed."""

    def run(view: LiveView, **settings) -> str:
        with view:
            view.stage("simulating")
            sim = simulate(callbacks=view.callbacks, **settings)
            if view._live:
                view._last_s = 0.0  # so long ago that it is time to draw the last state
                view.callbacks.on_progress(sim)
        return view.console.file.getvalue()

    return run


def test_a_terminal_shows_a_panel_with_the_facts(watched):
    shown = watched(LiveView(console(terminal=True)))
    assert "\x1b[" in shown
    for fact in (
        "virtual clock",
        "devices done",
        "3/3",
        "server updates",
        "37",
        "uplinked",
        "accuracy",
        "host rate",
    ):
        assert fact in shown


def test_elsewhere_a_line_now_and_then(watched):
    shown = watched(
        LiveView(console(terminal=False), seconds_between_lines=0.0), stop={"target": 1.0}
    )
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert len(lines) > 3
    assert any("virtual clock" in line for line in lines)
    assert "(target 1.0)" in shown


def test_rounds_say_how_far_they_are_and_how_long_it_will_take(watched):
    method = {"kind": "fedavg-lora", "rounds": 4, "participation": 1.0}
    shown = watched(LiveView(console(terminal=False), seconds_between_lines=0.0), method=method)
    lines = [line for line in shown.splitlines() if "rounds" in line]
    told = [re.search(r"rounds (\d)/4", line)[1] for line in lines]
    assert told == sorted(told) and {"1", "4"} <= set(told)
    assert [" · left about " in line for line in lines] == [done != "4" for done in told]


@pytest.mark.parametrize("rounds", [None, "three", (4,), 1, True])
def test_what_is_no_number_of_rounds_to_come_is_not_shown(rounds, simulate):
    method = {"kind": "fedavg-lora", "rounds": 3, "participation": 1.0}
    sim = simulate(method=method, dry=True)
    sim.scenario.method.__dict__["rounds"] = rounds  # as a method of one's own may have it
    assert sim.tally.rounds == 3
    assert {name for name, _ in _facts(sim, 1.0)} & {"rounds", "left"} == set()


def test_lines_keep_their_distance(watched):
    shown = watched(LiveView(console(terminal=False), seconds_between_lines=1e9))
    assert shown == ""


def test_quiet_shows_nothing(watched):
    assert watched(LiveView(console(terminal=True), quiet=True)) == ""
    assert watched(LiveView(console(terminal=False), quiet=True)) == ""


def test_preparing_shows_how_far_it_is():
    view = LiveView(console(terminal=False), seconds_between_lines=1e9)
    with view:
        view.callbacks.on_prepare("minilm", 0, 200)
        view.callbacks.on_prepare("minilm", 100, 200)
        view.callbacks.on_prepare("minilm", 200, 200)
        view.callbacks.on_prepare("stored", 0, 0)
    lines = view.console.file.getvalue().splitlines()
    assert lines == [
        "forward passes of minilm: 0/200 texts",
        "forward passes of minilm: 200/200 texts",
    ]
    fancy = LiveView(console(terminal=True))
    with fancy:
        fancy.callbacks.on_prepare("minilm", 0, 200)
        fancy.callbacks.on_prepare("minilm", 100, 200)
    assert "100/200 texts" in fancy.console.file.getvalue()


def test_looking_changes_nothing(simulate, mark):
    looks = []
    plain = mark(simulate())
    assert (
        mark(simulate(callbacks=RunCallbacks(on_progress=lambda sim: looks.append(sim.env.now))))
        == plain
    )
    assert looks == sorted(looks)
    assert len(looks) >= 2
