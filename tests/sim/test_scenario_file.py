"""Scenario files: every mistake is found, at its place, in one line that says what to write
instead.
"""

import json
import math
import os
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inputs.units import BitsPerSecond, Bytes, Seconds
from sim.scenario.complaints import MAX_SHOWN, nearest
from sim.scenario.file import MAX_FILE_BYTES, ScenarioError, digest, load, resolved
from sim.scenario.yaml_tree import MAX_DEPTH, read


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Codec(Strict):
    kind: Literal["codec"] = "codec"
    bits: Literal[8, 16, 32] = 16


class Federated(Strict):
    kind: Literal["federated"]
    wire: Literal["float16", "int8"] = "float16"
    federated: int = 0  # named like the union's tag: positions must not confuse the two
    codec: Codec | None = None


class Central(Strict):
    kind: Literal["central"]
    rounds: int = 1


class Group(Strict):
    count: int = Field(1, ge=1)
    memory: Bytes = 0.0
    uplink: BitsPerSecond = 0.0
    deadline: Seconds | None = None


class Colour(Enum):
    red = "red"
    blue = "blue"


class World(Strict):
    name: str = "unnamed"
    fleet: list[Group] = []
    method: Annotated[Federated | Central, Field(discriminator="kind")] = Federated(
        kind="federated"
    )
    steps: list[Annotated[Federated | Central, Field(discriminator="kind")]] = []
    start: Group | str | int = 0
    shares: dict[str, int] = {}
    pair: tuple[int, float] = (1, 2.0)
    colour: Colour = Colour.red
    anything: dict | list | str | float | int | bool | None = None

    @model_validator(mode="after")
    def names_are_fine(self):
        if self.name == "bad":
            raise ValueError("a name must not be bad\nat all")
        return self


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="world.yaml"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def problems(path, *overrides, **options):
    with pytest.raises(ScenarioError) as caught:
        load(path, World, overrides, **options)
    assert str(caught.value).split("\n") == list(caught.value.problems)
    return list(caught.value.problems)


def test_a_file_becomes_a_model(write):
    path = write("""
name: quickstart
fleet:
  - {count: 12, memory: 8 GiB, uplink: 20 Mbit/s}
  - &slow {count: 3, deadline: 2 h}
  - *slow
method: {kind: federated, wire: int8, codec: {bits: 8}}
""")
    world = load(path, World)
    assert world.fleet[0] == Group(count=12, memory=8 * 1024**3, uplink=20e6)
    assert world.fleet[1] == world.fleet[2] == Group(count=3, deadline=7200)
    assert world.method == Federated(kind="federated", wire="int8", codec=Codec(bits=8))


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(write):
    path = write("""name: [x]
fleet:
  - {count: 0, memory: 4 Gib}
  - {count: 1e-3, uplnk: 5e6, deadline: 3 m}
  - 5
method: {kind: federatd, wire: 3}
steps: [{kind: central, rounds: many}, {rounds: 1}, {kind: federated, wire: int9, codec: {bits: 9}}]
shares: {a: x}
pair: [1]
colour: bleu
nam: y
""")
    assert problems(path) == [
        "world.yaml:1:7: name: expected text (got a list of 1)",
        "world.yaml:3:13: fleet.0.count: must be at least 1 (got 0)",
        "world.yaml:3:24: fleet.0.memory: unknown unit 'Gib' (upper and lower case count); did you "
        "mean 'GiB'? "
        "(got '4 Gib')",
        "world.yaml:4:13: fleet.1.count: expected a whole number (got 0.001)",
        "world.yaml:4:19: fleet.1.uplnk: unknown key (allowed 'count', 'memory', 'uplink', "
        "'deadline'); "
        "did you mean 'uplink'?",
        "world.yaml:4:41: fleet.1.deadline: 'm' could mean minutes or milliseconds: write 'min' or "
        "'ms' (got '3 m')",
        "world.yaml:5:5: fleet.2: expected a mapping (got 5)",
        "world.yaml:6:16: method.kind: not an allowed value (got 'federatd', allowed 'central', "
        "'federated'); "
        "did you mean 'federated'?",
        "world.yaml:7:33: steps.0.rounds: expected a whole number (got 'many')",
        "world.yaml:7:40: steps.1.kind: required key is missing (allowed 'central', 'federated')",
        "world.yaml:7:77: steps.2.wire: not an allowed value (got 'int9', allowed 'float16', "
        "'int8'); "
        "did you mean 'int8'?",
        "world.yaml:7:97: steps.2.codec.bits: not an allowed value (got 9, allowed 8, 16, 32)",
        "world.yaml:8:13: shares.a: expected a whole number (got 'x')",
        "world.yaml:9:7: pair.1: required key is missing",
        "world.yaml:10:9: colour: not an allowed value (got 'bleu', allowed 'red', 'blue'); did "
        "you mean 'blue'?",
        "world.yaml:11:1: nam: unknown key (allowed 'name', 'fleet', 'method', 'steps', 'start', "
        "'shares', 'pair', "
        "'colour', 'anything'); did you mean 'name'?",
    ]


