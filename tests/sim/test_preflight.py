"""Backbones of one's own in a scenario: what `check` calls fine runs, what it refuses `run` refuses
in the same words.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from inputs.files import FileProblem
from learning import kept
from learning.backbones import trial
from learning.backbones.catalogue import BackboneError, find
from sim.scenario.checks import problems
from sim.scenario.file import load
from sim.scenario.schema import Scenario
from sim.world.preflight import preflight

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture
def fleet():
    """A fleet of one's own model, and further keys of a scenario: changes for `scenario_file`."""

    def changes(given: dict, **more) -> dict:
        group = {"count": 3, "device": "jetson-tx2", "backbone": "mine", "link": "lte"}
        method = {
            "kind": "fed-mobillm",
            "replay": 2,
            "update_share_on_arrival": 1,
            "server_batch": 8,
        }
        return {"fleet": [group], "backbones": {"mine": given}, "method": method, **more}

    return changes


@pytest.fixture
def both(mobifleet, scenario_file, fleet):
    """The message of `check`, after seeing that `run` gives exactly the same and leaves nothing."""

    def refused(given: dict, *overrides: str, **more) -> str:
        path = scenario_file(**fleet(given, **more))
        sets = [word for override in overrides for word in ("--set", override)]
        check = mobifleet("check", path, *sets)
        run = mobifleet("run", path, "--no-figures", "--workers", "1", "--out", "out", *sets)
        assert (check.code, run.code) == (2, 2), check.out + run.out
        assert check.err == run.err and "Traceback" not in check.err
        assert not (path.parent / "out").exists()
        return " ".join(check.err.split())

    return refused


