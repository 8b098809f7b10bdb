"""The arrows between the packages, and what each of them never does, read from the source
itself.
"""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("mobifleet", "inputs", "learning", "devices", "network", "sim")
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
NEVER = {
    "mobifleet": {"torch", "transformers", "pandas", "learning", "devices", "network", "scenarios"},
    "inputs": {
        "torch",
        "transformers",
        "simpy",
        "numpy",
        "learning",
        "devices",
        "network",
        "sim",
        "scenarios",
    },
    "learning": {"simpy", "devices", "network", "sim", "scenarios"},
    "devices": {"torch", "transformers", "simpy", "learning", "network", "sim", "scenarios"},
    "network": {"torch", "transformers", "learning", "devices", "sim", "scenarios"},
    "sim": {"scenarios"},
}


def imported(tree: ast.AST) -> set[str]:
    """Full names of all modules that a tree imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def used(tree: ast.AST) -> set[str]:
    """Every name and attribute chain that a tree mentions."""
    return {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}


def test_the_contracts_of_import_linter_hold():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "3 kept, 0 broken" in found.stdout


def circles(*packages: str, **how: bool) -> list[set[str]]:
    """Files that import one another in a circle, each with all that it is tangled with: imports
    inside functions count, and those of types alone unless `how` leaves them out.
    """
    graph = grimp.build_graph(*packages, cache_dir=None, **how)
    arrows = networkx.DiGraph(
        (module, other)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    )
    return [found for found in networkx.strongly_connected_components(arrows) if len(found) > 1]


def test_a_circle_is_found_wherever_in_the_files_its_imports_stand(tmp_path, monkeypatch):
    (tmp_path / "ring").mkdir()
    files = {
        "__init__": "",
        "a": "from ring import b",
        "b": "def later():\n    from ring.c import late",
        "c": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from ring.a import A",
        "d": "import ring.a",
    }
    for name, text in files.items():
        (tmp_path / "ring" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert circles("ring") == [{"ring.a", "ring.b", "ring.c"}]
    assert not circles("ring", exclude_type_checking_imports=True)


def test_files_import_one_another_in_a_circle_for_types_alone_and_at_most_three():
    assert not circles(*PACKAGES, exclude_type_checking_imports=True)
    assert not [found for found in circles(*PACKAGES) if len(found) > 3]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_module_keeps_to_its_place(path):
    tree, package = (
        ast.parse(path.read_text(encoding="utf-8")),
        path.relative_to(REPOSITORY).parts[0],
    )
    assert ast.get_docstring(tree), "every module says what it is for"
    roots = {name.partition(".")[0] for name in imported(tree)}
    assert not roots & NEVER[package]
    assert not roots & {"pickle", "cloudpickle", "dill", "shelve", "marshal", "random"}
    names = used(tree)
    assert not names & {
        "eval",
        "exec",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "torch.load",
        "np.load",
    }
    draws = {name for name in names if name.startswith(("np.random.", "numpy.random."))}
    assert not draws - {
        f"np.random.{name}" for name in ("Generator", "PCG64", "SeedSequence", "default_rng")
    }
    if package != "sim":
        clocks = {"time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns"}
        clocks -= (
            {"time"} if path.stem in ("assets", "activation_store") else set()
        )  # they clear away what died long ago
        assert not {name for name in names if name in {f"time.{clock}" for clock in clocks}}
        assert not {"datetime.datetime.now", "datetime.now"} & names
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 540


# modules of learning on the way of `--help`, `check`, `list` and `--dry`
LIGHT = {
    "": {"kept"},
    "backbones": {"assets", "batches", "catalogue", "tokens", "trial"},
    "cost": {"cost_cache", "costs", "forward_pass"},
    "data": {"cells", "labels", "partition", "tables", "texts"},
    "side": {
        *("activation_store", "activations", "config", "prediction_difference", "readouts"),
        *("store_size", "taps"),
    },
}
DRAW = (
    "finish_times",
    "gantt",
    "front_plots",
    "page",
    "plots",
    "figure",
    "saving_figures",
)  # imported by whoever draws, when it draws


def test_the_kernel_says_what_everything_is():
    found = {
        f"{path.name}:{node.lineno}"
        for path in (REPOSITORY / "sim" / "kernel").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        or (isinstance(node, ast.alias) and node.name == "Any")
    }
    assert not found, "Any tells neither a reader nor mypy anything"


def test_a_public_class_has_a_name_of_its_own():
    """Who reads `Task` or `Server` in a message, a trace or a search finds one thing."""
    found = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                place = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
                found.setdefault(node.name, []).append(place)
    assert len(found) > 200
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_what_answers_at_once_imports_nothing_heavy_at_its_top():
    """Modules of learning that compute may; those on the way of `--help`, `check`, `list` and
    `--dry` may not.
    """
    for path in MODULES:
        package, *room = path.relative_to(REPOSITORY).parts[:-1]
        if package == "learning" and path.stem not in LIGHT.get("/".join(room), ()):
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        top = ast.Module(
            [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        heavy = {"torch", "transformers", *([] if path.stem in DRAW else ["matplotlib"])}
        assert not {name.partition(".")[0] for name in imported(top)} & heavy, path


def test_a_method_is_one_short_file():
    path = REPOSITORY / "sim" / "methods" / "side_tuning" / "fed_mobillm.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
