"""Every setting is read by something, or refused where it is set; `evaluate_every` counts for every
method.
"""

import dataclasses
import functools
from typing import get_args

import pytest
import yaml

from sim.methods import METHODS
from sim.scenario import SCENARIOS
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, changed, load, resolved
from sim.scenario.schema import Scenario

KINDS = [
    kind
    for method in METHODS
    for kind in get_args(method.Config.model_fields["kind"].annotation)
    if method.Config.responses != "only"  # test_language_modelling.py
]
PEFT = ("rank: 8", "alpha: 4", "bottleneck: 16")
ONLY_LORA, ONLY_ADAPTER = PEFT[:2], PEFT[2:]
# (method without the setting, the setting, what it is for)
UNREAD = [
    *(
        (f"kind: fedavg-{peft}", one, "LoRA")
        for peft in ("bitfit", "adapter", "full")
        for one in ONLY_LORA
    ),
    *(
        (f"kind: fedavg-{peft}", "bottleneck: 16", "adapters")
        for peft in ("bitfit", "lora", "full")
    ),
    *(
        (f"kind: {kind}", "bottleneck: 4", "adapters")
        for kind in ("flexlora", "local-lora", "fedmezo", "spry", "fedasync")
    ),
    *(
        (f"kind: {kind}, peft: bitfit", "rank: 4", "LoRA")
        for kind in ("splitfed-v1", "splitfed-v2", "fwdllm", "fedbuff")
    ),
    ("kind: fwdllm", "alpha: 16", "LoRA"),
    ("kind: splitfed-v1", "rank: 8", "LoRA"),
    (
        "kind: fedasync, peft: head",
        "gradient_checkpointing: true",
        "what has layers to go back through",
    ),
    *(("kind: fedbuff", one, "fedasync") for one in ("mixing: 0.6", "staleness: {kind: hinge}")),
    *(
        ("kind: fedasync", one, "fedbuff")
        for one in ("buffer: 10", "server_optimiser: {kind: fedavgm}")
    ),
    *(
        ("kind: centralised", one, "upload-raw-text")
        for one in ("update_share_on_arrival: 0.25", "bytes_per_token: 4")
    ),
    ("kind: pae-mobillm, cache: false", "server_batch: 8", "`cache: true`"),
]
# the same in other sections: overrides that set a setting which nothing reads, its path, what it is
# for
ELSEWHERE = [
    (
        ["method={kind: fedavg-lora, server_optimiser: {beta1: 0.9}}"],
        "method.server_optimiser.beta1",
        "fedavgm, fedadam",
    ),
    (
        ["method={kind: spry, server_optimiser: {kind: fedavgm, tau: 1e-3}}"],
        "method.server_optimiser.tau",
        "fedadam and",
    ),
    (
        ["method={kind: fedasync, staleness: {kind: constant, a: 0.5}}"],
        "method.staleness.a",
        "polynomial and hinge",
    ),
    (["method={kind: fedasync, staleness: {b: 4}}"], "method.staleness.b", "hinge"),
    (["cells={a: {kind: wifi, gain: 1}}", "fleet.0.cell=a"], "cells.a.gain", "`kind: cellular`"),
    (
        ["cells={a: {up: 1, down: 1, fair_uplink: false}}", "fleet.0.cell=a"],
        "cells.a.fair_uplink",
        "`kind: wifi`",
    ),
    (["cells={a: {kind: wifi}}"], "cells", "groups of the fleet with a `cell` or `mobility`"),
    (
        ["method={kind: fedavg-lora, participation: 1, over_selection: 2}"],
        "method.over_selection",
        "`participation` below 1",
    ),
    (["devices={thermal_recovery: 4}"], "devices.thermal_recovery", "`thermal: true`"),
    (
        ["devices={memory_pressure: {then: fail, retries: 3}}"],
        "devices.memory_pressure.retries",
        "`then: retry`",
    ),
    (["devices={battery: {starts_at: 20 h}}"], "devices.battery.starts_at", "`hours`"),
    (["dropout={rate: 1 /d, within: 1 h}"], "dropout.within", "`share`"),
    (["backbones={mine: {path: x, seed: 1}}"], "backbones.mine.seed", "`random`"),
    (["compare={methods: {a: {kind: fedavg-bitfit, rank: 4}}}"], "compare.methods.a.rank", "LoRA"),
]