def prefix(tensors):
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def edit(folder, name, change):
    fields = json.loads((folder / name).read_text())
    change(fields)
    (folder / name).write_text(json.dumps(fields))


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "how", "said"),
    [
        (
            "bert",
            {"tensors": prefix},
            r"39 of 39 tensors \(the first embeddings.LayerNorm.bias\) missing",
        ),
        ("roberta", {"after": {"vocab_size": 20}}, "16 x 32 in the weights, 20 x 32 in the model"),
        ("llama", {"after": {"num_hidden_layers": 3}}, "9 of 29 tensors .* missing"),
        ("opt", {"words": None}, "no tokenizer in .*save the model's own there"),
        (
            "distilbert",
            {"words": [*WORDS, *map(str, range(30))], "vocab_size": 16},
            "gives ids up to 33, but its embedding has 16 rows",
        ),
        (
            "bert",
            {"max_position_embeddings": 12},
            "16 tokens, but mine has 12 positions: set task.max_tokens to at most 12",
        ),
        ("roberta", {"max_position_embeddings": 17}, "16 tokens, but mine has 15 positions"),
        ("opt", {"max_position_embeddings": 15}, "16 tokens, but mine has 15 positions"),
        ("bert", {"after": {"hidden_size": "wide"}}, r"config.json: .*hidden_size"),
        ("llama", {"after": {"model_type": "no-such-kind"}}, "has no model_type 'no-such-kind'"),
    ],
)
def test_check_and_run_refuse_in_the_same_words(own_model, both, kind, how, said):
    assert re.search(said, both({"path": str(own_model(kind, **how))}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_position_embeddings": 12}, "16 tokens, but mine has 12 positions"),
        ({"num_attention_heads": 3}, "attention heads"),
        ({"num_hidden_layers": 10**6}, "not a whole number from 1 to 1,000"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"vocab_size": 2}, "a vocabulary of at least 3"),
        ({"vocab_size": 10**9}, r"GB of weights, and this machine has"),
        ({"model_type": "bert2"}, "has no model_type 'bert2'"),
        ({"hidden_act": "no-such-function"}, "no-such-function"),
        ({"layer_norm_eps": -1e9}, "NaN or infinity"),
        (
            {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
            r"mine' \(xlnet\): a layer gives 4 x (\d+) states for \1 texts of 4 tokens",
        ),
        (
            {"model_type": "longformer", "attention_window": [6, 6]},
            r"mine' \(longformer\): a layer gives (\d+) x 6 states for \1 texts of 4 tokens: take "
            "another backbone",
        ),
        (
            {"model_type": "mbart", "num_hidden_layers": None}
            | dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
            "mine': a mbart model is an encoder and a decoder",
        ),
        ({"model_type": "canine"}, "take another backbone, with a state for each layer"),
    ],
)
def test_a_configuration_to_initialise_is_tried_too(both, config, said):
    fine = {
        "model_type": "bert",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    given = {**fine, "intermediate_size": 48, **config}
    given = {key: value for key, value in given.items() if value is not None}
    assert re.search(said, both({"random": given}))


def test_positions_count_for_every_method_and_for_packaged_backbones(
    own_model, both, mobifleet, scenario_file
):
    short = {"path": str(own_model(max_position_embeddings=12))}
    for kind in ("fedavg-lora", "splitfed-v1"):
        assert "16 tokens, but mine has 12 positions" in both(short, method={"kind": kind})
    cut = both(
        short, fleet=[{"count": 3, "device": "jetson-tx2", "backbone": "mine-l1", "link": "lte"}]
    )
    assert "16 tokens, but mine-l1 has 12 positions" in cut
    for dry in ((), ("--dry",)):
        outcome = mobifleet("run", scenario_file(), "--set", "task.max_tokens=600", *dry)
        assert (outcome.code, outcome.err) == (
            2,
            "600 tokens, but random-bert has 512 positions: set task.max_tokens to at most 512\n",
        )


def test_what_is_charged_for_more_positions_than_it_has_is_remarked(
    own_model, mobifleet, scenario_file, fleet
):
    rotary = {
        "path": str(own_model("llama", max_position_embeddings=12))
    }  # nothing stops such a model after 12
    path = scenario_file(**fleet(rotary, cost_as={"backbone": "roberta-base", "tokens": 600}))
    outcome = mobifleet("check", path)
    said = " ".join(outcome.err.split())
    assert outcome.code == 0
    assert "roberta-base has 512 positions: at 600 tokens it is charged as if it had more" in said
    assert (
        "mine was made for 12 positions: texts of up to 16 tokens go beyond what it has learned"
        in said
    )


def test_an_adapter_truncated_weights_and_no_folder_at_all(own_model, both, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in both({"path": "adapter"})
    assert "config.json not found there" in both({"path": "nowhere"})
    folder = own_model()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: cannot be read as safetensors weights" in both({"path": str(folder)})


def test_a_tokenizer_that_knows_no_words_or_is_damaged(own_model, both, tmp_path):
    folder = own_model()
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-50])
    assert "tokenizer.json: cannot be read as a tokenizer" in both({"path": str(folder)})
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert "no tokenizer.json, nor vocab.txt" in both(
        {"path": str(folder)}
    )  # transformers would make one up
    (folder / "vocab.txt").write_text("")
    assert "a tokenizer without words" in both({"path": str(folder)})


def test_a_template_that_puts_an_id_beyond_the_embedding_around_a_text(own_model, both):
    folder = own_model()
    edit(
        folder,
        "tokenizer.json",
        lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[99]),
    )
    assert "gives ids up to 99, but its embedding has 16 rows" in both({"path": str(folder)})


# --- what passes


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("bert", {"head": "ForMaskedLM"}),
        ("roberta", {"head": "ForSequenceClassification", "max_position_embeddings": 18}),
        ("llama", {"head": "ForCausalLM", "max_position_embeddings": 12}),
        ("opt", {"max_position_embeddings": 16}),
        ("distilbert", {"max_position_embeddings": 16}),
        ("opt", {"word_embed_proj_dim": 16}),
    ],
)
def test_what_check_calls_fine_runs_to_one_digest(
    own_model, mobifleet, scenario_file, fleet, kind, how, monkeypatch, tmp_path
):
    digests = set()
    path = scenario_file(**fleet({"path": str(own_model(kind, **how))}))
    assert mobifleet("check", path).code == 0
    for number in (1, 2):  # each with a store of its own
        monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / f"cache{number}"))
        torch.manual_seed(number)  # whatever drew from the global generator would differ
        outcome = mobifleet(
            "run", path, "--no-figures", "--workers", "1", "-q", "--out", f"out{number}"
        )
        assert outcome.code == 0, outcome.err
        digests.add(json.loads((tmp_path / f"out{number}" / "summary.json").read_text())["digest"])
    assert len(digests) == 1


