"""The command line: it answers at once, says what is wrong in one message, and shows progress to
people and to logs.
"""

import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from sim.cli.listing import LISTINGS
from sim.cli.terminal import console
from sim.scenario import registry

VERBS = ("run", "plot", "check", "list", "fetch", "cache")
PROBE = """
import sys, time
sys.argv = ["mobifleet", *sys.argv[1:]]
from sim.cli import main as cli
try:
    cli.main()
finally:
    heavy = [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]
    print("CPU", time.process_time(), "HEAVY", ",".join(heavy), file=sys.stderr)
"""


@pytest.fixture
def probe(shell):
    """Runs the command line in a fresh Python; returns (exit code, output, CPU seconds, heavy
    modules imported).
    """

    def run(*argv: object) -> tuple[int, str, float, str]:
        process = shell("-c", PROBE, *argv)
        out, err = process.communicate(timeout=600)
        found = re.search(r"^CPU (\S+) HEAVY (\S*)$", err, re.M)
        assert found, err
        return process.returncode, out + err[: found.start()], float(found[1]), found[2]

    return run


@pytest.mark.parametrize("argv", [(), ("calibrate",)], ids=["nothing", "calibrate"])
def test_a_command_without_its_verb_shows_the_help(argv, mobifleet):
    said = mobifleet(*argv)
    assert said.code == 2 and "Usage" in said.out + said.err and "fault" not in said.err


@pytest.mark.parametrize("argv", [("--help",), *((verb, "--help") for verb in VERBS)], ids=" ".join)
def test_help_answers_at_once(argv, probe):
    code, out, _, heavy = probe(*argv)
    assert (code, heavy) == (0, "")
    assert "mobifleet" in out
    if argv[0] in ("run", "check", "plot"):
        assert f"mobifleet {argv[0]}" in out  # an example to copy


@pytest.mark.timed
@pytest.mark.fetched
@pytest.mark.parametrize(
    ("argv", "most_s"),
    [(("--help",), 0.5), (("run", "--help"), 0.5), (("check", "quickstart"), 0.7)],
)
def test_answers_take_less_than_a_second(argv, most_s, probe):
    assert min(probe(*argv)[2] for _ in range(3)) < most_s


@pytest.mark.parametrize("what", LISTINGS)
def test_lists_answer_without_the_heavy_modules(what, mobifleet):
    outcome = mobifleet("list", what)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) > 1


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("datasets", "newsgroups-pairs hutto-sentiment"),
        ("assets", "distilbert-cased"),
        ("backbones", "paraphrase-minilm-l3"),
        ("devices", "laptop-ryzen-8945hs int8-batched-maxq"),
    ],
)
def test_names_to_copy_stay_whole_on_a_narrow_terminal(what, names, mobifleet, monkeypatch):
    monkeypatch.setattr("sim.cli.list.console", Console(width=80, markup=False))
    said = mobifleet("list", what).out
    assert set(names.split()) <= set(said.split())
    assert max(map(len, said.splitlines())) <= 80