@pytest.mark.parametrize(("method", "setting", "what"), UNREAD)
def test_a_setting_of_the_method_that_nothing_reads_is_refused_on_its_line(
    method, setting, what, scenario_file
):
    path = scenario_file()
    text = yaml.safe_dump(
        {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "method"}
    )
    head = text + "method:\n" + "".join(f"  {part}\n" for part in method.split(", "))
    path.write_text(head + f"  {setting}\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        load(path, Scenario, (), [], problems)
    [problem] = caught.value.problems
    line = head.count("\n") + 1
    assert (
        problem.startswith(f"{path}:{line}:")
        and f"method.{setting.partition(':')[0]}: is for {what} alone" in problem
    )
    path.write_text(head, encoding="utf-8")
    load(path, Scenario, (), [], problems)


@pytest.mark.parametrize(
    ("overrides", "where", "what"), ELSEWHERE, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_setting_of_another_section_that_nothing_reads_is_refused(
    overrides, where, what, scenario_file
):
    with pytest.raises(ScenarioError) as caught:
        load(scenario_file(arrivals={"kind": "at-once"}), Scenario, overrides, [], problems)
    assert any(f"{where}: is for {what}" in problem for problem in caught.value.problems), (
        caught.value.problems
    )


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "method={kind: fedavg-lora, rank: 4, alpha: 4, server_optimiser: {kind: fedadam, "
            "beta1: 0.8, beta2: 0.9, tau: 1e-4}}"
        ],
        ["method={kind: fedavg-adapter, bottleneck: 4}"],
        ["method={kind: flexlora, rank: 4, alpha: 4}"],
        [
            "method={kind: fedasync, peft: adapter, bottleneck: 4, mixing: 0.5, staleness: {kind: "
            "hinge, a: 1, b: 2}}"
        ],
        ["method={kind: fedbuff, buffer: 3, server_optimiser: {kind: fedavgm, beta1: 0.8}}"],
        ["method={kind: pae-mobillm, server_batch: 8}"],
        ["method={kind: upload-raw-text, update_share_on_arrival: 0.1, bytes_per_token: 4}"],
        [
            "cells={a: {kind: cellular, gain: 2}, b: {kind: wifi, fair_uplink: true}}",
            "fleet.0.cell=a",
        ],
        [
            "devices={thermal: true, thermal_recovery: 4, memory_pressure: {then: retry, retries: "
            "3, restart: 1}}"
        ],
    ],
)
def test_a_setting_that_is_read_is_taken(overrides, scenario_file):
    load(scenario_file(), Scenario, overrides, [], problems)


def test_what_a_parent_sets_for_another_kind_is_left_alone(scenario_file, tmp_path):
    scenario_file(method={"kind": "splitfed-v1", "peft": "lora", "rank": 4})
    (tmp_path / "child.yaml").write_text(
        "extends: tiny.yaml\nname: child\nmethod: {peft: bitfit}\n"
    )
    assert load(tmp_path / "child.yaml", Scenario, (), [], problems).method.rank == 4
    (tmp_path / "child.yaml").write_text(
        "extends: tiny.yaml\nname: child\nmethod: {peft: bitfit, alpha: 4}\n"
    )
    with pytest.raises(ScenarioError, match=r"child.yaml:3:.*method.alpha: is for LoRA alone"):
        load(tmp_path / "child.yaml", Scenario, (), [], problems)


def test_a_dial_that_tunes_nothing_is_refused(scenario_file):
    compare = {"methods": {"b": {"kind": "fedavg-bitfit"}}, "target": 0.5}
    tune = {"validation": 6, "dials": {"b": {"rank": [1, 2]}}}
    with pytest.raises(ScenarioError, match=r"compare.tune.dials.b.rank: is for LoRA alone"):
        load(scenario_file(compare={**compare, "tune": tune}), Scenario, (), [], problems)


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.yaml")))
def test_shipped_scenarios_set_nothing_that_nothing_reads(name):
    load(name, Scenario, (), [SCENARIOS], problems)