def test_a_tokenizer_that_leaves_merges_out_at_random_does_not(own_model):
    from learning.backbones.tokens import tokenise

    folder = own_model()
    vocabulary = {word: i for i, word in enumerate([*WORDS, "a", "b", "ab"])}
    edit(
        folder,
        "tokenizer.json",
        lambda t: t.update(
            model={
                "type": "BPE",
                "vocab": vocabulary,
                "merges": ["a b"],
                "dropout": 0.9,
                "unk_token": "[UNK]",
            }
        ),
    )
    spec = find("mine", {"mine": {"path": str(folder)}})
    assert {tuple(tokenise(spec, ["abab ab"]).ids[0]) for _ in range(20)} == {(2, 6, 6, 6, 3)}


def test_texts_of_words_that_the_tokenizer_lacks_are_remarked(
    own_model, mobifleet, scenario_file, fleet
):
    words = [*WORDS, *(f"other{number}" for number in range(12))]
    outcome = mobifleet("check", scenario_file(**fleet({"path": str(own_model(words=words))})))
    assert outcome.code == 0
    assert "most words of the texts are unknown to the tokenizer of mine" in " ".join(
        outcome.err.split()
    )
    assert (
        "unknown" not in mobifleet("check", scenario_file(**fleet({"path": str(own_model())}))).err
    )


def test_more_kinds_of_segments_than_the_model_has_are_refused(own_model):
    from learning.backbones.tokens import tokenise

    folder = own_model()
    edit(
        folder,
        "tokenizer.json",
        lambda t: t["post_processor"]["pair"][3]["Sequence"].update(type_id=2),
    )
    spec = find("mine", {"mine": {"path": str(folder)}})
    tokenise(spec, ["a1"])
    with pytest.raises(
        BackboneError, match="its tokenizer marks 3 kinds of segments, its model has 2"
    ):
        tokenise(spec, ["a1"], ["b1"])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a model's folder into a local hub cache, without network, as huggingface_hub lays it
    out.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder, without=()):
        place = tmp_path / "hub" / "models--me--mine"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40), ignore=lambda *_: without)
        return "me/mine"

    return put


def test_a_model_of_the_hubs_cache_runs_without_network(
    own_model, hub, mobifleet, scenario_file, fleet
):
    path = scenario_file(**fleet({"hub": hub(own_model())}))
    assert mobifleet("check", path).code == 0
    assert mobifleet("run", path, "--no-figures", "--workers", "1", "--out", "out").code == 0


def test_a_model_of_which_the_hubs_cache_has_a_part_says_what_is_missing(own_model, hub, both):
    assert "no model.safetensors in" in both(
        {"hub": hub(own_model(), without=["model.safetensors"])}
    )


def test_a_model_that_the_hubs_cache_does_not_have(hub, both):
    for name in ("me/other", "not a name", "a/b/c", "..", "x" * 300):
        assert "neither in the local hub cache nor reachable" in both({"hub": name})


# --- what is kept


@pytest.fixture
def mine(tmp_path, monkeypatch, own_model):
    """A model of one's own and an empty cache."""
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    return own_model()


def spec_of(folder, **more):
    return find("mine", {"mine": {"path": str(folder), **more}})


