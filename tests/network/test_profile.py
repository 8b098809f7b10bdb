"""Every shipped link profile loads and can say where each of its numbers comes from."""

import pytest

from inputs.files import FileProblem
from network import profile
from network.errors import NetworkError

GOOD = """
name: mine
up_bps: {value: 1e6, basis: measured, source: my own}
down_bps: {value: 2000000, basis: derived, source: my own}
latency_s: {value: 0.02, basis: estimated, source: a guess}
"""


def test_the_names_that_scenarios_use_are_there():
    assert {
        "wifi-home",
        "lte",
        "lte-field-average",
        "5g-nsa-low",
        "5g-sa-low",
        "5g-mmwave",
        "fixed-line",
        "ethernet-1g",
        "fedadapter-1mbyte",
    } <= set(profile.names())


@pytest.mark.parametrize("name", profile.names())
def test_every_number_has_its_source(name):
    link = profile.load(name)
    assert link.name == name
    for key in ("up_bps", "down_bps", "latency_s"):
        entry = link.provenance[key]
        assert entry["basis"] in profile.BASES
        assert all(entry[field] for field in ("source", "date", "conditions"))
    assert 1e5 < link.up_bps <= 2e9 and 1e5 < link.down_bps <= 2e9  # bit/s, not Mbit/s
    assert link.latency_s < 0.5  # s, not ms


def test_numbers_taken_over_from_their_sources():
    wifi = profile.load("wifi-home")
    assert (wifi.up_bps, wifi.down_bps, wifi.latency_s) == (
        26.9e6,
        35.4e6,
        pytest.approx((3e-3 + 10e-3) / 2),
    )
    assert profile.load("lte").latency_s == pytest.approx(89e-3 / 2)
    assert profile.load("fedadapter-1mbyte").up_bps == 8 * 1_000_000
    assert profile.load("ethernet-1g").up_bps == pytest.approx(1e9 * 1448 / 1538, rel=1e-6)
    assert profile.load("lte-field-average").up_bps == pytest.approx(
        (10.5e6 + 8.2e6 + 6.7e6) / 3, rel=1e-3
    )


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'wifi-home'"):
        profile.load("wifi_home")
    with pytest.raises(profile.UnknownProfileError, match="5g-mmwave"):
        profile.load("5g mmwave")


def test_your_own_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    mine = profile.load(path)
    assert (mine.up_bps, mine.down_bps, mine.latency_s, mine.overhead_s) == (1e6, 2e6, 0.02, 0.0)
    assert mine.provenance["up_bps"] == {"basis": "measured", "source": "my own"}
    assert profile.load(str(path)) == mine


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "up_bps: {value: 1e6, basis: measured, source: my own}",
            "up_bps: 1e6",
            "up_bps: must be given as",
        ),
        ("source: my own}", "source: }", "source"),
        ("basis: measured", "basis: rumour", "basis must be one of"),
        ("value: 1e6", "value: fast", "value must be a number"),
        ("value: 1e6", "value: 0", "must be finite and > 0 bit/s"),
        ("value: 0.02", "value: -1", "must be finite and >= 0 s"),
        ("latency_s", "latency_ms", "unknown field 'latency_ms'"),
        ("name: mine", "nom: mine", "with a name"),
        ("{value: 1e6", "{{value: 1e6", "not YAML"),
    ],
)
def test_a_bad_file_is_told_what_is_wrong(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises((NetworkError, FileProblem), match=message):
        profile.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileProblem, match="cannot be opened"):
        profile.load(tmp_path / "nothing.yaml")


OWN = """\
name: my-lte
extends: lte
basis: own
up_bps: 8 Mbit/s
overhead_s: 90 ms
"""


def test_a_file_may_extend_a_shipped_link_with_plain_numbers(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN)
    mine, lte = profile.load("mine.yaml", tmp_path), profile.load("lte")
    assert (mine.name, mine.up_bps, mine.overhead_s) == ("my-lte", 8e6, 0.09)
    kept = ("down_bps", "latency_s", "cv", "lag1", "window_bytes", "initial_window_bytes")
    assert all(getattr(mine, key) == getattr(lte, key) for key in kept)
    assert mine.provenance["up_bps"]["basis"] == "own"
    assert mine.provenance["cv"] == lte.provenance["cv"]
    files = [path.name for path in profile.files("mine.yaml", tmp_path)]
    assert files == ["mine.yaml", "lte.yaml"]


def test_all_mistakes_of_a_file_come_at_once_each_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        OWN.replace("8 Mbit/s", "8 Mb/s").replace("overhead_s", "delay") + "loss: 1.2\n"
    )
    with pytest.raises(NetworkError) as caught:
        profile.load(path)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}, line {n}" for n in (4, 5, 6)]
    assert "could mean bits or bytes: write 'MB/s' for bytes, 'Mbit/s' for bits" in lines[0]
    assert "unknown field 'delay'" in lines[1] and "loss: must be >= 0 and below 1" in lines[2]


def test_a_link_needs_both_rates_and_its_latency(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbasis: own\nup_bps: 2 MB/s\n")
    with pytest.raises(NetworkError) as caught:
        profile.load(path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "down_bps",
        "latency_s",
    ]
    path.write_text("name: mine\nbasis: own\nup_bps: 2 MB/s\ndown_bps: 3e7\nlatency_s: 20 ms\n")
    mine = profile.load(path)
    assert (mine.up_bps, mine.down_bps, mine.rtt_s) == (16e6, 30e6, 0.04)
