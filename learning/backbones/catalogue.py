"""Which backbones there are, by name, path or hub id, and what files and configuration each has.
No torch.

A scenario names a backbone of `backbones.yaml`, optionally cut to its first k layers by the suffix
`-lk`, or defines its own: a local model directory, a hub id, or a random initialisation of a
configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inputs.files import (
    MOST_BYTES,
    FileProblem,
    first_line,
    read_json,
    read_yaml,
    reading,
    regular_file,
)

_HERE = Path(__file__).parent
_FORWARD_VERSION = 3  # to be raised whenever the same weights and tokens would give other bits
_LAYERS_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")
_NOT_BY_LAYER = frozenset(
    ("architectures", "pos_att_type", "time_step_limit", "eos_token_id")
)  # lists of other things
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")  # what is read of a model's folder
_MOST_LAYERS = 1_000
_MOST_CONFIG_BYTES = 16 * 2**20
# what a configuration may ask of transformers that would run code, or load weights, from elsewhere
_NEVER_FOLLOWED = re.compile(
    r"auto_map|custom_pipelines|transformers_weights|fusion_config"
    r"|.*(attn|experts)_implementation.*"
)


class BackboneError(ValueError):
    """A backbone that is not known, not there, or not usable; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """Where a backbone comes from (`asset`, `path`, `hub`, `random` or `shape`) and how many of its
    layers are kept.
    """

    name: str
    kind: str
    source: str
    layers: int | None = None
    config: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    seed: int = 0
    title: str = ""

    @property
    def has_weights(self) -> bool:
        """False for an architecture that can only be costed."""
        return self.kind != "shape"


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    return read_yaml(_HERE / "backbones.yaml")


def names() -> dict[str, str]:
    """Every backbone of the catalogue with its one-line title."""
    return {name: entry["title"] for name, entry in _catalogue().items()}