def test_union_tags_are_no_part_of_the_path(write):
    path = write("method: {kind: federated, federated: many, wre: int8}")
    assert problems(path) == [
        "world.yaml:1:38: method.federated: expected a whole number (got 'many')",
        "world.yaml:1:44: method.wre: unknown key (allowed 'kind', 'wire', 'federated', 'codec'); "
        "did you mean 'wire'?",
    ]


def test_a_union_without_a_tag_is_one_problem_and_the_nearest_branch_speaks(write):
    assert problems(write("start: [1]")) == [
        "world.yaml:1:8: start: expected a mapping or text or a whole number (got a list of 1)"
    ]
    assert problems(write("start: {cuont: 1}")) == [
        "world.yaml:1:9: start.cuont: unknown key (allowed 'count', 'memory', 'uplink', "
        "'deadline'); "
        "did you mean 'count'?"
    ]


@pytest.mark.parametrize("value", ["3", "[3]", "text"])
def test_a_tagged_union_wants_a_mapping(write, value):
    (line,) = problems(write(f"method: {value}"))
    assert line.startswith("world.yaml:1:9: method: expected a mapping (got ")


def test_a_validator_of_the_whole_model_points_at_its_mapping_in_one_line(write):
    assert problems(write("\n\nname: bad")) == ["world.yaml:3:1: a name must not be bad at all"]


def test_a_long_list_of_problems_is_cut(write):
    lines = problems(write("".join(f"key{i}: 1\n" for i in range(1500))))
    assert len(lines) == MAX_SHOWN + 1 and lines[-1] == "... and more problems"
    assert lines[0].startswith("world.yaml:1:1: key0: unknown key")


# ---- YAML


CORE_SCHEMA = [
    *[
        ("1e-3", 1e-3),
        ("1e9", 1e9),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5", -0.5),
        ("+3", 3),
        ("010", 10),
    ],
    *[
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
    ],
    *[
        (text, text)
        for text in (
            "no",
            "yes",
            "on",
            "off",
            "Y",
            "1:30",
            "2026-01-02",
            "1_000",
            "0b1",
            "=",
            "1e",
            ".",
        )
    ],
    *[("'1'", "1"), ('"true"', "true"), ("''", ""), ("", None), ("8 GiB", "8 GiB")],
]


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA)
def test_scalars_follow_yaml_1_2(text, value):
    got = read(f"key: {text}", "test", []).plain()["key"]
    assert got == value and type(got) is type(value)


words = st.text(
    st.characters(exclude_categories=("C", "Z")) | st.just(" ")
)  # what YAML lets stand unescaped
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_json_is_yaml_and_reads_back_unchanged(value):
    found = []
    tree = read(json.dumps([value], ensure_ascii=False), "test", found)
    assert tree.plain() == [value] and found == []


@given(
    st.dictionaries(
        st.text("abcxyz", min_size=1),
        st.integers() | st.text("abc xyz") | st.booleans(),
        min_size=1,
    )
)
def test_plain_data_reads_as_pyyaml_reads_it(data):
    text = yaml.safe_dump(data)
    assert read(text, "test", []).plain() == yaml.safe_load(text) == data


