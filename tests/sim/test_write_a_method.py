"""The page that builds a method step by step: its blocks are a file, and the file is a method."""

import re
import runpy
from pathlib import Path

import torch

from sim.results.run import open_run
from sim.testing import check_method

PAGE = (Path(__file__).parents[2] / "docs" / "write_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_blocks_of_the_page_are_a_method_that_runs(mobifleet, scenario_file, tmp_path):
    text = "\n\n".join(BLOCKS)
    (tmp_path / "median.py").write_text(text, encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    [given] = re.findall(r"`method: \{(.*?)\}`", PAGE)
    assert given.startswith('kind: "median.py:Median", rounds: 3')
    method = {"kind": "median.py:Median", "rounds": 3, "participation": 0.5, "rank": 4}
    path = scenario_file(method=method)
    assert mobifleet("check", path, "--allow-code").code == 0
    out = tmp_path / "run"
    done = mobifleet("run", path, "--allow-code", "--quiet", "--no-figures", "--out", out)
    assert done.code == 0, done.err
    assert open_run(out).summary["totals"]["updates"] == 3


def test_the_method_of_the_page_keeps_what_methods_promise(tmp_path):
    (tmp_path / "median.py").write_text("\n\n".join(BLOCKS), encoding="utf-8")
    check_method(runpy.run_path(str(tmp_path / "median.py"), run_name="m")["Median"], "m", rounds=2)


def test_the_median_is_one():
    space: dict = {}
    exec(compile(BLOCKS[0], "median.py", "exec"), space)
    answers = [{"w": torch.tensor([x, -x])} for x in (1.0, 2.0, 900.0)]
    state, memory = space["server_update"](
        {"w": torch.zeros(2), "v": torch.ones(1)}, None, answers, [0, 1, 2]
    )
    assert state["w"].tolist() == [2.0, -2.0] and state["v"].tolist() == [1.0] and memory is None
    deep = {"w": torch.zeros(2), "v": torch.tensor([5.0])}  # of a backbone with more layers
    for mixed in ([deep, *answers[1:]], [*answers[1:], deep]):
        state, _ = space["server_update"]({"w": torch.ones(2), "v": torch.ones(1)}, None, mixed, [])
        assert state["w"].tolist() == [2.0, -2.0] and state["v"].tolist() == [5.0]