def find(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> BackboneSpec:
    """The backbone called `name` in the scenario's own definitions or in the catalogue, cut by a
    suffix `-lk`.

    An own definition holds one of `path`, `hub`, `random` (a config dictionary), and optionally
    `layers` and `seed`. Raises BackboneError for an unknown name, with the nearest right one.
    """
    own = own or {}
    if name in own:
        return _own(name, own[name])
    if name in _catalogue():
        return _known(name)
    cut = re.fullmatch(r"(.+)-l(\d+)", name)
    if cut and (cut[1] in own or cut[1] in _catalogue()):
        whole, layers = find(cut[1], own), int(cut[2])
        if whole.config and not 1 <= layers <= depth_of(whole.config):
            raise BackboneError(
                f"{name}: {cut[1]} has {depth_of(whole.config)} layers, so it cannot be cut to "
                f"{layers}"
            )
        return dataclasses.replace(
            whole,
            name=name,
            layers=layers,
            title=f"{whole.title or cut[1]}, cut to {layers} layers",
        )
    near = difflib.get_close_matches(name, [*own, *_catalogue()], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BackboneError(
        f"no backbone is called {name!r}{hint} (`mobifleet list backbones` shows all)"
    )


def _known(name: str) -> BackboneSpec:
    entry = _catalogue()[name]
    kind = "asset" if "asset" in entry else "random" if entry.get("random") else "shape"
    return BackboneSpec(
        name, kind, entry.get("asset", name), config=entry["config"], title=entry["title"]
    )


def _own(name: str, given: Mapping[str, Any]) -> BackboneSpec:
    kinds = [kind for kind in ("path", "hub", "random") if given.get(kind)]
    if len(kinds) != 1:
        raise BackboneError(f"backbone {name!r} needs exactly one of path, hub, random")
    layers, seed = given.get("layers"), given.get("seed") or 0
    if kinds == ["random"]:
        _require_complete(name, given["random"])
        return BackboneSpec(name, "random", name, layers, dict(given["random"]), seed)
    return BackboneSpec(name, kinds[0], str(given[kinds[0]]), layers)


def _require_complete(name: str, config: Mapping[str, Any]) -> None:
    if missing := [key for key in ("model_type", "vocab_size") if key not in config]:
        raise BackboneError(
            f"backbone {name!r}: the configuration to initialise has no {missing[0]}"
        )
    if not isinstance(config["model_type"], str):
        raise BackboneError(
            f"backbone {name!r}: model_type is {config['model_type']!r:.40}, not a name such as "
            "bert"
        )
    try:
        if _whole(config, ("vocab_size",), "vocabulary", 1 << 30) < 3:
            raise BackboneError("a vocabulary of at least 3 is needed (two ids pad and separate)")
        json.dumps(config, sort_keys=True)
    except (BackboneError, TypeError, ValueError, RecursionError) as error:
        raise BackboneError(f"backbone {name!r}: {first_line(error)}") from None


def is_own(spec: BackboneSpec) -> bool:
    """Whether it is a backbone of the user's, not one of the catalogue."""
    return (
        spec.kind in ("path", "hub")
        or _catalogue().get(spec.source, {}).get("config") != spec.config
    )


def are_cuts_of_one(spec: BackboneSpec, other: BackboneSpec) -> bool:
    """Whether both are the same model, but for how many of its layers are kept."""
    return other == dataclasses.replace(
        spec, name=other.name, layers=other.layers, title=other.title
    )


def depth_of(config: Mapping[str, Any]) -> int:
    """The number of layers that a Hugging Face configuration states."""
    if "decoder_layers" in config and not set(_LAYERS_KEYS) & set(config):  # BART's kin
        raise of_two_parts(config.get("model_type"))
    return _whole(config, _LAYERS_KEYS, "number of layers", _MOST_LAYERS)


def cut(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The configuration of a model's first `layers` layers: their number, and every list with an
    entry for each layer.

    More layers than there are repeat the last entry of such lists. (GPT-Neo writes its list down in
    runs.)
    """
    depth = depth_of(config)
    made = {
        key: _entries(value, layers) if _is_by_layer(key, value, depth) else value
        for key, value in config.items()
    }
    if runs := config.get("attention_types"):
        each = [kind for kinds, times in runs for kind in list(kinds) * times]
        made["attention_types"] = [[[kind], 1] for kind in _entries(each, layers)]
    return {**made, next(key for key in _LAYERS_KEYS if key in config): layers}


def _is_by_layer(key: str, value: Any, depth: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == depth and key not in _NOT_BY_LAYER


def _entries(listed: Sequence[Any], layers: int) -> list[Any]:
    return [*listed, *[listed[-1]] * layers][:layers]


def layer_of(name: str) -> int | None:
    """The layer that a parameter of this name belongs to: the first number in it; None for one
    outside the layers.
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def width_of(config: Mapping[str, Any]) -> int:
    """The hidden size that a Hugging Face configuration states."""
    return _whole(config, _WIDTH_KEYS, "hidden size", 1 << 20)


def _whole(config: Mapping[str, Any], keys: Sequence[str], what: str, most: int) -> int:
    for key in keys:
        if key in config:
            value = config[key]
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise BackboneError(
                    f"a configuration whose {key} is {value!r:.40}, not a whole number from 1 to "
                    f"{most:,}"
                )
            return value
    raise BackboneError(f"a configuration without a {what} (looked for {', '.join(keys)})")


def of_two_parts(model_type: object) -> BackboneError:
    """What to say of an encoder-decoder whose encoder cannot be loaded alone."""
    return BackboneError(
        f"a {model_type} model is an encoder and a decoder, and transformers has no class "
        "for its encoder alone; "
        "what can be used is an encoder (BERT, T5's) or a decoder (Llama)"
    )


def too_long(name: str, tokens: int, positions: int) -> BackboneError:
    """What to say of texts that a backbone has no positions for."""
    return BackboneError(
        f"{tokens} tokens, but {name} has {positions} positions: set task.max_tokens to at most "
        f"{positions}"
    )


def directory(spec: BackboneSpec) -> Path:
    """The model's directory on this machine; built from a fetched asset or taken from the hub's
    cache at need.

    Raises BackboneError naming the path tried or the command to run, and `assets.AssetMissing` for
    an unfetched asset.
    """
    if spec.kind == "asset":
        from learning.backbones import convert

        return convert.model_dir(spec.source)
    if spec.kind in ("path", "hub"):
        path = Path(spec.source).expanduser() if spec.kind == "path" else _hub_directory(spec)
        if (path / "adapter_config.json").exists():
            raise BackboneError(
                f"backbone {spec.name!r}: {path.resolve()} holds an adapter (adapter_config.json); "
                "merge it into its model "
                "(peft's merge_and_unload) and give the folder of the whole"
            )
        if not (path / "config.json").is_file():
            raise BackboneError(
                f"backbone {spec.name!r}: no model in {path.resolve()} (config.json not found "
                "there)"
            )
        return path
    raise BackboneError(
        f"backbone {spec.name!r} is an architecture without weights: it can be costed, not run"
    )


def _hub_directory(spec: BackboneSpec) -> Path:
    from huggingface_hub import snapshot_download

    here = None
    try:
        here = Path(
            snapshot_download(spec.source, allow_patterns=list(MODEL_FILES), local_files_only=True)
        )
        if (here / "config.json").is_file() and any(here.glob("*.safetensors")):
            return here
    except Exception:  # not in the local cache yet: any reason is followed by the real attempt
        pass
    try:
        return Path(snapshot_download(spec.source, allow_patterns=list(MODEL_FILES)))
    except Exception as error:
        if here is not None:  # what is there of it may be enough for its cost
            return here
        raise BackboneError(
            f"backbone {spec.name!r}: {spec.source!r} is neither in the local hub cache nor "
            "reachable "
            f"({type(error).__name__}); download it where there is a network and give its "
            "directory as `path:`"
        ) from error


def config_of(spec: BackboneSpec) -> dict[str, Any]:
    """The Hugging Face configuration of the backbone, already cut to its number of layers."""
    config = _read_config(spec) if spec.config is None else dict(spec.config)
    try:
        depth = depth_of(config)
    except BackboneError as error:
        raise BackboneError(f"backbone {spec.name!r}: {error}") from None
    if spec.layers is not None:
        if spec.layers > depth:
            raise BackboneError(
                f"backbone {spec.name!r}: {depth} layers, so it cannot be cut to {spec.layers}"
            )
        with reading(f"backbone {spec.name!r}", "a configuration by layer"):
            config = cut(config, spec.layers)
    return config


def whole(spec: BackboneSpec) -> BackboneSpec:
    """The backbone with all of its layers."""
    return dataclasses.replace(spec, layers=None)


def _read_config(spec: BackboneSpec) -> dict[str, Any]:
    file = directory(spec) / "config.json"
    config = read_json(file, _MOST_CONFIG_BYTES)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FileProblem(
            f"{file}: not a model's configuration (an object that names its model_type)"
        )
    return {key: value for key, value in config.items() if not _NEVER_FOLLOWED.fullmatch(key)}


def small_files(spec: BackboneSpec) -> list[Path]:
    """What else is read of the model's folder: configuration and tokenizer; FileProblem for what is
    no regular file.
    """
    folder = directory(spec)
    kinds = [kind for kind in MODEL_FILES if kind != "*.safetensors"]
    found = sorted({path for kind in kinds for path in folder.glob(kind) if not path.is_dir()})
    return [regular_file(path, MOST_BYTES) for path in found]


def weight_files(spec: BackboneSpec) -> list[Path]:
    """The safetensors files that hold the weights: model.safetensors, or the parts that its index
    names.

    Raises BackboneError or FileProblem for none, a missing part, or what is no regular file.
    """
    folder = directory(spec)
    file = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if file.exists():
        return [regular_file(file)]
    if not index.exists():
        others = sorted(
            path.name
            for path in folder.glob("*")
            if path.suffix in (".safetensors", ".bin", ".pt", ".gguf")
        )
        there = f" (there is {', '.join(others[:3])})" if others else ""
        raise BackboneError(
            f"backbone {spec.name!r}: no model.safetensors in {folder.resolve()}{there}; pickled "
            "weights are never read: "
            "save the model with save_pretrained"
        )
    named = read_json(index)
    places = named.get("weight_map") if isinstance(named, dict) else None
    if not isinstance(places, dict) or not all(
        isinstance(p, str) and Path(p).name == p for p in places.values()
    ):
        raise FileProblem(
            f"{index}: not an index of weights (weight_map: tensor to a file of this folder)"
        )
    parts = sorted(set(places.values()))
    if missing := [part for part in parts if not (folder / part).exists()]:
        raise FileProblem(
            f"{index}: {len(missing)} of {len(parts)} parts are missing, the first {missing[0]}"
        )
    return [regular_file(folder / part) for part in parts]


def fingerprint(spec: BackboneSpec) -> str:
    """A digest of the weights, the configuration and the depth: equal fingerprints compute equal
    activations, to the bit by equal arithmetic.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(
        json.dumps(
            [_FORWARD_VERSION, spec.kind, config_of(spec), spec.seed], sort_keys=True
        ).encode()
    )
    if spec.kind != "random":
        for file in weight_files(spec):
            digest.update(sha256_of(file))
    return digest.hexdigest()


def sha256_of(file: Path) -> bytes:
    """The digest of what a file holds; read once, as long as it is the same file by its times."""
    with reading(file, "a file"):
        known = file.stat()
    return _sha256_of(file, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns)


@functools.lru_cache(1024)
def _sha256_of(file: Path, *state: int) -> bytes:
    with reading(file, "a file"), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