def test_positions_are_those_of_the_text():
    text = "a: 1\nb:\n  - x\n  - {c: 'd',   e: f}\n"
    root = read(text, "f", [])
    item = root.value["b"].value[1].value["e"]
    assert str(item.place) == "f:4:19" and str(item.key) == "f:4:16"
    assert text.splitlines()[item.place.line - 1][item.place.column - 1 :] == "f}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "world.yaml: the file is empty"),
        ("# only a comment\n", "world.yaml: the file is empty"),
        ("---\n...\n", "world.yaml: the file is empty"),
        (
            "- a\n",
            "world.yaml:1:1: expected a mapping such as `name: quickstart` (got a list of 1)",
        ),
        (
            "just words",
            "world.yaml:1:1: expected a mapping such as `name: quickstart` (got 'just words')",
        ),
        ("name: a: b", "world.yaml:1:8: not valid YAML: mapping values are not allowed"),
        ("name: [a", "world.yaml:2:1: not valid YAML: while parsing a flow sequence"),
        (
            "a: 1\n\tb: 2",
            "world.yaml:2:1: not valid YAML: while scanning a plain scalar, found a tab",
        ),
        ("name: x\na: \x00", "world.yaml:2:1: not valid YAML: control characters are not allowed"),
        (b"name: caf\xe9", "world.yaml:1:1: not UTF-8 text"),
        (b"a: 1\nb: \xff", "world.yaml:2:1: not UTF-8 text"),
        ("a: 1\n---\nb: 2", "world.yaml:2:1: a second document begins here"),
        ("a: *b", "world.yaml:1:4: alias *b has no anchor &b before it"),
        ("a: &a [*a]", "world.yaml:1:8: alias *a has no anchor &a before it"),
        ("name: x\nname: y", "world.yaml:2:1: name: key given twice (first in line 1)"),
        (
            "shares: {a: 1, b: 2, a: 3}",
            "world.yaml:1:22: shares.a: key given twice (first in line 1)",
        ),
        ("? [a, b]\n: 1", "world.yaml:1:3: a key must be text (got a list of 2)"),
        (
            "shares: &s {a: 1}\nanything: {<<: *s}",
            "world.yaml:2:12: anything: merge keys (<<) are not part of YAML",
        ),
        (
            "name: !!python/object/apply:os.system [ls]",
            "world.yaml:1:7: name: YAML tags are not allowed",
        ),
        (
            "anything: " + "1" * 5000,
            "world.yaml:1:11: anything: a number of 5000 digits is too long",
        ),
        (
            "anything: 0x" + "f" * 5000,
            "world.yaml:1:11: anything: a number of 5002 digits is too long",
        ),
        ("a: " + "[" * 500_000, "world.yaml:1:53: nested more than 50 levels deep"),
        ("x" * (MAX_FILE_BYTES + 1), "world.yaml: larger than 1000000 bytes"),
    ],
)
def test_files_that_are_no_scenario_say_why(write, text, line):
    assert problems(write(text))[0].startswith(line)


def test_a_byte_order_mark_is_no_mistake(write):
    assert load(write("\ufeffname: x"), World).name == "x"


def test_duplicate_keys_and_model_mistakes_come_together(write):
    lines = problems(write("name: x\nname: y\npair: 3"))
    assert [line.partition(": ")[0] for line in lines] == ["world.yaml:2:1", "world.yaml:3:7"]


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)),
        f"a: &a {'x' * 100_000}\nb: [{'*a,' * 1000}]",
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 20_000)),
        "a0: &a0 {k: 1}\n"
        + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}}}\n" for i in range(1, 45)),
    ],
    ids=["billion-laughs", "long-text", "deep-chain", "doubling"],
)
def test_aliases_cannot_blow_a_small_file_up(write, text):
    begin = time.process_time()
    (line,) = problems(write(text))
    assert "aliases of this file add up" in line or f"more than {MAX_DEPTH} levels" in line
    assert (
        time.process_time() - begin < 20
    )  # it takes a tenth of a second; blown up, it would not end


# ---- extends


