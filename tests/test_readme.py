"""Every command, scenario and snippet of the README is executed; `make quickstart` and `make test`
are what CI itself runs.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learning.backbones import assets

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
]
SLOW = [
    line.partition("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
]
MOBIFLEET = str(Path(sys.executable).parent / "mobifleet")
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder in which nothing lies but what `make quickstart` fetches."""
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "MOBIFLEET_CACHE": ""}
    code = "from learning.backbones import assets; print(assets.cache_dir())"
    cache = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    there = Path(cache.stdout.strip()) / "assets"
    assert there.is_relative_to(home)
    there.mkdir(parents=True)
    for status in assets.status():
        if status.asset.default:
            (there / status.path.name).symlink_to(status.path)
    return environment


def run(argv, place, home):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **home}
    done = subprocess.run(
        argv, cwd=place, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_every_mobifleet_command_runs_in_the_order_of_the_readme(place, home):
    commands = [command for command in COMMANDS if command.startswith("mobifleet ")]
    assert len(commands) >= 5
    for command in commands:
        run([MOBIFLEET, *shlex.split(command)[1:]], place, home)
    figures = {path.name for path in (place / "runs/mixed-fleet/figures").iterdir()}
    assert {"timeline.png", "timeline.pdf", "devices.pdf", "finish_times.pdf"} <= figures


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in SLOW if "--serve" not in line])
def test_a_command_of_minutes_runs(command, place, home):
    run([MOBIFLEET, *shlex.split(command)[1:]], place, home)


def test_a_command_that_waits_for_somebody_serves(place, home):
    [command] = [line for line in SLOW if "--serve" in line]
    argv = [MOBIFLEET, *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(
        argv, cwd=place, env={**os.environ, **home}, stdout=subprocess.PIPE, text=True
    ) as serving:
        said = serving.stdout.readline()
        serving.send_signal(signal.SIGINT)
    assert "127.0.0.1" in said or "listening" in said


@pytest.mark.thorough
def test_the_snippet_runs_on_the_scenario_of_the_readme(place, home):
    [snippet] = [text for kind, text in BLOCKS if kind == "python"]
    said = run(
        [
            sys.executable,
            "-c",
            snippet + "\nprint(run.summary['best'], set(run.spans()['kind'].to_pylist()))",
        ],
        place,
        home,
    )
    last = said.splitlines()[-1]
    assert float(last.split()[0]) > 0.7
    assert "upload" in last and "train" in last and "jetson-agx-xavier" in said


def test_the_make_commands_are_what_ci_runs():
    wanted = [command for command in COMMANDS if command.startswith("make ")]
    ci = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert wanted and all(command in ci for command in wanted)


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (REPOSITORY / target).is_file(), target
