"""Counts in the user's cache: by what they are of and who counted; damaged files and older counters
are counted again.
"""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from learning import kept
from learning.backbones.catalogue import BackboneError, find
from learning.cost import cost_cache
from learning.cost.cost_cache import counted
from learning.cost.count_forward_only import forward_architecture, jvp_pass
from learning.cost.count_split import part_architecture
from learning.cost.count_training import training_architecture
from learning.cost.forward_pass import architecture

TINY = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TINY |= {"intermediate_size": 32, "max_position_embeddings": 64}
OWN = find("mine", {"mine": {"random": TINY}})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def once(number):
    """A counter that may count so many times."""
    left = [number]

    def count():
        left[0] -= 1
        assert left[0] >= 0, "counted once more"
        return {"flop": [1.5, 2, 3], "name": "x"}

    return count


def test_a_count_is_made_once_and_comes_back_as_it_was(cache):
    count = once(1)
    assert counted("mine", "a pass", [TINY, 1], count) == counted(
        "mine", "a pass", [TINY, 1], count
    )
    assert counted("mine", "a pass", [TINY, 2], once(1)) == counted(
        "mine", "training", [TINY, 2], once(1)
    )
    assert len(list((cache / "costs").iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2].encode(),
        lambda text: b"\xff\xfe\x00" + text.encode(),
        lambda text: text.replace("1.5", "1.6").encode(),
        lambda text: text.replace("flop", "flap").encode(),
        lambda text: json.dumps(json.loads(text)["found"]).encode(),
        lambda text: b"[" * 100_000,
        lambda text: b"null",
        lambda text: b'{"digest": 1}',
    ],
)
def test_a_damaged_count_is_made_again_and_mended(cache, damage):
    right = counted("mine", "a pass", TINY, once(1))
    (file,) = (cache / "costs").iterdir()
    file.write_bytes(damage(file.read_text()))
    count = once(1)
    assert counted("mine", "a pass", TINY, count) == right == counted("mine", "a pass", TINY, count)


def test_an_older_counters_file_is_not_read(monkeypatch):
    counted("mine", "a pass", TINY, once(1))
    monkeypatch.setattr(cost_cache, "_counter", lambda: "another")
    count = once(1)
    counted("mine", "a pass", TINY, count)
    with pytest.raises(BackboneError, match="counted once more"):
        count_again = {**TINY, "hidden_size": 32}
        counted("mine", "a pass", count_again, count)


def test_the_counter_is_its_source_and_its_libraries(monkeypatch, tmp_path):
    def counter():
        kept.finder.cache_clear()
        return cost_cache._counter()

    before = counter()
    monkeypatch.setattr(kept, "version", lambda name: "0.1")
    other_libraries = counter()
    for name in cost_cache._COUNTERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("# counts otherwise")
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    assert len({before, other_libraries, counter()}) == 3
    monkeypatch.undo()
    assert counter() == before


def imported(name: str) -> set[str]:
    """The modules of `learning` that one of them imports, as "backbones/tokens"."""
    root, found = Path(cost_cache.__file__).parents[1], set()
    for node in ast.walk(ast.parse((root / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("learning"):
            inner = "/".join(node.module.split(".")[1:])
            of_names = {f"{inner}/{alias.name}".strip("/") for alias in node.names}
            found |= {one for one in {inner, *of_names} if (root / f"{one}.py").exists()}
    return found


def test_what_counts_and_all_that_it_imports_make_the_name_of_a_count():
    elsewhere = {"cost/cost_cache", "host_device"}  # keep counts, and say where numbers lie
    for name in cost_cache._COUNTERS:
        direct = imported(name) - elsewhere
        if name.startswith("cost/") or name in ("federated/trainable", "federated/split"):
            assert direct <= set(cost_cache._COUNTERS), name
    assert {"federated/trainable", "backbones/catalogue"} <= set(cost_cache._COUNTERS)


def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("a file where the folder should be")
    assert counted("mine", "a pass", TINY, once(1))["name"] == "x"


def test_what_cannot_be_counted_says_so_and_our_own_words_pass():
    def fails():
        raise NotImplementedError("no kernel\nfor this")

    with pytest.raises(
        BackboneError, match=r"^backbone 'mine': what a pass costs cannot be counted: no kernel$"
    ):
        counted("mine", "a pass", TINY, fails)
    odd = find("odd", {"odd": {"random": {**TINY, "num_attention_heads": 3}}})
    with pytest.raises(BackboneError, match=r"transformers refuses its configuration \(bert\): "):
        architecture(odd)


@pytest.mark.thorough
def test_every_counter_keeps_what_it_counts(cache, monkeypatch):
    """Each kind of count, from the cache and without counting: equal to what was counted."""

    def all_of_them():
        yield architecture(OWN)
        yield training_architecture(OWN, "lora", rank=3)
        yield part_architecture(OWN, 1, embeds=True)
        yield forward_architecture(OWN, "adapter")
        yield jvp_pass(OWN, "bitfit", list(forward_architecture(OWN, "bitfit").tensors))

    fresh = [dataclasses.asdict(made) for made in all_of_them()]
    files = sorted((cache / "costs").iterdir())
    monkeypatch.setattr(
        "learning.cost.weightless.weightless_like", lambda *_: pytest.fail("counted twice")
    )
    assert [dataclasses.asdict(made) for made in all_of_them()] == fresh
    assert sorted((cache / "costs").iterdir()) == files and not list(cache.glob("costs/*.tmp"))