def test_extends_lays_the_child_over_the_parent(write):
    write(
        "name: parent\nshares: {a: 1, b: 2}\nfleet: [{count: 3}, {count: 4}]\nmethod: {kind: "
        "federated, wire: int8}",
        "p.yaml",
    )
    child = write(
        "extends: p.yaml\nshares: {b: 3, c: 4}\nfleet: [{count: 9}]\nmethod: {federated: 5}"
    )
    world = load(child, World)
    assert world.name == "parent"
    assert world.shares == {"a": 1, "b": 3, "c": 4}
    assert world.fleet == [Group(count=9)]
    assert world.method == Federated(kind="federated", wire="int8", federated=5)


def test_another_kind_replaces_the_whole_mapping(write):
    write("method: {kind: federated, wire: int8}", "p.yaml")
    child = write("extends: p.yaml\nmethod: {kind: central}")
    assert load(child, World).method == Central(kind="central", rounds=1)


def test_mistakes_name_the_file_they_stand_in(write):
    write("fleet:\n  - {count: z}\nnmae: x\ncolour: green", "base/grand.yaml")
    write("extends: grand.yaml\npair: 1", "base/p.yaml")
    assert [
        line.split(": ")[:2]
        for line in problems(write("extends: base/p.yaml\ncolour: blue\nstart: {}\nshares: 3"))
    ] == [
        ["base/grand.yaml:2:13", "fleet.0.count"],
        ["base/grand.yaml:3:1", "nmae"],
        ["base/p.yaml:2:7", "pair"],
        ["world.yaml:4:9", "shares"],
    ]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("/etc/passwd", "must stay inside the scenario's folder"),
        ("../secret.yaml", "must stay inside the scenario's folder"),
        ("sub/../../secret.yaml", "must stay inside the scenario's folder"),
        ("link.yaml", "must stay inside the scenario's folder"),
        ("loop.yaml", "extends: "),
        ("world.yaml", "leads back to this file"),
        ("round.yaml", "leads back to this file"),
        (
            "prent.yaml",
            "no file 'prent.yaml' in the scenario's folder; did you mean 'parent.yaml'?",
        ),
        (".", "no file"),
        ('"a\\0b"', "cannot open"),
        ("[parent.yaml]", "expected the name of a file (got a list of 1)"),
        ("x" * 5000, "cannot open"),
    ],
)
def test_extends_stays_inside_the_folder(write, tmp_path, name, what):
    secret = tmp_path / "secret.yaml"
    secret.write_text("name: secret")
    write("name: parent", "in/parent.yaml")
    write("extends: world.yaml", "in/round.yaml")
    os.symlink(secret, "in/link.yaml")
    os.symlink("loop.yaml", "in/loop.yaml")
    (line,) = problems(write(f"name: x\nextends: {name}", "in/world.yaml"))
    assert what in line and line.startswith(
        ("in/world.yaml:2:10: extends: ", "in/round.yaml:1:10: extends: ")
    )


def test_a_long_line_of_parents_ends(write):
    for i in range(30):
        write(f"extends: p{i + 1}.yaml", f"p{i}.yaml")
    (line,) = problems("p0.yaml")
    assert "more than 10 parents" in line


# ---- overrides


def test_overrides_set_single_values(write):
    path = write(
        "fleet: [{count: 1, memory: 8 GiB}, {count: 2}]\nshares: &s {a: 1}\nanything: *s\npair: "
        "[1, 2]\n"
        "method: {kind: federated}"
    )
    overrides = [
        "fleet.0.count=5",
        "fleet.1={deadline: 90 s}",
        "shares.b=7",
        "method.wire=int8",
        "name=a=b",
        "pair.1=1e-3",
    ]
    world = load(path, World, overrides)
    assert world.fleet == [Group(count=5, memory=8 * 1024**3), Group(deadline=90)]
    assert world.shares == {"a": 1, "b": 7} and world.anything == {"a": 1}
    assert world.name == "a=b" and world.pair == (1, 1e-3)


