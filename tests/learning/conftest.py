"""What the tests of learning share: real backbones where fetched, tokens, and one torch thread."""

import functools

import numpy as np
import pytest
import torch

from learning.backbones import assets, catalogue
from learning.backbones.tokens import Tokens

torch.set_num_threads(1)
ALL = [
    "random-bert",
    "random-llama",
    *(pytest.param(name, marks=pytest.mark.fetched) for name in ("minilm", "smollm2-l4")),
]


@functools.cache
def _backbone(name: str):
    from learning.backbones.backbone import Backbone

    return Backbone(catalogue.find(name))


@pytest.fixture
def get():
    """The backbone of a name, loaded once; skips where its weights are not fetched."""

    def get(name: str):
        try:
            return _backbone(name)
        except assets.AssetMissing as error:
            pytest.skip(str(error))

    return get


@pytest.fixture(params=ALL)
def backbone(request, get):
    """An encoder and a decoder, untrained and (where fetched) trained."""
    return get(request.param)


@pytest.fixture
def some_tokens():
    """A maker of random texts: `some_tokens(backbone, lengths)`; pairs cut each text into two
    segments.
    """

    def make(backbone, lengths, seed: int = 0, pairs: bool = False) -> Tokens:
        rng, vocabulary = (
            np.random.default_rng(seed),
            catalogue.config_of(backbone.spec)["vocab_size"],
        )
        ids = [rng.integers(2, vocabulary, n).astype(np.int32) for n in lengths]
        segments = [(np.arange(len(i)) >= len(i) // 2).astype(np.int32) for i in ids]
        return Tokens(ids, segments if pairs else None)

    return make


@pytest.fixture
def plain_store(tmp_path):
    """An empty activation store."""
    from learning.side.activation_store import ActivationStore

    return ActivationStore(tmp_path / "store")
