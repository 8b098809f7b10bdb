"""A round that nobody answered is no update, and the summary says why; what never gives an update
is refused.
"""

from typing import get_args

import pytest

from sim.methods import METHODS
from sim.results.summary import device_table, summary

KINDS = [
    kind
    for method in METHODS
    for kind in get_args(method.Config.model_fields["kind"].annotation)
    if method.Config.responses != "only"  # test_language_modelling.py
]
ROUNDS = [
    "fedavg-lora",
    "fedavg-full",
    "flexlora",
    "splitfed-v1",
    "splitfed-v2",
    "fedbert",
    "fwdllm",
    "fedmezo",
    "spry",
]
SMALL = {
    "rounds": 3,
    "participation": 1.0,
    "epochs": 2,
    "answers": 4,
    "buffer": 2,
    "local_steps": 2,
    "server_batch": 8,
}
FLEET = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
WORLD = {"fleet": FLEET, "arrivals": {"kind": "at-once"}, "jitter": False}


def small(kind: str, **changes) -> dict:
    config = next(
        m.Config for m in METHODS if kind in get_args(m.Config.model_fields["kind"].annotation)
    )
    known = config.model_fields.keys() - ({"buffer"} if kind == "fedasync" else set())
    return {"kind": kind, **{key: value for key, value in SMALL.items() if key in known}, **changes}


def told(sim) -> dict:
    return summary(sim, "digest", device_table(sim), 1.0)


@pytest.mark.parametrize("dry", [True, False])
def test_a_round_whose_deadline_nobody_meets_is_no_update(dry, simulate, spans, curve):
    sim = simulate(
        method=small("fedavg-lora", rounds=4, participation=0.6, deadline="1 ms"), dry=dry, **WORLD
    )
    found = told(sim)
    assert (found["rounds"], found["rounds_without_answer"], found["totals"]["updates"]) == (
        4,
        4,
        0,
    )
    assert found["virtual_time_s"] == pytest.approx(4e-3)  # the rounds took their time
    assert found["totals"]["server_busy_s"] == 0.0 and not spans(
        sim, "aggregate"
    )  # of nothing there is no mean
    assert "0 of 4 rounds had an answer that counted: 8 late" in found["remarks"]
    assert set(found["outcomes"]) <= {"late", "ok"} and found["outcomes"]["late"] >= 2
    assert all(device.finished_at_s is None for device in sim.devices if device.outcome == "late")
    assert curve(sim) == []  # nothing was trained


def test_a_model_that_nobody_looked_at_is_not_said_to_be_untrained(mobifleet, scenario_file):
    method = {**small("fedbuff"), "answers": 50, "buffer": 1, "evaluate_every": 1000}
    path = scenario_file(method=method, stop={"horizon": "3 s"}, **WORLD)
    done = mobifleet("run", path, "--out", "run", "--no-figures", "--workers", "1")
    assert done.code == 0
    assert "none: nobody looked at what was trained" in done.out
    assert "no look at what came of it" in done.out + done.err
    assert "nothing was trained" not in done.out


@pytest.mark.parametrize("kind", ["fedavg-full", "flexlora"])
def test_a_deadline_between_fast_and_slow_devices_is_answered_by_the_fast(kind, simulate):
    slow = {**FLEET[0], "count": 2, "link": "lte-driving"}
    world = {**WORLD, "fleet": [{**FLEET[0], "count": 1}, slow]}
    alone = simulate(method=small(kind, rounds=1, participation=0.3), dry=True, **WORLD).ended.at_s
    sim = simulate(method=small(kind, deadline=1.01 * alone), dry=True, **world)
    found = told(sim)
    assert (found["rounds"], found["rounds_without_answer"], found["totals"]["updates"]) == (
        3,
        0,
        3,
    )
    assert [device.outcome for device in sim.devices] == ["ok", "late", "late"]
    assert not found["remarks"]


def test_some_rounds_without_an_answer_are_told_from_those_with_one(simulate):
    slow = {**FLEET[0], "count": 4, "link": "lte-driving"}
    world = {**WORLD, "fleet": [{**FLEET[0], "count": 2}, slow]}
    method = small("fedavg-full", rounds=20, participation=0.17)  # one of six a round
    fast_s = simulate(
        method={**method, "rounds": 1, "participation": 0.3}, dry=True, **WORLD
    ).ended.at_s
    sim = simulate(method={**method, "deadline": 1.01 * fast_s}, dry=True, **world)
    found = told(sim)
    answered = found["totals"]["updates"]
    assert 1 <= answered < 20
    assert (found["rounds"], found["rounds_without_answer"]) == (20, 20 - answered)
    assert found["remarks"] == [
        f"{answered} of 20 rounds had an answer that counted; of those asked in the others: "
        f"{20 - answered} late"
    ]
    assert {d.outcome for d in sim.devices[:2]} == {"ok"} and {
        d.outcome for d in sim.devices[2:]
    } <= {"ok", "late"}