def test_overrides_apply_in_order(write):
    assert (
        load(write("name: x"), World, ["fleet=[{}, {}]", "fleet.1.count=4", "fleet.1.count=6"])
        .fleet[1]
        .count
        == 6
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("fleet.0.count", "expected key=value, such as fleet.0.count=3"),
        ("=3", "expected key=value, such as fleet.0.count=3"),
        ("fleet..count=3", "expected key=value, such as fleet.0.count=3"),
        (".".join("a" * 5000) + "=1", "expected key=value, such as fleet.0.count=3"),
        ("fleet.1.count=3", "fleet.1: no such item (fleet is a list of 1, use 0 to 0)"),
        ("fleet.-1.count=3", "fleet.-1: no such item (fleet is a list of 1, use 0 to 0)"),
        ("name.first=3", "name.first: name holds 'x', not a mapping"),
        ("fleet.0.cuont=3", "did you mean 'count'?"),
        ("fleet.0.count=three", "fleet.0.count: expected a whole number (got 'three')"),
        ("fleet.0.count=true", "fleet.0.count: expected a number (got true)"),
        ("pair=[1, false]", "pair.1: expected a number (got false)"),
        ("fleet.0={cuont: 1}", "fleet.0.cuont: unknown key"),
        ("methd.wire=int8", "did you mean 'method'?"),
        ("method={kind: centrl}", "method.kind: not an allowed value (got 'centrl'"),
        ("name=[", "name: not valid YAML"),
        ("name=!x y", "name: YAML tags are not allowed"),
        ("name=\udcff", "name: not valid text"),
        ("extends=other.yaml", "extends: unknown key"),
    ],
)
def test_mistakes_in_overrides_name_the_override(write, override, text):
    (line,) = problems(write("name: x\nfleet: [{count: 1}]\nmethod: {kind: federated}"), override)
    shown = repr(override) if len(override) < 70 else repr(override)[:60]
    assert line.startswith(f"override {shown}") and text in line and line.isprintable()


def test_true_and_false_are_no_numbers_in_files_either_and_stay_what_they_are_elsewhere(write):
    file = write("shares: {a: true, b: 1}\nmethod: {kind: central, rounds: false}\nanything: true")
    assert problems(file) == [
        "world.yaml:1:13: shares.a: expected a number (got true)",
        "world.yaml:2:33: method.rounds: expected a number (got false)",
    ]
    assert load(write("anything: true"), World).anything is True


def test_mistakes_of_file_and_overrides_come_together(write):
    lines = problems(write("pair: 3"), "name", "fleet=3")
    assert [line.partition(": ")[0] for line in lines] == [
        "override 'fleet=3'",
        "override 'name'",
        "world.yaml:1:7",
    ]


# ---- finding files


def test_names_are_found_in_the_search_folders(write, tmp_path):
    write("name: shipped", "shipped/quickstart.yaml")
    write("name: local", "local.yaml")
    assert load("quickstart", World, search=[tmp_path / "shipped"]).name == "shipped"
    assert load("local", World, search=["shipped"]).name == "local"
    assert problems("quickstrt", search=["shipped"]) == [
        "quickstrt: no such scenario file (known scenarios: quickstart); did you mean 'quickstart'?"
    ]


@pytest.mark.parametrize(
    "path", [".", "", "missing.yaml", "a\0b", "x" * 5000, "/dev/null", "file/inside"]
)
def test_paths_that_are_no_file_are_one_clear_problem(write, path):
    write("name: x", "file")
    (line,) = problems(path)
    assert "no such scenario file" in line or "not a file" in line or "cannot be opened" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_says_so(write):
    path = write("name: x")
    path.chmod(0)
    assert problems(path) == ["world.yaml: cannot be opened (Permission denied)"]


# ---- what is recorded


def test_the_resolved_scenario_is_json_and_reads_back_equal(write):
    world = load(
        write("fleet: [{memory: 8 GiB}]\nmethod: {kind: central}\ncolour: blue\npair: [3, 1e-3]"),
        World,
    )
    data = json.loads(json.dumps(resolved(world), allow_nan=False))
    assert World.model_validate(data) == world
    assert data["fleet"] == [{"count": 1, "memory": 8.0 * 1024**3, "uplink": 0.0, "deadline": None}]
    Path("again.yaml").write_text(json.dumps(data), encoding="utf-8")
    assert load("again.yaml", World) == world


