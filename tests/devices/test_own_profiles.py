"""Device profiles of a user's own: what another file or a device of the kind lends, and every
mistake with its line.
"""

import copy
import random
from pathlib import Path

import pytest
import yaml

from devices import compute, hardware, power, profile

PHONE = """\
name: my-phone
basis: own
memory_bytes: 12 GiB
engines:
  simple: {flop_per_s: 90 GFLOP/s}
"""


@pytest.fixture
def load(tmp_path):
    """Writes files into one folder and loads the last of them."""

    def write(**files: str) -> hardware.DeviceProfile:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return profile.load(f"{name}.yaml", tmp_path)

    return write


def test_name_memory_and_one_rate_are_enough(load, tmp_path):
    mine, lender = load(phone=PHONE), profile.load("phone-2024-flagship")
    assert (mine.name, mine.title, mine.kind) == ("my-phone", "my-phone", "phone")
    assert mine.memory_bytes == 12 * 2**30
    assert set(mine.engines) == {"simple"}
    simple, theirs = mine.engine("simple"), lender.engine("simple")
    assert simple.flop_per_s == 90e9 and simple.overhead_s == theirs.overhead_s == 0.001
    assert simple.power == theirs.power  # 4.7 W computing, 0.5 W idle
    assert mine.battery_wh == lender.battery_wh
    seconds = 0.001 + 9e9 / 90e9 + 38e6 / lender.memory_bandwidth_bytes_per_s
    assert compute.seconds(mine, "simple", 9e9, 38e6) == pytest.approx(seconds)
    own = {key for key, origin in mine.provenance.items() if origin.basis == "own"}
    assert own == {"memory_bytes", "engines.simple.flop_per_s"}
    assert mine.provenance["memory_bytes"].source == "phone.yaml"
    assert mine.lender == "phone-2024-flagship" and set(mine.lent) == set(mine.provenance) - own
    assert mine.estimates == (
        "the profile my-phone leaves out memory_bandwidth_bytes_per_s, jitter_cv, "
        "sustained_factor, sustained_tau_s, battery_wh, engines.simple.overhead_s, "
        "engines.simple.compute_w, 7 numbers of power: taken from phone-2024-flagship, as estimates"
    )
    for key in mine.lent:
        origin = mine.provenance[key]
        assert origin.basis == "estimated" and "phone-2024-flagship" in origin.source
    assert [path.name for path in profile.files("phone.yaml", tmp_path)] == [
        "phone.yaml",
        "phone-2024-flagship.yaml",
    ]


@pytest.mark.parametrize(
    ("rate", "said"), [("90", "90"), ("9e30 FLOP/s", "9e+30"), ("90 GFLOP/s", None)]
)
def test_a_rate_that_no_device_has_is_told(rate, said, load):
    mine = load(phone=PHONE.replace("90 GFLOP/s", rate))
    [estimates, *doubts] = mine.remarks
    assert estimates == mine.estimates
    told = f"the profile my-phone has engines.simple.flop_per_s {said}: is the unit right?"
    assert doubts == ([] if said is None else [told])


@pytest.mark.parametrize("kind", hardware.KINDS)
def test_a_device_of_any_kind_can_lend(kind, load):
    mine = load(one=PHONE + f"kind: {kind}\n")
    assert mine.kind == profile.load(mine.lender).kind == kind
    assert 0 < mine.engine("simple").power.idle_w < mine.engine("simple").power.compute_w


def test_what_is_said_is_not_lent(load):
    said = """\
kind: board
title: my board
memory_bandwidth_bytes_per_s: 20 GB/s
jitter_cv: 0.1
sustained_factor: 0.8
sustained_tau_s: 2 min
battery_wh: 15
power: {compute_w: 9 W, uplink_w: 2500 mW, downlink_w: 2, idle_w: 1}
"""
    text = PHONE.replace("simple: {", "simple: {overhead_s: 3 ms, ") + said
    mine = load(board=text)
    assert (mine.lent, mine.lender, mine.estimates) == ((), "", "")
    assert mine.remarks == []
    assert mine.memory_bandwidth_bytes_per_s == 20e9 and mine.sustained_tau_s == 120
    assert mine.engine("simple").overhead_s == 0.003
    watts = mine.engine("simple").power
    assert (watts.compute_w, watts.uplink_w, watts.downlink_w, watts.idle_w) == (9, 2.5, 2, 1)
    assert (mine.jitter_cv, mine.sustained_factor, mine.battery_wh) == (0.1, 0.8, 15)