STREAM = ["fresh_data={kind: poisson, rate: 1 /s}"]
DRIFT = ["task.drift={kind: sudden}"]
COME = {
    "fed-mobillm",
    "single-side-network",
    "pae-mobillm",
    "mobillm",
    "upload-raw-text",
    "centralised",
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_come_one_by_one_or_in_an_order_are_refused_where_nobody_heeds_them(
    kind, scenario_file
):
    for overrides, heeding in ((STREAM, {*COME, "local-lora", "local-lst"}), (DRIFT, COME)):
        where = overrides[0].partition("=")[0]
        changes = [*overrides, f"method={{kind: {kind}}}"]
        if kind in heeding:
            load(scenario_file(), Scenario, changes, [], problems)
            continue
        with pytest.raises(ScenarioError, match=f"{where}: is not heeded by {kind}"):
            load(scenario_file(), Scenario, changes, [], problems)


@pytest.mark.parametrize(
    ("kind", "override", "heeding"),
    [
        ("fedavg-lora", "task.public=10", "fed-mobillm"),
        ("local-lora", "task.label_texts={a: x, b: y, c: z}", "centralised"),
        ("fwdllm", "task.label_words={a: x, b: y, c: z}", "pae-mobillm"),
    ],
)
def test_what_a_method_does_not_heed_is_refused_unless_one_that_is_compared_does(
    kind, override, heeding, scenario_file
):
    method, where = f"method={{kind: {kind}}}", override.partition("=")[0]
    with pytest.raises(ScenarioError) as caught:
        load(scenario_file(), Scenario, [method, override], [], problems)
    [problem] = caught.value.problems
    assert f"{where}: is not heeded by {kind}" in problem
    load(scenario_file(), Scenario, [f"method={{kind: {heeding}}}", override], [], problems)
    compared = f"compare={{methods: {{a: {{kind: {heeding}}}}}}}"
    load(scenario_file(), Scenario, [method, override, compared], [], problems)


def test_in_a_comparison_it_is_a_remark(simulate, scenario_file, mobifleet, tmp_path):
    methods = {"a": {"kind": "fed-mobillm"}, "b": {"kind": "fedavg-lora", "rounds": 1}}
    path = scenario_file(
        compare={"methods": methods}, fresh_data={"kind": "poisson", "rate": "9 /s"}
    )
    assert mobifleet("compare", path, "--dry", "--processes", "1", "--out", "out").code == 0
    from sim.results.run import open_run

    told = {
        label: open_run(tmp_path / "out" / f"{label}-seed0").summary["remarks"] for label in methods
    }
    assert told["a"] == [] and told["b"] == [
        "fresh_data is not heeded by fedavg-lora, which has all texts from the start: leave it out"
    ]


# --- evaluate_every


def small(kind: str, **changes) -> dict:
    few = {
        "rounds": 6,
        "participation": 1.0,
        "epochs": 6,
        "answers": 6,
        "buffer": 1,
        "local_steps": 2,
        "server_batch": 8,
    }
    config = next(
        m.Config for m in METHODS if kind in get_args(m.Config.model_fields["kind"].annotation)
    )
    if kind == "fedasync":
        few.pop("buffer")
    return {
        "kind": kind,
        **{key: value for key, value in few.items() if key in config.model_fields},
        **changes,
    }


def looks(sim) -> list[int]:
    """After how many updates the model was looked at, without the first and the last look."""
    return [
        int(row["value"]) for row in sim.recorder.metrics().to_pylist() if row["name"] == "updates"
    ][1:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scenarios_evaluate_every_counts_for_every_method(kind, simulate):
    world = {"arrivals": {"kind": "at-once"}, "dry": True}
    for every in (1, 2, 3):
        sim = simulate(method=small(kind), evaluate_every=every, **world)
        assert looks(sim) == list(range(every, sim.updates + 1, every))
    if "evaluate_every" in type(sim.scenario.method).model_fields:
        sim = simulate(
            method=small(kind, evaluate_every=2), evaluate_every=3, **world
        )  # the method's own goes before
        assert looks(sim) == list(range(2, sim.updates + 1, 2))


def test_without_one_of_the_scenarios_a_method_has_its_default(scenario_file):
    path = scenario_file()
    plain = {
        key: value
        for key, value in yaml.safe_load(path.read_text()).items()
        if key != "evaluate_every"
    }
    for kind, every in (("fedavg-lora", 5), ("fedasync", 10), ("splitfed-v1", 1), ("spry", 5)):
        path.write_text(yaml.safe_dump({**plain, "method": {"kind": kind}}))
        scenario = load(path, Scenario, (), [], problems)
        assert scenario.method.evaluate_every == every
        assert changed(scenario, "evaluate_every", 7).method.evaluate_every == 7
        own = changed(scenario, "method.evaluate_every", 3)
        assert changed(own, "evaluate_every", 7).method.evaluate_every == 3


def test_a_resolved_scenario_reads_back_to_the_same_looks(scenario_file):
    compare = {
        "methods": {"a": {"kind": "fedavg-lora"}, "b": {"kind": "fedavg-lora", "evaluate_every": 2}}
    }
    path = scenario_file(method={"kind": "fedavg-lora"}, evaluate_every=4, compare=compare)
    scenario = load(path, Scenario, (), [], problems)
    again = Scenario.model_validate(resolved(scenario))
    for one in (scenario, again):
        assert one.method.evaluate_every == 4
        assert {label: method.evaluate_every for label, method in one.compare.methods.items()} == {
            "a": 4,
            "b": 2,
        }
    assert resolved(again) == resolved(scenario)


def test_a_value_that_is_changed_leaves_the_others_as_unset_as_they_were(scenario_file):
    scenario = load(scenario_file(method={"kind": "fedavg-lora"}), Scenario, (), [], problems)
    other = changed(scenario, "task.partition.kind", "iid")
    assert other.model_fields_set == scenario.model_fields_set and other.method == scenario.method
    assert other.method.model_fields_set == {"kind"}
    assert dataclasses.asdict(other.method.server_optimiser) == dataclasses.asdict(
        scenario.method.server_optimiser
    )


@pytest.mark.parametrize("section", ["", "task.", "method.", "task.dataset.", "fleet.0."])
def test_every_setting_can_be_varied_whether_or_not_a_scenario_says_it(scenario_file, section):
    """Those too that a resolved scenario leaves out, because they are as they are by default."""
    lora = {"kind": "fedavg-lora", "rounds": 2}
    scenario = load(str(scenario_file(method=lora)), Scenario)
    settings = functools.reduce(
        lambda here, step: here[0] if step == "0" else getattr(here, step),
        filter(None, section.split(".")),
        scenario,
    )
    for name in type(settings).model_fields:
        try:
            changed(scenario, f"{section}{name}", {"no such": "value"})
        except ScenarioError as error:
            assert "nothing is called" not in str(error)


def test_settings_of_a_section_that_is_off_can_be_varied(scenario_file):
    scenario = load(str(scenario_file()), Scenario)
    assert changed(scenario, "dropout.rate", 2).dropout.rate == 2
    with pytest.raises(ScenarioError, match=r"task.drift.kind: required key is missing"):
        changed(scenario, "task.drift.strength", 0.5)
    with pytest.raises(ScenarioError, match=r"dropout\.rte: unknown key .*did you mean 'rate'"):
        changed(scenario, "dropout.rte", 2)
    with pytest.raises(ScenarioError, match=r"nothing is called .droput\.rate.; did you mean"):
        changed(scenario, "droput.rate", 2)
    for key in ("fleet.1e9.count", "fleet.7.count", "seed.x", "task.train.x.y"):
        with pytest.raises(ScenarioError, match=key):
            changed(scenario, key, 2)