def test_check_says_that_a_deadline_is_too_short_for_anybody(simulate, mobifleet, scenario_file):
    method = small("fedavg-lora", rounds=1)
    needed_s = simulate(method={**method, "participation": 0.3}, dry=True, **WORLD).ended.at_s
    for deadline_s, is_short in ((0.8 * needed_s, True), (1.2 * needed_s, False)):
        path = scenario_file(method={**method, "deadline": deadline_s}, **WORLD)
        assert ("method.deadline" in mobifleet("check", path).err) is is_short


# why there was no update: one scenario for each reason, and the words that name it
REASONS = {
    "gone": ({"dropout": {"times": ["0 s", "0 s", "0 s"]}}, "3 dropped out"),
    "late": (
        {"stop": {"horizon": "1 s"}, "arrivals": {"kind": "list", "times": ["1 h", "2 h", "3 h"]}},
        "the horizon came first; the first device joins after 1 h",
    ),
    "never": ({"availability": {"kind": "diurnal", "never_ready": 1}}, "3 never ready"),
    "oom": (
        {"fleet": [{**FLEET[0], "memory": "1 kB"}], "out_of_memory": "record"},
        "3 out of memory",
    ),
    "h": ({"stop": {"horizon": "1 us"}}, "the horizon came first"),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "centralised"])
def test_nothing_happens_for_a_reason_that_is_given(kind, reason, simulate):
    changes, says = REASONS[reason]
    if kind == "upload-raw-text" and reason == "oom":
        pytest.skip("no model runs on its devices")
    sim = simulate(method=small(kind), dry=True, **{**WORLD, **changes})
    found = told(sim)
    assert (found["totals"]["updates"], found["rounds"]) == (0, 0)
    [remark] = found["remarks"]
    assert remark.startswith("no update was made: ") and says in remark


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_round_in_which_everybody_leaves_is_no_update(kind, simulate, spans):
    whole = simulate(method=small(kind, rounds=1), dry=True, **WORLD)
    assert (whole.tally.rounds, whole.tally.without_answer, whole.updates) == (1, 0, 1)
    half_s = 0.4 * min(s["end_s"] for s in spans(whole, "wait", actor="server"))
    sim = simulate(method=small(kind), dry=True, dropout={"times": [half_s] * 3}, **WORLD)
    found = told(sim)
    assert (found["rounds"], found["rounds_without_answer"], found["totals"]["updates"]) == (
        1,
        1,
        0,
    )
    assert not spans(sim, "aggregate") and not spans(sim, "gather")
    assert any(
        remark.startswith("0 of 1 rounds had an answer that counted: ")
        for remark in found["remarks"]
    )
    assert all("dropped out" in remark for remark in found["remarks"])


def test_a_buffer_that_never_fills_says_so(simulate):
    method = small("fedbuff", answers=9, buffer=9, concurrency=1.0)
    alone_s = simulate(method={**method, "answers": 3, "buffer": 3}, dry=True, **WORLD).ended.at_s
    sim = simulate(method=method, dry=True, dropout={"times": [1.5 * alone_s] * 3}, **WORLD)
    found = told(sim)
    assert found["totals"]["updates"] == 0 and found["totals"]["uplink_bytes"] > 0
    unused, none = found["remarks"]
    assert unused == "3 of 3 answers entered no update: an update takes 9 (`buffer`)"
    assert "what was uploaded is too little for one" in none


def test_answers_that_stay_in_the_buffer_do_not_count(simulate):
    method = small("fedbuff", answers=3, buffer=2, concurrency=1.0)
    sim = simulate(method=method, dry=True, **WORLD)
    assert sim.updates == 1
    assert sorted(device.outcome for device in sim.devices).count("unused") <= 1


@pytest.mark.parametrize(
    "kind", ["fed-mobillm", "single-side-network", "local-lst", "fedavg-lora", "fedasync"]
)
def test_what_nobody_has_trained_has_no_accuracy(kind, simulate):
    rows = simulate(method=small(kind), **WORLD).recorder.metrics().to_pylist()
    assert 0.0 in {row["time_s"] for row in rows if row["name"] == "updates"}
    looks_s = [row["time_s"] for row in rows if row["name"] == "accuracy"]
    assert looks_s and min(looks_s) > 0.0


def test_a_backbone_that_knows_the_classes_names_has_an_accuracy_at_once(simulate, curve):
    method = small("fed-mobillm", backbone_prediction="label-names")
    sim = simulate(method=method, stop={"horizon": "1 us"}, **WORLD)
    assert sim.updates == 0 and curve(sim) == [sim.score]


@pytest.mark.parametrize("kind", ROUNDS)
def test_every_round_that_is_answered_is_an_update(kind, simulate):
    found = told(simulate(method=small(kind), dry=True, **WORLD))
    assert (found["rounds"], found["rounds_without_answer"], found["totals"]["updates"]) == (
        3,
        0,
        3,
    )
    assert found["outcomes"] == {"ok": 3} and not found["remarks"]
