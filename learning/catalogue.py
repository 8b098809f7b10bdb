"""Which backbones there are, by name, path or hub id, what they cost, and how text becomes their tokens. No torch.

A scenario names a backbone of `backbones.yaml`, optionally cut to its first k layers by the suffix `-lk`, or defines its
own: a local model directory, a hub id, or a random initialisation of a configuration.
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

import yaml

from learning.cost import Architecture

_HERE = Path(__file__).parent
_FORWARD_VERSION = 2  # to be raised whenever the same weights and tokens would give other bits
_LAYERS_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")
_NOT_BY_LAYER = frozenset(("architectures", "pos_att_type", "time_step_limit", "eos_token_id"))  # lists of other things


class BackboneError(ValueError):
    """A backbone that is not known, not there, or not usable; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """Where a backbone comes from (`asset`, `path`, `hub`, `random` or `shape`) and how many of its layers are kept."""

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
    return yaml.safe_load((_HERE / "backbones.yaml").read_text(encoding="utf-8"))


def names() -> dict[str, str]:
    """Every backbone of the catalogue with its one-line title."""
    return {name: entry["title"] for name, entry in _catalogue().items()}


def find(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> BackboneSpec:
    """The backbone called `name` in the scenario's own definitions or in the catalogue, cut by a suffix `-lk`.

    An own definition holds one of `path`, `hub`, `random` (a config dictionary), and optionally `layers` and `seed`.
    Raises BackboneError for an unknown name, with the nearest right one.
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
                f"{name}: {cut[1]} has {depth_of(whole.config)} layers, so it cannot be cut to {layers}"
            )
        return dataclasses.replace(
            whole, name=name, layers=layers, title=f"{whole.title or cut[1]}, cut to {layers} layers"
        )
    near = difflib.get_close_matches(name, [*own, *_catalogue()], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BackboneError(f"no backbone is called {name!r}{hint} (`mobifleet list backbones` shows all)")


def _known(name: str) -> BackboneSpec:
    entry = _catalogue()[name]
    kind = "asset" if "asset" in entry else "random" if entry.get("random") else "shape"
    return BackboneSpec(name, kind, entry.get("asset", name), config=entry["config"], title=entry["title"])


def _own(name: str, given: Mapping[str, Any]) -> BackboneSpec:
    kinds = [kind for kind in ("path", "hub", "random") if given.get(kind)]
    if len(kinds) != 1:
        raise BackboneError(f"backbone {name!r} needs exactly one of path, hub, random")
    layers, seed = given.get("layers"), given.get("seed") or 0
    if kinds == ["random"]:
        if missing := [key for key in ("model_type", "vocab_size") if key not in given["random"]]:
            raise BackboneError(f"backbone {name!r}: the configuration to initialise has no {missing[0]}")
        return BackboneSpec(name, "random", name, layers, dict(given["random"]), seed)
    return BackboneSpec(name, kinds[0], str(given[kinds[0]]), layers)


def depth_of(config: Mapping[str, Any]) -> int:
    """The number of layers that a Hugging Face configuration states."""
    for key in _LAYERS_KEYS:
        if key in config:
            return int(config[key])
    raise BackboneError(f"a configuration without a number of layers (looked for {', '.join(_LAYERS_KEYS)})")


def cut(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The configuration of a model's first `layers` layers: their number, and every list with an entry for each layer.

    More layers than there are repeat the last entry of such lists. (GPT-Neo writes its list down in runs.)
    """
    depth = depth_of(config)
    made = {key: _entries(value, layers) if _is_by_layer(key, value, depth) else value for key, value in config.items()}
    if runs := config.get("attention_types"):
        each = [kind for kinds, times in runs for kind in list(kinds) * times]
        made["attention_types"] = [[[kind], 1] for kind in _entries(each, layers)]
    return {**made, next(key for key in _LAYERS_KEYS if key in config): layers}


def _is_by_layer(key: str, value: Any, depth: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == depth and key not in _NOT_BY_LAYER


def _entries(listed: Sequence[Any], layers: int) -> list[Any]:
    return [*listed, *[listed[-1]] * layers][:layers]


def layer_of(name: str) -> int | None:
    """The layer that a parameter of this name belongs to: the first number in it; None for one outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def width_of(config: Mapping[str, Any]) -> int:
    """The hidden size that a Hugging Face configuration states."""
    for key in _WIDTH_KEYS:
        if key in config:
            return int(config[key])
    raise BackboneError(f"a configuration without a hidden size (looked for {', '.join(_WIDTH_KEYS)})")


def directory(spec: BackboneSpec) -> Path:
    """The model's directory on this machine; built from a fetched asset or taken from the hub's cache at need.

    Raises BackboneError naming the path tried or the command to run, and `assets.AssetMissing` for an unfetched asset.
    """
    if spec.kind == "asset":
        from learning import convert

        return convert.model_dir(spec.source)
    if spec.kind == "path":
        path = Path(spec.source).expanduser()
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone {spec.name!r}: no model in {path.resolve()} (config.json not found there)")
        return path
    if spec.kind == "hub":
        return _hub_directory(spec)
    raise BackboneError(f"backbone {spec.name!r} is an architecture without weights: it can be costed, not run")


def _hub_directory(spec: BackboneSpec) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(spec.source, allow_patterns=wanted, local_files_only=True))
    except Exception:  # not in the local cache yet: any reason is followed by the real attempt
        pass
    try:
        return Path(snapshot_download(spec.source, allow_patterns=wanted))
    except Exception as error:
        raise BackboneError(
            f"backbone {spec.name!r}: {spec.source!r} is neither in the local hub cache nor reachable "
            f"({type(error).__name__}); download it where there is a network and give its directory as `path:`"
        ) from error


def config_of(spec: BackboneSpec) -> dict[str, Any]:
    """The Hugging Face configuration of the backbone, already cut to its number of layers."""
    if spec.config is None:
        config = json.loads((directory(spec) / "config.json").read_text(encoding="utf-8"))
    else:
        config = dict(spec.config)
    if spec.layers is not None:
        if spec.layers > depth_of(config):
            raise BackboneError(
                f"backbone {spec.name!r}: {depth_of(config)} layers, so it cannot be cut to {spec.layers}"
            )
        config = cut(config, spec.layers)
    return config


def fingerprint(spec: BackboneSpec) -> str:
    """A digest of the weights, the configuration and the depth: equal fingerprints compute equal activations."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORWARD_VERSION, spec.kind, config_of(spec), spec.seed], sort_keys=True).encode())
    if spec.kind != "random":
        files = sorted(directory(spec).glob("*.safetensors"))
        if not files:
            raise BackboneError(
                f"backbone {spec.name!r}: no *.safetensors in {directory(spec)}; pickled weights are refused"
            )
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# --- cost ------------------------------------------------------------------------------------------------------------


def architecture(spec: BackboneSpec) -> Architecture:
    """The counted cost of the backbone: from `costs.json`, else from the user's cache, else counted now on fake tensors."""
    config = config_of(spec)
    if shipped := _shipped_costs().get(cost_key(config)):
        return architecture_from_json(shipped)
    from learning.cost_cache import counted

    def count() -> dict[str, Any]:
        from learning.count import count_architecture

        return dataclasses.asdict(count_architecture(config))

    return architecture_from_json(counted(spec.name, "a forward pass", config, count))


def cost_key(config: Mapping[str, Any]) -> str:
    """The name under which counted costs of a configuration are kept."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _shipped_costs() -> dict[str, Any]:
    path = _HERE / "costs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def architecture_from_json(fields: Mapping[str, Any]) -> Architecture:
    """An `Architecture` from its JSON form (lists become tuples)."""
    return Architecture(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items() if key != "name"})
