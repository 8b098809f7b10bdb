"""The prediction difference: all that a server learns about labels (PAE MobiLLM, Fed MobiLLM).

The device forms delta_y = one_hot(y) - y_b(x), where y_b is its frozen backbone's own prediction;
the side network learns delta_y from activations; the final prediction is y_b + y_s. The papers give
no loss formula; squared error on delta_y is the plain choice for a loss that may depend on (y, y_b)
through their difference only. They do not say either where a backbone that has never seen the task
has a prediction from; the choices here, and what each gives away, are in docs/pae_mobillm.md.
"""

from __future__ import annotations

import numpy as np

from learning.metrics import is_rating

VERBALISERS = ("verbaliser", "calibrated-verbaliser")
"""What a language model says next: it reads each text in a template, and words stand for classes.
"""
PREDICTIONS = (
    *("uniform", "label-names", "class-texts", *VERBALISERS),
    *("random-head", "public-head", "own-head"),
)
TEMPERATURES = {"label-names": 0.05, "class-texts": 0.07}
"""Of the similarities to what stands for the classes. The second, with the last layer, has the
least error on eight data sets, whichever of them is left out of the choice (docs/pae_mobillm.md).
"""
SAID_FIRST = (*TEMPERATURES, "calibrated-verbaliser")
"""Those for which a backbone first reads what is said of the classes."""


def backbone_prediction(
    kind: str,
    last_layer_ND: np.ndarray,
    n_classes: int,
    classes_CD: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    head: np.ndarray | None = None,
    temperature: float | None = None,
    logits_NC: np.ndarray | None = None,
) -> np.ndarray:
    """The frozen backbone's own prediction y_b, probabilities [n, classes] in float32.

    `uniform`: a new task, the backbone knows nothing: 1/C, and 0 for a rating. `label-names` and
    `class-texts`: zero-shot, the softmax of cosine similarities (over `temperature`) between a
    text's last layer and that of the classes' names, or of a sentence about each, [classes,
    hidden]. `verbaliser`, `calibrated-verbaliser`: `verbalised` of `logits_NC` and, for the second,
    of `classes_CD` for the logits after neutral texts, [texts, classes]. `random-head`: a frozen
    linear head at its usual initialisation N(0, 0.02^2), as a classification model has it before
    fine-tuning. `public-head`, `own-head`: a fitted `head` (`learning.side.heads`), [hidden + 1,
    classes], or [heads, hidden + 1, classes] for predictions [heads, n, classes]. Raises ValueError
    for another kind, or where what a kind needs is not given.
    """
    if kind == "uniform":
        guess = 1 / n_classes if n_classes > 1 else 0.0  # of one output: a rating's
        return np.full((len(last_layer_ND), n_classes), guess, dtype=np.float32)
    if kind in TEMPERATURES:
        if classes_CD is None:
            raise ValueError(f"{kind} needs the vectors of the classes' names or texts")
        cosines_NC = _unit(last_layer_ND) @ _unit(classes_CD).T
        return _softmax(cosines_NC / (temperature or TEMPERATURES[kind]))
    if kind in VERBALISERS:
        is_calibrated = kind != "verbaliser"
        if logits_NC is None or (is_calibrated and classes_CD is None):
            raise ValueError(f"{kind} needs the logits of the classes' words")
        return verbalised(logits_NC, classes_CD if is_calibrated else None, temperature or 1.0)
    if kind == "random-head":
        if rng is None:
            raise ValueError("random-head needs a generator to draw it from")
        head_DC = rng.normal(0, 0.02, (last_layer_ND.shape[1], n_classes)).astype(np.float32)
        return _softmax(last_layer_ND @ head_DC)
    if kind in ("public-head", "own-head"):
        if head is None:
            raise ValueError(f"{kind} needs the head")
        return shares(last_layer_ND @ head[..., :-1, :] + head[..., -1:, :])
    raise ValueError(f"backbone prediction {kind!r} is not one of {', '.join(PREDICTIONS)}")


def difference(labels_N: np.ndarray, prediction_NC: np.ndarray) -> np.ndarray:
    """delta_y = one_hot(labels) - prediction, float32 [n, classes]; of ratings, rating -
    prediction.
    """
    if is_rating(labels_N):
        return (labels_N[:, None] - prediction_NC).astype(np.float32)
    one_hot = np.zeros_like(prediction_NC)
    one_hot[np.arange(len(labels_N)), labels_N] = 1
    return one_hot - prediction_NC


def verbalised(
    logits_NC: np.ndarray, neutral_KC: np.ndarray | None = None, temperature: float = 1.0
) -> np.ndarray:
    """The probabilities of the classes' words among themselves, float32 [n, classes].

    `neutral_KC` are logits after texts that favour no class, whose mean log-probabilities are taken
    off first: calibration as by Zhao et al. (ICML 2021), where the texts are free of content, and
    by Zhou et al. (ICLR 2024), where they are a batch of the task's.
    """
    from scipy.special import log_softmax, softmax

    log_NC = log_softmax(logits_NC.astype(np.float64), axis=-1)
    if neutral_KC is not None:
        log_NC = log_NC - log_softmax(neutral_KC.astype(np.float64), axis=-1).mean(axis=0)
    return softmax(log_NC / temperature, axis=-1).astype(np.float32)


def shares(outputs: np.ndarray) -> np.ndarray:
    """Outputs of least squares, [..., classes], as probabilities in float32: the positive ones, by
    their sum; 1/C where none is.
    """
    positive = np.maximum(outputs, 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    even = np.full_like(positive, 1 / positive.shape[-1])
    return np.where(total > 0, positive / np.where(total > 0, total, 1), even).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)