def test_a_constant_radio_is_not_overruled_by_a_lent_one_that_grows_with_the_rate(load):
    """The typical phone's power grows with the rate; whoever says `uplink_w` means just that."""
    mine = load(phone=PHONE + "power: {uplink_w: 2}\n").engine("simple").power
    assert power.transfer_joules(mine, "uplink", 3.0, 1_000_000) == 6.0
    lender = profile.load("phone-2024-flagship").engine("simple").power
    assert mine.downlink_base_w == lender.downlink_base_w is not None


def test_extends_takes_all_but_what_is_named(load, tmp_path):
    text = """\
name: my-tx2
extends: jetson-tx2
basis: own
memory_bytes: 4 GiB
engines:
  simple: {flop_per_s: 300 GFLOP/s}
  npu: {flop_per_s: 2e12, description: an accelerator on a stick}
"""
    mine, parent = load(mine=text), profile.load("jetson-tx2")
    assert (mine.name, mine.title, mine.kind) == ("my-tx2", "my-tx2", "board")
    assert (mine.memory_bytes, mine.jitter_cv) == (4 * 2**30, parent.jitter_cv)
    simple = mine.engine("simple")
    assert (simple.flop_per_s, simple.overhead_s) == (300e9, parent.engine("simple").overhead_s)
    assert simple.description == parent.engine("simple").description
    assert mine.engine("llama-cpp") == parent.engine("llama-cpp")
    assert mine.provenance["power.idle_w"] == parent.provenance["power.idle_w"]
    assert (mine.lent, mine.lender) == (("engines.npu.overhead_s",), "jetson-tx2")
    assert mine.engine("npu").power == parent.engine("simple").power
    assert mine.measurements == ()  # those of the parent are of the parent's rates
    names = [path.name for path in profile.files("mine.yaml", tmp_path)]
    assert names == ["mine.yaml", "jetson-tx2.yaml"]


def test_power_said_for_all_engines_takes_the_place_of_the_parents_engines_own(load):
    """Every engine of the AGX Xavier has a power of its own."""
    text = "name: a\nextends: jetson-agx-xavier\nbasis: own\npower: {compute_w: 15}\n"
    mine = load(a=f"{text}engines: {{int8: {{compute_w: 25}}}}\n")
    assert {name: engine.power.compute_w for name, engine in mine.engines.items()} == {
        name: 25 if name == "int8" else 15 for name in profile.load("jetson-agx-xavier").engines
    }


def test_a_file_may_extend_a_file_beside_it_and_give_sources(load, tmp_path):
    sourced = "{value: 7, source: a meter, version: v1, conditions: 20 passes, basis: measured}"
    second = f"name: b\nextends: phone.yaml\npower: {{idle_w: {sourced}}}\n"
    mine = load(phone=PHONE, b=second)
    assert mine.engine("simple").flop_per_s == 90e9 and mine.engine("simple").power.idle_w == 7
    assert mine.provenance["power.idle_w"].basis == "measured"
    assert "power.idle_w" not in mine.lent and "power.uplink_w" in mine.lent
    names = [path.name for path in profile.files("b.yaml", tmp_path)]
    assert names == ["b.yaml", "phone.yaml", "phone-2024-flagship.yaml"]
    plain = load(plain="name: plain\nextends: jetson-tx2\n")
    assert (plain.name, plain.title, plain.lent) == ("plain", "plain", ())
    assert plain.engines == profile.load("jetson-tx2").engines
    third = load(c="name: c\nextends: b.yaml\nbasis: own\nmemory_bytes: 1 GiB\n")
    assert (third.memory_bytes, third.engine("simple").power.idle_w) == (2**30, 7)


