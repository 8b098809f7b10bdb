"""What a user named reaches the terminal as it is: brackets are no markup, colons no emoji,
whatever verb prints them.
"""

import pytest

ODD = "a[red]b[ -b:smile:"  # not closed, and a picture to some
CLOSING = "o[_b]".replace("_", chr(47))  # closes what nothing opened; as a path it is two folders


@pytest.fixture
def named(scenario_file):
    """A scenario whose backbone has an odd name, beside a comparison."""

    def write(backbone):
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        fleet = [{"count": 2, "device": "jetson-tx2", "backbone": backbone, "link": "lte"}]
        return scenario_file(
            backbones={backbone: {"random": {"model_type": "bert", "vocab_size": 512, **sizes}}},
            fleet=fleet,
            arrivals={"kind": "at-once"},
            compare={"methods": {"a": {"kind": "fed-mobillm"}, "b": {"kind": "mobillm"}}},
        )

    return write


@pytest.mark.thorough
@pytest.mark.parametrize("name", [ODD, CLOSING, "[bold]"])
def test_verbs_print_names_as_they_are(name, named, mobifleet, tmp_path):
    path, folder = named(name), name
    for argv in (
        ("check", path),
        ("run", path, "--dry", "--no-figures", "-q", "--out", folder),
        ("plot", folder),
        ("compare", path, "--dry", "--processes", "1", "--out", f"{folder}-compare"),
    ):
        said = mobifleet(*argv)
        assert said.code == 0, said.err
        # a name may be wrapped between its words
        assert "".join(name.split()) in "".join(said.out.split()), argv
    assert (tmp_path / folder / "summary.json").is_file()


@pytest.mark.parametrize("name", ["../leak", "[/b]", "", "a/b", "-x"])
def test_a_profiles_name_is_no_path(name, mobifleet, tmp_path):
    (tmp_path / "rates.csv").write_text(
        "t_s,up_mbps\n" + "".join(f"{t},{20 + t % 7}\n" for t in range(60))
    )
    for verb in ("link", "device"):
        said = mobifleet(
            "calibrate", verb, "--from", "rates.csv", "--like", "lte", f"--name={name}"
        )
        assert said.code == 2 and "--name: letters, digits" in said.err
    assert not (tmp_path / "calibrations").exists()


def test_a_header_with_brackets_is_shown(mobifleet, tmp_path):
    (tmp_path / "rates.csv").write_text(
        "t_s,[/x]_mbps\n" + "".join(f"{t},{20 + t % 7}\n" for t in range(60))
    )
    said = mobifleet("calibrate", "link", "--from", "rates.csv", "--like", "lte", "--name", "n")
    assert said.code == 0 and "[/x]_mbps" in "".join(said.out.split("\n"))
