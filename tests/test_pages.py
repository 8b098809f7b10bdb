"""Pages of docs/ that build something step by step are followed by a test as a reader would, in one
folder.

A block whose first line is `# NAME` is a file; `sh` blocks are commands; a `text` block holds lines
that the command before it has said, `...` standing for others; `python` blocks run.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from learning.backbones import assets

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = ["python", "add_a_device", "add_a_link", "add_a_data_set"]
HERE = {status.asset.name for status in assets.status() if status.present}

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.fetched,
    pytest.mark.skipif(not {"minilm", "trec-questions"} <= HERE, reason="needs `mobifleet fetch`"),
]


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def said_by(argv: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    said = done.stdout + done.stderr
    return said if done.returncode in (0, 2) else pytest.fail(f"{argv}: {said}")


def plain(line: str) -> str:
    return " ".join(line.split())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page, tmp_path):
    [study] = [text for kind, text in blocks(README) if kind == "yaml"]
    (tmp_path / "my_study.yaml").write_text(study, encoding="utf-8")
    said, ran = "", 0
    for kind, text in blocks((REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        name = re.match(r"# ([\w./-]+\.\w+)\n", text)
        if name:
            path = tmp_path / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text[name.end() :], encoding="utf-8")
        elif kind == "sh":
            said, ran = "", ran + 1
            for command in text.splitlines():
                argv = shlex.split(command, comments=True)
                assert argv[0] == "mobifleet", command
                said += said_by([sys.executable, "-m", *argv], tmp_path)
        elif kind == "python":
            said, ran = said_by([sys.executable, "-c", text], tmp_path), ran + 1
        elif kind == "text":
            lines = [plain(line) for line in said.splitlines()]
            for line in map(plain, text.splitlines()):
                assert line == "..." or line in lines, f"{line!r} is not in\n{said}"
    assert ran