def test_a_relative_path_is_looked_for_in_the_folder_and_then_where_python_runs(
    tmp_path, monkeypatch
):
    (tmp_path / "study").mkdir()
    (tmp_path / "phone.yaml").write_text(PHONE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert profile.load("phone.yaml", Path("study")).memory_bytes == 12 * 2**30
    near = PHONE.replace("12 GiB", "6 GiB")
    (tmp_path / "study" / "phone.yaml").write_text(near, encoding="utf-8")
    assert profile.load("phone.yaml", Path("study")).memory_bytes == 6 * 2**30
    assert profile.load("phone.yaml").memory_bytes == 12 * 2**30


def test_all_mistakes_of_a_file_come_at_once_each_with_its_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        """\
name: bad
extends: jetson-tx2
basis: own
memory_bytes: 16 KB
jitter: 3
power:
  idle_w: 5 Wh
engines:
  simple: {flop_per_s: 900 GFLOPs}
  npu: {precision: int8}
""",
        encoding="utf-8",
    )
    with pytest.raises(hardware.ProfileError) as caught:
        profile.load(path)
    starts = [
        (4, "memory_bytes: found '16 KB', allowed: a number above 0 (unknown unit 'KB'"),
        (5, "jitter: is not a key of a profile; did you mean jitter_cv"),
        (
            7,
            "power.idle_w: found '5 Wh', allowed: a number of at least 0 ('Wh' is a unit of energy",
        ),
        (9, "engines.simple.flop_per_s: found '900 GFLOPs'"),
        (10, "engines.npu.flop_per_s: is missing"),
    ]
    assert len(caught.value.problems) == len(starts)
    for problem, (line, start) in zip(caught.value.problems, starts, strict=True):
        assert problem.startswith(f"{path}, line {line}: {start}"), problem


def test_a_mistake_in_the_file_that_is_extended_is_said_of_that_file(load, tmp_path):
    with pytest.raises(hardware.ProfileError) as caught:
        load(phone=PHONE.replace("90 GFLOP/s", "-1"), b="name: b\nextends: phone.yaml\n")
    [problem] = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'phone.yaml'}, line 5: engines.simple.flop_per_s: ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "name: a\nextends: jetson-tx3\n"}, "line 2: extends: no profile is called"),
        ({"a": "name: a\nextends: b.yaml\n"}, "line 2: extends: no file 'b.yaml' in the folder"),
        ({"a": "name: a\nextends: [1]\n"}, r"extends: found \[1\]"),
        ({"a": "name: a\nextends: a.yaml\n"}, "'a.yaml' leads back to this file"),
        (
            {"b": "name: b\nextends: a.yaml\n", "a": "name: a\nextends: b.yaml\n"},
            "'a.yaml' leads back",
        ),
        ({"a": PHONE.replace("own", "mine")}, "line 2: basis: found 'mine', allowed: own"),
        ({"a": PHONE.replace("basis: own\n", "")}, "plain numbers are for files that say `basis"),
        ({"a": PHONE + "kind: toaster\n"}, "line 6: kind: found 'toaster'"),
        ({"a": "basis: own\nextends: jetson-tx2\n"}, "name: is missing"),
        ({"a": "basis: own\nname: a\nengines: {}\n"}, "memory_bytes: is missing"),
        ({"a": "[1]"}, "the file: found"),
    ],
)
def test_what_cannot_be_extended_or_lent(files, message, load):
    with pytest.raises(hardware.ProfileError, match=message):
        load(**files)


def test_a_chain_that_is_too_long_is_refused(load):
    files = {f"p{i}": f"name: p{i}\nextends: p{i + 1}.yaml\n" for i in range(15)}
    with pytest.raises(hardware.ProfileError, match="more than 10 parents"):
        load(**{"p15": PHONE, **dict(reversed(files.items()))})


ODD = [None, True, 0, -1, 10**400, "", "x", [], [[]], {}, {None: 2}, "own", "12 GiB", {"value": 3}]
VARIANT = """\
name: a
kind: board
extends: jetson-tx2
basis: own
memory_bytes: 12 GiB
power: {compute_w: 3, uplink_w: 2}
engines: {simple: {flop_per_s: 90 GFLOP/s}, npu: {flop_per_s: 1e12, overhead_s: 1 ms}}
"""


@pytest.mark.parametrize("text", [VARIANT, VARIANT.replace("extends: jetson-tx2\n", "")])
def test_whatever_stands_anywhere_is_read_or_refused_with_its_line(text, load, tmp_path):
    rng, refused = random.Random(0), 0
    for _ in range(100):
        data = node = yaml.safe_load(text)
        while isinstance(node[key := rng.choice(list(node))], dict) and rng.random() < 0.7:
            node = node[key]
        node[key] = copy.deepcopy(rng.choice(ODD))
        try:
            load(odd=yaml.safe_dump(data))
        except hardware.ProfileError as error:
            refused += 1
            assert all(line.startswith(f"{tmp_path / 'odd.yaml'}, ") for line in error.problems)
    assert refused > 50