def test_the_digest_is_of_the_content_not_of_its_order_or_spelling(write):
    one = load(write("shares: {a: 1, b: 2}\nfleet: [{memory: 1 KiB}]"), World)
    two = load(write("# note\nfleet:\n- memory: 1024\nshares:\n  b: 2\n  a: 1\n"), World)
    assert digest(resolved(one)) == digest(resolved(two))
    assert digest(resolved(one)) != digest(resolved(load(write("shares: {a: 1, b: 3}"), World)))
    # printf '{"a":[1,2.5,null],"b":"x"}' | sha256sum
    assert (
        digest({"b": "x", "a": [1, 2.5, None]})
        == "6739d783db2ab3fd0e308ed566ca042752f3cab5f9516e0e6d9e411041c24c13"
    )
    with pytest.raises(ValueError):
        digest({"a": math.nan})


def test_nearest_forgives_case_and_dashes_and_stays_silent_on_strangers():
    assert nearest("Jetson_TX2", ["jetson-tx2", "jetson-nano"]) == "; did you mean 'jetson-tx2'?"
    assert nearest("zebra", ["jetson-tx2"]) == "" == nearest("x", [])


# ---- any text at all


def either(path, overrides=()):
    """The model or the error's text; anything else escapes and fails the test."""
    try:
        return load(path, World, overrides)
    except ScenarioError as error:
        assert error.problems and all(line.strip() for line in error.problems)
        assert str(error).count("\n") + 1 == len(error.problems)
        return str(error)


fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pieces = [
    "name",
    "fleet",
    "method",
    "kind",
    "extends",
    "federated",
    "start",
    "world.yaml",
    "count",
    "1e400",
    "\n",
    "\n  ",
]
pieces += [
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "!!str ",
    "? ",
    "<<",
    "'",
    '"',
    "|",
    ">",
    "%",
    "---",
    "\t",
    "#",
]


@fuzz
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfea\x00")
def test_any_bytes_are_a_model_or_a_scenario_error(write, raw):
    either(write(raw))


@fuzz
@given(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=25).map("".join))
def test_anything_like_yaml_is_a_model_or_a_scenario_error(write, text):
    either(write(text.encode("utf-8", "surrogatepass")))


@fuzz
@given(st.dictionaries(st.sampled_from(list(World.model_fields)), json_values))
def test_any_data_under_the_right_keys_is_a_model_or_a_scenario_error_with_places(write, data):
    outcome = either(write(json.dumps(data)))
    if isinstance(outcome, str):
        assert all(
            line.startswith(("world.yaml:1:", "... and more")) for line in outcome.split("\n")
        )


@fuzz
@given(
    st.lists(
        st.text(max_size=12)
        | st.from_regex(r"(name|fleet|method|0|kind)(\.[a-z0]{1,6}){0,3}=.{0,8}", fullmatch=True)
    )
)
def test_any_overrides_give_a_model_or_a_scenario_error(write, overrides):
    either(write("name: x\nfleet: [{}]"), overrides)


def test_importing_the_loader_is_light():
    code = (
        "import sys, sim.scenario.file, inputs.units, sim.kernel.streams; print(*{'torch', "
        "'scipy', 'simpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == ""


def test_hundreds_of_mistakes_are_explained_at_the_price_of_one(write):
    """Building the JSON schema takes a tenth of a second; it is built once at most, not for each
    problem.
    """
    from sim.scenario.checks import problems as found_by_checks
    from sim.scenario.schema import Scenario

    group = "  - {{count: 1, device: nonesuch{}, backbone: minilm-l2, link: lte}}\n"
    head = "name: many\ntask: {dataset: trec-questions}\nmethod: {kind: fed-mobillm}\nfleet:\n"
    path, schemas = write(head + "".join(group.format(i) for i in range(300))), []

    class Counted(Scenario):
        @classmethod
        def model_json_schema(cls, *args, **kwargs):
            schemas.append(cls)
            return super().model_json_schema(*args, **kwargs)

    with pytest.raises(ScenarioError) as caught:
        load(path, Counted, check=found_by_checks)
    assert len(schemas) <= 1
    assert "fleet.0.device: no device is called 'nonesuch0'" in caught.value.problems[0]
    assert caught.value.problems[-1] == "... and more problems"
