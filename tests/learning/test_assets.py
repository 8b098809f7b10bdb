"""Fetching: what a broken, hostile or missing wheel can do (nothing), and what an interruption
leaves (nothing).
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from learning.backbones import assets


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class World:
    """A folder of made-up wheels, the table that pins them, and an empty cache."""

    def __init__(self, root: Path):
        self.wheels_dir, self.table_file, self.cache = (
            root / "wheels",
            root / "assets.yaml",
            root / "cache",
        )
        self.wheels_dir.mkdir()
        self.table = {"wheels": {}, "assets": {}}

    def wheel(
        self, name: str, files: dict[str, bytes], damage=lambda content: content, **pin
    ) -> None:
        module = name.replace("-", "_")
        info = f"{module}-1.0.dist-info"
        files = files | {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\n"
            b"Root-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        content = damage(zipped(files))
        (self.wheels_dir / f"{module}-1.0-py3-none-any.whl").write_bytes(content)
        self.table["wheels"][name] = {
            "version": "1.0",
            "bytes": len(content),
            "sha256": sha256(content),
        } | pin

    def asset(
        self, name: str, files: dict[str, bytes], sources: list[dict], default: bool = True
    ) -> None:
        pins = {
            inside: {"bytes": len(content), "sha256": sha256(content)}
            for inside, content in files.items()
        }
        self.table["assets"][name] = {
            "default": default,
            "kind": "data",
            "description": "a test asset",
            "licence": "none",
            "sources": sources,
            "files": pins,
        }

    def fetch(self, names=None, progress=None, offline_wheels: bool = True) -> None:
        self.save()
        wheels_dir = self.wheels_dir if offline_wheels else None
        assets.fetch(names, progress, wheels_dir=wheels_dir, table_file=self.table_file)

    def save(self) -> None:
        assets.table.cache_clear()
        self.table_file.write_text(yaml.safe_dump(self.table))

    def read(self, name: str, inside: str) -> bytes:
        return (assets.path(name, self.table_file) / inside).read_bytes()

    def is_clean(self) -> bool:
        """No asset, whole or half, and no scratch folder."""
        return not [file for file in self.cache.rglob("*") if file.name != "assets"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    return World(tmp_path)


@pytest.fixture
def pip_sees_only_our_wheels(world, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.wheels_dir))


TEXT = {"corpus.txt": b"good film\nbad film\n" * 100}


def one_source(world: World) -> None:
    world.wheel(
        "text-box",
        {
            "text_box/data/corpus.txt": TEXT["corpus.txt"],
            "text_box/__init__.py": b"raise SystemExit",
        },
    )
    world.asset("corpus", TEXT, [{"wheel": "text-box", "folder": "text_box/data"}])


def test_only_the_named_files_reach_the_cache(world):
    one_source(world)
    world.save()
    with pytest.raises(assets.AssetMissing, match="run `mobifleet fetch corpus`"):
        assets.path("corpus", world.table_file)
    assert [line.present for line in assets.status(world.table_file)] == [False]
    notes = []
    world.fetch(progress=lambda *report: notes.append(report))
    assert world.read("corpus", "corpus.txt") == TEXT["corpus.txt"]
    assert [file.name for file in world.cache.rglob("*") if file.is_file()] == ["corpus.txt"]
    assert [line.present for line in assets.status(world.table_file)] == [True]
    assert notes[-1] == ("corpus", 1900, 1900, "fetched from text-box==1.0")


def test_what_is_there_is_left_alone_and_what_is_damaged_is_fetched_again(world):
    one_source(world)
    world.fetch()
    file = assets.path("corpus", world.table_file) / "corpus.txt"
    for wheel in world.wheels_dir.iterdir():
        wheel.rename(wheel.with_suffix(".hidden"))
    notes = []
    world.fetch(
        progress=lambda *report: notes.append(report[-1])
    )  # no wheel is at hand, so nothing can be fetched
    assert notes == ["already in the cache"]
    for wheel in world.wheels_dir.iterdir():
        wheel.rename(wheel.with_suffix(".whl"))
    file.write_bytes(file.read_bytes().replace(b"good", b"evil"))  # same size
    world.fetch()
    assert file.read_bytes() == TEXT["corpus.txt"]


def test_pip_downloads_a_pinned_wheel_once_for_all_its_assets(world, pip_sees_only_our_wheels):
    more = {"labels.csv": b"a,b\n1,2\n"}
    world.wheel(
        "text-box",
        {"text_box/corpus.txt": TEXT["corpus.txt"], "text_box/labels.csv": more["labels.csv"]},
    )
    world.asset("corpus", TEXT, [{"wheel": "text-box", "folder": "text_box"}])
    world.asset("labels", more, [{"wheel": "text-box", "folder": "text_box"}])
    world.asset("other", more, [{"wheel": "text-box", "folder": "text_box"}], default=False)
    notes = []
    world.fetch(offline_wheels=False, progress=lambda *report: notes.append(report))
    assert world.read("labels", "labels.csv") == more["labels.csv"]
    assert [name for name, *_, note in notes if note.startswith("downloaded")] == ["corpus"]
    assert {line.asset.name for line in assets.status(world.table_file) if line.present} == {
        "corpus",
        "labels",
    }
    assert all(0 <= done <= total for _, done, total, _ in notes)


def test_pip_refuses_a_wheel_with_another_hash_and_the_alternate_serves(
    world, pip_sees_only_our_wheels
):
    world.wheel("first-box", {"corpus.txt": b"something else"}, sha256="0" * 64)
    world.wheel("second-box", TEXT)
    world.asset("corpus", TEXT, [{"wheel": "first-box"}, {"wheel": "second-box"}])
    notes = []
    world.fetch(offline_wheels=False, progress=lambda *report: notes.append(report[-1]))
    assert world.read("corpus", "corpus.txt") == TEXT["corpus.txt"]
    assert any("first-box==1.0" in note and "sha256 differs" in note for note in notes)


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    return (
        content[:60] + bytes([content[60] ^ 0xFF]) + content[61:]
    )  # inside the first member's compressed bytes


@pytest.mark.parametrize(
    ("files", "make"),
    [
        ({"corpus.txt": TEXT["corpus.txt"]}, {"damage": _truncate}),
        ({"corpus.txt": TEXT["corpus.txt"]}, {"damage": _flip}),
        ({"corpus.txt": TEXT["corpus.txt"]}, {"sha256": "0" * 64}),
        ({"corpus.txt": TEXT["corpus.txt"].replace(b"good", b"evil")}, {}),
        ({"corpus.txt": TEXT["corpus.txt"] + b"\0" * 5_000_000}, {}),
        ({"moved/corpus.txt": TEXT["corpus.txt"]}, {}),
    ],
    ids=[
        "truncated",
        "flipped-bits",
        "other-wheel",
        "other-content",
        "larger-than-pinned",
        "file-moved",
    ],
)
def test_a_bad_wheel_leads_to_the_alternate_and_leaves_nothing_alone(world, files, make):
    world.wheel("bad-box", files, **make)
    world.asset("corpus", TEXT, [{"wheel": "bad-box"}])
    with pytest.raises(assets.AssetError, match="bad-box"):
        world.fetch()
    assert world.is_clean()
    world.wheel("zip-box", {"inner/model.zip": zipped({"deep/corpus.txt": TEXT["corpus.txt"]})})
    alternate = {"wheel": "zip-box", "archive": "inner/model.zip", "folder": "deep"}
    world.asset("corpus", TEXT, [{"wheel": "bad-box"}, alternate])
    world.fetch()
    assert world.read("corpus", "corpus.txt") == TEXT["corpus.txt"]


def test_names_that_leave_the_folder_are_never_written(world):
    world.wheel("slip-box", TEXT | {"../../escaped.txt": b"x", "/tmp/mobifleet-escaped.txt": b"x"})
    world.asset("corpus", TEXT, [{"wheel": "slip-box"}])
    world.fetch()
    assert [file.name for file in world.cache.rglob("*") if file.is_file()] == ["corpus.txt"]
    assert not (world.cache.parent / "escaped.txt").exists()
    assert not Path("/tmp/mobifleet-escaped.txt").exists()
    for name in ("../escaped.txt", "/escaped.txt", "..\\escaped.txt"):
        world.asset("slip", {name: b"x"}, [{"wheel": "slip-box"}])
        with pytest.raises(assets.AssetError, match="not a plain relative name"):
            world.fetch(["slip"])


NEWS = {
    "box/news/sport/1.txt": "one £".encode(),
    "box/news/arts/2.txt": "two £".encode("cp1252"),
    "box/news/index.txt": b"not below a folder",
    "box/news/arts/deep/3.txt": b"too deep",
    "box/news/arts/4.md": b"of another kind",
    "other/news/arts/5.txt": b"elsewhere",
}
GATHERED = b"".join(
    rb'{"name": "%s", "text": "%s \u00a3"}' % named + b"\n"
    for named in ((b"arts/2.txt", b"two"), (b"sport/1.txt", b"one"))
)


def gather(
    world: World, files: dict[str, bytes], count: int = 2, content: bytes = GATHERED
) -> None:
    world.wheel("news-box", files)
    world.asset("news", {"all.jsonl": content}, [{"wheel": "news-box", "folder": "box/news"}])
    world.table["assets"]["news"]["files"]["all.jsonl"] |= {"gathered": "*/*.txt", "count": count}


def test_many_small_files_are_one_file_of_the_cache(world):
    gather(world, NEWS)
    world.fetch()
    assert world.read("news", "all.jsonl") == GATHERED
    assert [file.name for file in world.cache.rglob("*") if file.is_file()] == ["all.jsonl"]
    notes = []
    world.fetch(progress=lambda *report: notes.append(report[-1]))
    assert notes == ["already in the cache"]


@pytest.mark.parametrize(
    ("files", "count", "said"),
    [
        (NEWS, 3, r"it holds 2 files \*/\*\.txt, not 3"),
        (NEWS | {"box/news/../6.txt": b"escaped"}, 2, "it holds 3 files"),
        (NEWS | {"box/news/arts/2.txt": b"2"}, 2, "not the pinned file"),
        (NEWS | {"box/news/arts/2.txt": b"\0" * 5_000_000}, 2, "not the pinned file"),
        ({"box/news/sport/1.txt": b"one"}, 2, "it holds 1 files"),
    ],
    ids=["another-count", "traversal", "other-content", "larger-than-pinned", "one-missing"],
)
def test_other_small_files_than_those_pinned_leave_nothing(world, files, count, said):
    gather(world, files, count)
    with pytest.raises(assets.AssetError, match=said):
        world.fetch()
    assert world.is_clean()


def test_names_inside_an_archive_never_become_paths_when_gathered(world):
    content = b'{"name": "../6.txt", "text": "escaped"}\n'
    gather(world, {"box/news/../6.txt": b"escaped"}, 1, content)
    world.fetch()
    assert [file.name for file in world.cache.rglob("*") if file.is_file()] == ["all.jsonl"]
    assert not list(world.cache.parent.rglob("6.txt"))


def test_an_interrupted_fetch_keeps_finished_assets_and_no_half_ones(
    world, pip_sees_only_our_wheels
):
    world.wheel("a-box", {"a.txt": b"a" * 10})
    world.wheel("b-box", {"b.txt": b"b" * 10})
    world.asset("a", {"a.txt": b"a" * 10}, [{"wheel": "a-box"}])
    world.asset("b", {"b.txt": b"b" * 10}, [{"wheel": "b-box"}])

    def interrupt(name, done, total, note):
        if name == "b" and note.startswith("downloading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.fetch(offline_wheels=False, progress=interrupt)
    assert {line.asset.name for line in assets.status(world.table_file) if line.present} == {"a"}
    assert not list(world.cache.glob(".fetch-*"))
    notes = []
    world.fetch(
        offline_wheels=False, progress=lambda *report: notes.append((report[0], report[-1]))
    )
    assert notes[0] == ("a", "already in the cache")
    assert world.read("b", "b.txt") == b"b" * 10


def test_without_a_network_the_error_says_every_way_round(world, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    world.wheel("first-box", TEXT)
    world.wheel("second-box", TEXT)
    world.asset("corpus", TEXT, [{"wheel": "first-box"}, {"wheel": "second-box"}])
    with pytest.raises(assets.AssetError) as caught:
        world.fetch(offline_wheels=False)
    message = str(caught.value)
    assert "the package index cannot be reached" in message
    assert (
        "second-box" not in message
    )  # the same index would fail again: its retries would only cost time
    assert f"MOBIFLEET_CACHE to the copy (here it is {world.cache})" in message
    assert "pip download --no-deps" in message and "-d wheels first-box==1.0" in message
    assert "mobifleet fetch corpus --from wheels" in message
    assert world.is_clean()


def test_unknown_names_and_folders_are_named(world):
    one_source(world)
    world.save()
    with pytest.raises(assets.AssetError, match="Did you mean 'corpus'"):
        world.fetch(["corpsu"])
    with pytest.raises(assets.AssetError, match="no folder of wheels at"):
        assets.fetch(None, wheels_dir=world.cache / "nowhere", table_file=world.table_file)


def test_a_new_pin_is_a_new_place(world):
    one_source(world)
    world.fetch()
    before = assets.path("corpus", world.table_file)
    files = {"corpus.txt": b"a newer edition"}
    world.wheel("text-box", {"text_box/data/corpus.txt": files["corpus.txt"]})
    world.asset("corpus", files, [{"wheel": "text-box", "folder": "text_box/data"}])
    world.save()
    with pytest.raises(assets.AssetMissing):
        assets.path("corpus", world.table_file)
    world.fetch()
    assert assets.path("corpus", world.table_file) != before and before.is_dir()


def test_the_shipped_table_pins_everything():
    table = assets.table()
    assert {name for name, asset in table.items() if asset.default} == {
        "minilm",
        "rotten-tomatoes",
        "trec-questions",
        "sms-spam",
        "hutto-sentiment",
        "film-dialogues",
    }
    digests = [sha for asset in table.values() for _, sha in asset.files.values()]
    digests += [source.wheel.sha256 for asset in table.values() for source in asset.sources]
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    assert len({source.wheel.name for source in table["minilm"].sources}) == 4


@pytest.mark.fetched
def test_the_default_set_is_what_was_pinned():
    missing = [
        line.asset.name for line in assets.status() if line.asset.default and not line.present
    ]
    if missing:
        pytest.skip(f"run `mobifleet fetch` (absent: {', '.join(missing)})")
    notes = []
    assets.fetch(progress=lambda *report: notes.append(report[-1]))
    assert notes == ["already in the cache"] * 6


def test_the_data_modules_import_without_the_heavy_libraries():
    program = (
        "import sys, learning.backbones.assets, learning.data.texts, learning.data.partition, "
        "learning.backbones.convert;"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'onnx', 'gguf') if name in "
        "sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )
