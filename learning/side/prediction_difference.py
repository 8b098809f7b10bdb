"""The prediction difference: all that a server learns about labels (PAE MobiLLM, Fed MobiLLM).

The device forms delta_y = one_hot(y) - y_b(x), where y_b is its frozen backbone's own prediction;
the side network learns delta_y from activations; the final prediction is y_b + y_s. The papers give
no loss formula; squared error on delta_y is the plain choice for a loss that may depend on (y, y_b)
through their difference only.
"""

from __future__ import annotations

import numpy as np

PREDICTIONS = ("uniform", "label-names", "random-head")


def backbone_prediction(
    kind: str,
    last_layer_ND: np.ndarray,
    n_classes: int,
    label_names_CD: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    temperature: float = 0.05,
) -> np.ndarray:
    """The frozen backbone's own prediction y_b, probabilities [n, classes] in float32.

    `uniform`: a new task, the backbone knows nothing: 1/C. `label-names`: zero-shot, the softmax of
    cosine similarities (over `temperature`) between a text's last layer and the class names'
    [classes, hidden]. `random-head`: a frozen linear head at its usual initialisation N(0, 0.02^2),
    as a classification model has it before fine-tuning. Raises ValueError for another kind, or
    where what a kind needs is not given.
    """
    if kind == "uniform":
        return np.full((len(last_layer_ND), n_classes), 1 / n_classes, dtype=np.float32)
    if kind == "label-names":
        if label_names_CD is None:
            raise ValueError("label-names needs the vectors of the class names")
        cosines_NC = _unit(last_layer_ND) @ _unit(label_names_CD).T
        return _softmax(cosines_NC / temperature)
    if kind == "random-head":
        if rng is None:
            raise ValueError("random-head needs a generator to draw it from")
        head_DC = rng.normal(0, 0.02, (last_layer_ND.shape[1], n_classes)).astype(np.float32)
        return _softmax(last_layer_ND @ head_DC)
    raise ValueError(f"backbone prediction {kind!r} is not one of {', '.join(PREDICTIONS)}")


def difference(labels_N: np.ndarray, prediction_NC: np.ndarray) -> np.ndarray:
    """delta_y = one_hot(labels) - prediction, float32 [n, classes]."""
    one_hot = np.zeros_like(prediction_NC)
    one_hot[np.arange(len(labels_N)), labels_N] = 1
    return one_hot - prediction_NC


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)
