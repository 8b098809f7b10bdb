"""What the repository holds: no weights, no data, no caches, nothing large, and text that is
clean.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
LARGEST_BYTES = 1_000_000
BINARY = {".png", ".jpg", ".gif", ".svg", ".ico", ".pdf"}


def tracked() -> list[Path]:
    """Files under version control that are there; all of them where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [
        path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()
    ]


def test_nothing_large_and_no_weights_or_caches_are_tracked():
    for path in tracked():
        assert path.stat().st_size <= LARGEST_BYTES, path
        assert path.suffix not in {
            ".safetensors",
            ".pt",
            ".bin",
            ".pkl",
            ".onnx",
            ".gguf",
            ".parquet",
            ".pyc",
        }, path
        assert not {"__pycache__", ".venv", "runs", ".ruff_cache", ".hypothesis"} & set(
            path.parts
        ), path


def test_text_is_utf8_ends_with_a_newline_and_has_no_trailing_blanks():
    for path in tracked():
        if path.suffix in BINARY:
            continue
        text = path.read_bytes().decode("utf-8")
        assert "\r" not in text, path
        assert not text or text.endswith("\n"), path
        if path.suffix in {".py", ".yaml", ".toml"}:
            assert not re.search(r"[ \t]+$", text, re.M), path


def test_no_absolute_path_of_a_machine_is_written_down():
    machine = re.compile(r"(?<![\w.])/(?:" + "|".join(["home", "Users", "work", "root"]) + r")/\w")
    for path in tracked():
        if path.suffix not in BINARY:
            assert not machine.search(path.read_text(encoding="utf-8")), path


def test_python_stays_within_its_line_length():
    for path in tracked():
        if path.suffix == ".py":
            assert max(map(len, path.read_text(encoding="utf-8").splitlines()), default=0) <= 100, (
                path
            )


def test_every_public_function_and_class_of_the_packages_says_what_it_does():
    import ast

    for package in ("mobifleet", "inputs", "learning", "devices", "network", "sim"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith(
                    "_"
                ):
                    assert ast.get_docstring(node), f"{path}: {node.name}"


def test_what_is_said_in_several_files_agrees():
    """The version, Python's versions, and the ruff of a commit and of `make lint`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation, hooks, workflow = (
        yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
        for name in ("CITATION.cff", ".pre-commit-config.yaml", ".github/workflows/test.yml")
    )
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={hooks['repos'][0]['rev'].removeprefix('v')}" in pins
    oldest = project["requires-python"].removeprefix(">=")
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"][0] == oldest


def test_every_package_says_that_it_is_typed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["mypy"]["files"]:
        assert (REPOSITORY / package / "py.typed").is_file()
