"""Every command, scenario and snippet of the README is executed; `make quickstart` and `make test` are what CI itself runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from learning import assets

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
HERE = {status.asset.name for status in assets.status() if status.present}

pytestmark = [
    pytest.mark.fetched,
    pytest.mark.skipif(not {"minilm", "trec-questions"} <= HERE, reason="needs `mobifleet fetch`"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, with the README's scenario in it."""
    folder = tmp_path_factory.mktemp("readme")
    [scenario] = [text for kind, text in BLOCKS if kind == "yaml"]
    (folder / "my_study.yaml").write_text(scenario, encoding="utf-8")
    return folder


def run(argv, place):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_mobifleet_command_runs_in_the_order_of_the_readme(place):
    commands = [command for command in COMMANDS if command.startswith("mobifleet ")]
    assert len(commands) >= 5
    for command in commands:
        run([str(Path(sys.executable).parent / "mobifleet"), *shlex.split(command)[1:]], place)
    figures = {path.name for path in (place / "runs/mixed-fleet/figures").iterdir()}
    assert {"timeline.png", "timeline.pdf", "devices.pdf", "finish_times.pdf"} <= figures


def test_the_snippet_runs_on_the_scenario_of_the_readme(place):
    [snippet] = [text for kind, text in BLOCKS if kind == "python"]
    said = run([sys.executable, "-c", snippet + "\nprint(run.summary['best'], set(spans.kind))"], place)
    assert float(said.split()[0]) > 0.7
    assert "upload" in said and "train" in said


def test_the_make_commands_are_what_ci_runs():
    wanted = [command for command in COMMANDS if command.startswith("make ")]
    ci = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert wanted and all(command in ci for command in wanted)


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (REPOSITORY / target).is_file(), target
