"""scikit-learn stays within the attacks, and out of the way of everybody else."""

import ast
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PACKAGES = ("mobifleet", "inputs", "learning", "devices", "network", "sim")


def test_attacks_alone_import_scikit_learn():
    found = set()
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                imported = []
                if isinstance(node, ast.Import):
                    imported = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    imported = [str(node.module)]
                if {name.partition(".")[0] for name in imported} & {"sklearn", "threadpoolctl"}:
                    found.add(path.parent.relative_to(REPOSITORY).as_posix())
    assert found == {"learning/attacks"}


def test_the_door_and_the_modules_of_attacks_open_without_it():
    modules = sorted(path.stem for path in (REPOSITORY / "learning" / "attacks").glob("[a-z]*.py"))
    said = "; ".join(f"import learning.attacks.{name}" for name in modules)
    code = f"import sys, mobifleet; {said}; assert 'sklearn' not in sys.modules, 'imported'"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