def test_check_list_and_a_dry_run_import_nothing_heavy(probe, scenario_file, tmp_path):
    path = scenario_file(
        fleet=[{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    )
    assert probe("list", "backbones")[::3] == (0, "")
    code, out, _, heavy = probe("check", path)
    assert (code, heavy) == (0, "")
    assert "tiny: fine" in out
    code, out, _, heavy = probe("run", path, "--dry", "--no-figures", "--out", "dry")
    assert (code, heavy) == (0, ""), out
    assert "nothing learned" in out
    assert not (tmp_path / "dry" / "model").exists()
    assert probe("plot", "dry", "--out", "figures")[3] in ("", "matplotlib")


def test_check_says_what_a_scenario_will_do(mobifleet, scenario_file):
    outcome = mobifleet("check", scenario_file(cost_as={"backbone": "bert-base"}))
    assert outcome.code == 0
    assert "random-bert-l1" in outcome.out
    assert "bert-base" in outcome.out
    assert not list(scenario_file().parent.glob("runs*"))  # it leaves nothing behind


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("rnu", "quickstart"), "rnu"),
        (("run",), "SCENARIO"),
        (("run", "quickstrat"), "quickstart"),
        (("run", "nowhere/at/all.yaml"), "nowhere/at/all.yaml"),
        (("run", "quickstart", "--frobnicate"), "--frobnicate"),
        (("run", "quickstart", "--seed", "-1"), "--seed"),
        (("run", "quickstart", "--seed", "x"), "--seed"),
        (("run", "quickstart", "--set", "task.trian=5"), "did you mean 'train'?"),
        (("run", "quickstart", "--set", "task"), "key=value"),
        (("run", "quickstart", "--workers", "0"), "--workers"),
        (("run", "quickstart", "--workers", "rya"), "--workers"),
        (("list", "device"), "devices"),
        (("check", "quickstrat"), "quickstart"),
        (("plot", "nowhere"), "nowhere"),
        (("plot", "nowhere", "--format", "bmp"), "png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_message_and_exit_code_2(argv, says, mobifleet, tmp_path):
    outcome = mobifleet(*argv)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


def test_without_a_verb_the_help_is_shown(mobifleet):
    outcome = mobifleet()
    assert "run" in outcome.out + outcome.err
    assert "Traceback" not in outcome.err


def test_a_run_on_no_terminal_prints_plain_lines_and_its_summary(
    mobifleet, scenario_file, tmp_path
):
    outcome = mobifleet("run", scenario_file(), "--no-figures", "--workers", "1", "--seed", "5")
    assert (outcome.code, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out
    assert "forward passes of random-bert: 0/" in outcome.out or "accuracy" in outcome.out
    for word in ("seed 5", "exhausted", "uplink", "device energy", "3 ok", "digest", "runs/tiny"):
        assert word in outcome.out
    text = " ".join(outcome.out.split())
    [run] = (tmp_path / "runs").iterdir()
    host = json.loads((run / "summary.json").read_text(encoding="utf-8"))["host"]
    parts = {"building", "store", "torch", "events", "recording", "figures"}
    assert host["seconds"].keys() == parts
    # the time of each part is told once
    assert {name for name in host if name.endswith("_s")} == {"wall_s"}
    for part in parts:
        assert re.search(rf"time went to .*\b{part} [0-9.]+ s", text), part


def test_quiet_prints_the_summary_alone(mobifleet, scenario_file):
    outcome = mobifleet("run", scenario_file(), "-q", "--no-figures", "--dry")
    assert outcome.out.startswith("tiny · fed-mobillm · seed 0")


def test_seed_and_set_reach_the_run(mobifleet, scenario_file, tmp_path):
    argv = (
        "--dry",
        "-q",
        "--no-figures",
        "--out",
        "out",
        "--seed",
        "7",
        "--set",
        "method.replay=2",
    )
    assert mobifleet("run", scenario_file(), *argv).code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["seed"] == manifest["scenario"]["seed"] == 7
    assert manifest["scenario"]["method"]["replay"] == 2
    assert manifest["command"][1:3] == ["run", str(scenario_file())]
    assert manifest["versions"]["simpy"]


def test_a_reader_who_leaves_early_is_no_error(shell):
    process = shell("-c", "from sim.cli import main as cli; cli.main()", "list", "devices")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(30)


def test_the_installed_command_is_the_same_program(tmp_path):
    script = __import__("pathlib").Path(sys.executable).with_name("mobifleet")
    if not script.is_file():
        pytest.skip("not installed as a command")
    done = subprocess.run([script, "list", "methods"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "fed-mobillm" in done.stdout


def test_a_fault_of_ours_is_called_one_and_says_how_to_report_it(mobifleet, monkeypatch):
    def broken():
        raise KeyError("a key that\nnobody expected")

    monkeypatch.setitem(LISTINGS, "devices", broken)
    outcome = mobifleet("list", "devices")
    assert outcome.code == 70
    assert "this is a fault of mobifleet's, not yours: KeyError: 'a key that" in outcome.err
    assert (
        "test_cli.py:" in outcome.err
        and "please report" in outcome.err
        and "Traceback" not in outcome.err
    )
    monkeypatch.setenv("MOBIFLEET_TRACEBACK", "1")
    with pytest.raises(KeyError):
        mobifleet("list", "devices")


@pytest.mark.parametrize("text", ["²", "0", "-1", "1.5", "10000000000", "two", ""])
def test_odd_numbers_of_workers_are_refused_in_one_line(mobifleet, scenario_file, text):
    outcome = mobifleet("run", scenario_file(), "--workers", text)
    assert outcome.code == 2 and "--workers: a number from 1" in outcome.err


def test_the_version_is_told(mobifleet):
    outcome = mobifleet("--version")
    assert outcome.code == 0 and re.fullmatch(r"mobifleet \d+\.\d+\.\d+", outcome.out.strip())


@pytest.mark.parametrize("columns", [80, 120])
def test_every_method_has_a_description_of_its_own(mobifleet, monkeypatch, columns):
    monkeypatch.setattr(console, "width", columns)
    said = {}
    for line in mobifleet("list", "methods").out.splitlines()[1:]:
        name, what = re.fullmatch(r" (\S*) +(.*?) *", line).groups()
        if name:
            kind = name
        said[kind] = f"{said.get(kind, '')} {what}".strip()
    assert said.keys() == registry.known().keys()
    assert len(set(said.values())) == len(said) and all(said.values())
    assert said["fedavg-lora"] == "FedAvg of LoRA in synchronous rounds."
    assert said["fedasync"].endswith("every answer is mixed into the model as it lands.")
