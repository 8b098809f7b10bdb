"""A file of the user's that hides a package of ours is named in the error, wherever he comes in."""

import os
import subprocess
import sys

import pytest

SCRIPT = "import mobifleet\nprint(mobifleet.load('quickstart').name)\n"
IN_PLACE = {
    key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")
}


@pytest.fixture
def python(tmp_path, repository_on_path):
    """Runs Python in tmp_path as a user would, ours being installed; (code, stdout, stderr)."""

    def run(*argv: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=tmp_path,
            env={**IN_PLACE, **repository_on_path, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def repository_on_path(tmp_path_factory):
    """Ours come after the user's own folder on the path, as installed packages do."""
    from mobifleet.hidden import HOME

    return {"PYTHONPATH": str(HOME)}


NAMES = ("network.py", "sim.py", "devices/__init__.py", "learning.py", "inputs.py")


def put(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("RATE = 3\n", encoding="utf-8")
    return path.parent if path.name == "__init__.py" else path


@pytest.mark.parametrize("name", NAMES)
def test_beside_a_script_the_last_line_names_the_file_and_what_to_do(name, python, tmp_path):
    (tmp_path / "study.py").write_text(SCRIPT, encoding="utf-8")
    own = put(tmp_path, name)
    code, said, error = python("study.py")
    last = error.strip().splitlines()[-1]
    assert (code, said) == (1, "")
    assert last.startswith("ImportError: ") and str(own.resolve()) in last and "rename" in last


def test_one_that_the_script_has_imported_already_is_named_too(python, tmp_path):
    (tmp_path / "study.py").write_text(f"import network\n{SCRIPT}", encoding="utf-8")
    own = put(tmp_path, "network.py")
    code, _, error = python("study.py")
    assert code == 1 and error.strip().splitlines()[-1].startswith(f"ImportError: {own.resolve()}")


@pytest.mark.parametrize("name", NAMES)
def test_python_m_says_one_line_and_exits_as_for_any_mistake_of_a_users(name, python, tmp_path):
    own = put(tmp_path, name)
    code, said, error = python("-m", "mobifleet", "list", "links")
    assert (code, said, len(error.strip().splitlines())) == (2, "", 1)
    assert error.startswith(f"{own.resolve()} hides mobifleet's own package")


def test_the_console_script_sees_what_pythonpath_puts_before_it(python, tmp_path):
    own = put(tmp_path, "devices/__init__.py")
    script = "from mobifleet.__main__ import main; main()"  # what pip writes into the script
    from mobifleet.hidden import HOME

    path = os.pathsep.join([str(tmp_path), str(HOME)])
    code, _, error = python("-P", "-c", script, "--version", PYTHONPATH=path)
    assert code == 2 and error.startswith(str(own.resolve()))


def test_what_hides_nothing_is_let_be(python, tmp_path):
    """Folders of data, which are no packages, and modules of other names."""
    for name in ("devices/mine.yaml", "network/mine.yaml", "models.py", "results.py"):
        put(tmp_path, name)
    (tmp_path / "study.py").write_text(SCRIPT, encoding="utf-8")
    assert python("study.py") == (0, "quickstart\n", "")
    code, said, _ = python("-m", "mobifleet", "--version")
    assert code == 0 and said.startswith("mobifleet ")