def test_a_trial_is_kept_by_content(mine, tmp_path, monkeypatch):
    spec = spec_of(mine)
    assert not trial.has_passed(spec, 16)
    trial.take(spec, 16)
    assert trial.has_passed(spec, 16) and trial.has_passed(spec, 8)
    assert not trial.has_passed(spec, 17) and not trial.has_passed(spec_of(mine, layers=1), 16)
    elsewhere = shutil.copytree(mine, tmp_path / "elsewhere")
    assert trial.has_passed(spec_of(elsewhere), 16)
    monkeypatch.setattr(kept, "version", lambda name: "0.1")
    kept.finder.cache_clear()
    assert not trial.has_passed(spec, 16)
    monkeypatch.undo()
    kept.finder.cache_clear()


def test_an_odd_value_that_its_architecture_has_no_use_for_does_no_harm(own_model):
    spec = spec_of(own_model("llama", after={"type_vocab_size": []}))
    trial.take(spec, 16)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "added_tokens.json"]
)
def test_another_file_is_another_model(mine, name):
    trial.take(spec_of(mine), 16)
    if name == "model.safetensors":
        save_file(
            {n: t + 1 for n, t in load_file(mine / name).items()}, mine / name, {"format": "pt"}
        )
    elif name == "config.json":
        edit(mine, name, lambda fields: fields.update(layer_norm_eps=1e-6))
    else:
        (mine / name).write_text(
            (mine / name).read_text() + " " if (mine / name).exists() else "{}"
        )
    assert not trial.has_passed(spec_of(mine), 16)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"positions": 5}', b"\xff" * 9])
def test_a_damaged_note_is_no_note(mine, damage):
    trial.take(spec_of(mine), 16)
    (note,) = note_files()
    note.write_bytes(damage)
    assert not trial.has_passed(spec_of(mine), 16)


def note_files():
    from learning.backbones import assets

    return list((assets.cache_dir() / "trials").iterdir())


def test_a_failure_is_not_kept(own_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MOBIFLEET_CACHE", str(tmp_path / "cache"))
    folder = own_model(words=None)
    with pytest.raises(BackboneError, match="no tokenizer"):
        trial.take(spec_of(folder), 16)
    assert not (tmp_path / "cache" / "trials").exists()


@pytest.mark.thorough
def test_the_second_check_needs_no_torch(mine, shell, scenario_file, fleet):
    path = scenario_file(**fleet({"path": str(mine)}))
    probe = (
        "import sys; sys.argv = ['mobifleet', 'check', sys.argv[1]]\n"
        "from sim.cli import main as cli\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    said = [shell("-c", probe, path).communicate(timeout=200)[1].split() for _ in range(2)]
    assert said == [["None", "True", "True"], ["None", "False", "False"]]


def test_compare_and_validate_are_refused_before_they_begin(
    own_model, mobifleet, scenario_file, fleet
):
    path = scenario_file(
        **fleet(
            {"path": str(own_model(tensors=prefix))},
            compare={"methods": {"a": {"kind": "fed-mobillm"}}},
        )
    )
    words = mobifleet("check", path).err
    for verb, said in (("compare", f"a: {words}"), ("validate", words)):
        outcome = mobifleet(verb, path, "--out", "there")
        assert (outcome.code, outcome.err) == (2, said)
        assert not (path.parent / "there").exists()


def test_a_dry_run_needs_no_weights(own_model, mobifleet, scenario_file, fleet):
    folder = own_model()
    (folder / "model.safetensors").unlink()
    path = scenario_file(**fleet({"path": str(folder)}))
    assert mobifleet("run", path, "--dry", "--no-figures", "--out", "dry").code == 0
    assert "no model.safetensors" in mobifleet("check", path).err


def test_preflight_looks_at_every_backbone_that_a_mix_may_draw(own_model, scenario_file):
    fleet = [
        {
            "count": 1,
            "device": "jetson-tx2",
            "backbone": {"random-bert": 1.0, "mine": 0.0001},
            "link": "lte",
        }
    ]
    path = scenario_file(
        fleet=fleet,
        backbones={"mine": {"path": str(own_model(words=None))}},
        arrivals={"kind": "at-once"},
    )
    with pytest.raises((BackboneError, FileProblem), match="no tokenizer"):
        preflight(load(str(path), Scenario, [], [], problems), path.parent)
