"""What the repository holds: no weights, no data, no caches, nothing large, and text that is
clean.
"""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from sim.cli.main import app

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


SAID = re.compile(r'^[ ]*r?"""(.*?)"""|(?:^|[ ])#(.*?)$', re.M | re.S)  # docstrings, comments


def said_and_code(path: Path) -> tuple[str, str]:
    """What a file says to its reader, and what it says to the machine."""
    text = "" if path.suffix in BINARY else path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text, ""
    said = "\n".join(docstring or comment for docstring, comment in SAID.findall(text))
    return said, SAID.sub("", text)


def is_there(dotted: str) -> bool:
    """Whether `sim.kernel.work.ClientTask` is: folders, perhaps a module, a name that it holds."""
    place, parts = REPOSITORY, dotted.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return True
    module = place / "__init__.py"
    if (place / f"{parts[0]}.py").is_file():
        module = place / f"{parts.pop(0)}.py"
    text = module.read_text(encoding="utf-8") if module.is_file() else ""
    return not parts or bool(re.search(rf"\b{parts[0]}\b", text))


def test_files_modules_settings_and_functions_that_pages_and_comments_name_are_there():
    """A file of the reader's own is called `my_...`, or is named as one that holds something
    (`median.py:Median`); capitals stand for any name. What once was is the changelog's to say.
    """
    texts = {path: said_and_code(path) for path in tracked()}
    files = [path.relative_to(REPOSITORY).as_posix() for path in texts]
    ends = {"/".join(name.split("/")[-n:]) for name in files for n in range(1, name.count("/") + 2)}
    folders = {name.partition("/")[0] for name in files if "/" in name}
    words = {word for _, code in texts.values() for word in re.findall(r"\w+", code)}
    words |= {path.stem for path in texts}
    words |= {"x86_64", "AuthenticAMD", "PeftModel", "iperf_api", "rateMbps", "rx_KB"}
    words |= {"y_hat", "delta_y", "_flop", "_j", "sustained_", "CUDA_VISIBLE_DEVICES"}
    gone = []
    for path, (said, _) in texts.items():
        own = set(re.findall(r"(\w+\.py):\w", said))
        for file in re.findall(r"(?<![\w./-])(?:[\w.-]+/)*\w+\.(?:py|yaml|md|json)\b", said):
            ours = file.endswith(".py") or file.partition("/")[0] in folders
            placeholder = re.search(r"[A-Z]{4}|my_", file) and not file.endswith(".md")
            if ours and not placeholder and file not in ends | own:
                gone += [(path.name, file)]
        for dotted in re.findall(r"(?<![\w./-])(?:sim|learning|inputs)(?:\.[a-zA-Z]\w*)+", said):
            if not is_there(dotted):
                gone += [(path.name, dotted)]
        for quoted in re.findall(r"`([^`\n]+)`", said) if path.name != "CHANGELOG.md" else ():
            for word in re.findall(r"(?<![\w./<>-])[A-Za-z_]\w*", quoted):
                telling = re.search(r"_|[a-z][A-Z]", word) and not re.match(r"my_|My", word)
                if telling and word not in words:
                    gone += [(path.name, word)]
    assert not gone


def test_links_between_pages_lead_somewhere_and_to_every_page():
    def anchors(page: Path) -> set[str]:
        heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
        return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}

    linked = set()
    for path in tracked():
        if path.suffix == ".md":
            for link in re.findall(r"\]\(([^)\s:]+)\)", path.read_text(encoding="utf-8")):
                file, _, anchor = link.partition("#")
                page = path.parent / file if file else path
                assert page.exists(), (path, link)
                linked |= {page.resolve()} - {path.resolve()}
                assert not anchor or anchor in anchors(page), (path, link)
    pages = {path.resolve() for path in tracked() if path.match("docs/*.md")}
    assert not pages - linked


def commands_of(page: Path) -> list[list[str]]:
    """The command lines of ours on a page, in its text and in its blocks, that say more than the
    verb.
    """
    text = page.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if "`" not in line]
    said = [*re.findall(r"`(mobifleet [^`]+)`", text), *lines]
    found = [shlex.split(line, comments=True) for line in said if re.match(r"mobifleet \w", line)]
    return [argv[1:] for argv in found if len(argv) > 2]


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_can_be_pasted(page):
    """None is cut short, and the command line takes each: its verb, options and kinds of values."""
    for argv in commands_of(page):
        command, rest = typer.main.get_command(app), argv
        while isinstance(command, TyperGroup):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(command.name, list(rest))
        if page.stem != "comparison":  # whose text is that of its template
            assert not re.search(r"\.\.\.|…", " ".join(argv)), argv


def test_the_pages_have_commands_to_try():
    assert sum(len(commands_of(page)) for page in PAGES) > 80
