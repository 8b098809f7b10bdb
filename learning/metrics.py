"""What predictions on held-out texts are worth: the metrics of GLUE (Wang et al., ICLR 2019), and
the loss.

No metric is ever NaN: where its formula divides by nothing (one class predicted, ratings all
alike), it is 0, which is what guessing gets. Classes are numbered; `f1` takes class 1 of two for
the positive one, as GLUE does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

KEYS: tuple[Literal["value"], Literal["loss"]] = ("value", "loss")


class Score(TypedDict):
    """What a look at a model's predictions for some texts finds.

    value: the metric; loss: a text's mean cross-entropy, or squared error, or a token's mean -log
    p; by_class: of each class's texts the share that is predicted right (None for a class without
    texts), empty for ratings and responses.
    """

    value: float
    loss: float
    by_class: list[float | None]


def score(
    metric: str, predictions_NC: np.ndarray, labels_N: np.ndarray, loss: str = "cross-entropy"
) -> Score | None:
    """The score of predictions of class numbers [N], or of real-valued ratings [N] (C is 1 then);
    None where not all predictions are finite. Of several models' predictions, [K, N, C], the mean.

    The predictions are logits where `loss` is cross-entropy, and approach one-hot vectors where it
    is squared-error; for ratings they are the ratings.
    """
    if not np.isfinite(predictions_NC).all():
        return None
    if predictions_NC.ndim == 3:
        scores = [score(metric, one_NC, labels_N, loss) for one_NC in predictions_NC]
        return mean_score([one for one in scores if one is not None])
    if is_rating(labels_N):
        error_N = predictions_NC[:, 0].astype(np.float64) - labels_N
        value = METRICS_OF_RATINGS[metric](predictions_NC[:, 0], labels_N)
        return {"value": value, "loss": float((error_N**2).mean()), "by_class": []}
    predicted_N = predictions_NC.argmax(axis=1)
    right_N = predicted_N == labels_N
    texts_C = np.bincount(labels_N, minlength=predictions_NC.shape[1])
    right_C = np.bincount(labels_N[right_N], minlength=len(texts_C))
    return {
        "value": METRICS_OF_CLASSES[metric](predicted_N, labels_N),
        "loss": _loss_of_classes(predictions_NC, labels_N, loss),
        "by_class": [
            float(right / texts) if texts else None
            for right, texts in zip(right_C, texts_C, strict=True)
        ],
    }


def score_responses(metric: str, found_NS: np.ndarray) -> Score | None:
    """The score of what a language model makes of N responses, [N, 3]: the sum of -log p of its
    tokens, how many of them were the likeliest, how many there are; None where not all is finite.
    Of several models, [K, N, 3], the mean.

    loss is a token's mean -log p, over all tokens of all responses.
    """
    if not np.isfinite(found_NS).all():
        return None
    if found_NS.ndim == 3:
        scores = [score_responses(metric, one_NS) for one_NS in found_NS]
        return mean_score([one for one in scores if one is not None])
    nll, right, tokens = (math.fsum(column) for column in found_NS.T)
    loss = nll / tokens
    value = METRICS_OF_RESPONSES[metric](loss, right / tokens)
    return {"value": value, "loss": loss, "by_class": []}


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean over models that are judged on the same texts."""
    value, loss = (math.fsum(one[key] for one in scores) / len(scores) for key in KEYS)
    by_class = [
        None if None in shares else math.fsum(filter(None, shares)) / len(scores)
        for shares in zip(*(one["by_class"] for one in scores), strict=True)
    ]
    return {"value": value, "loss": loss, "by_class": by_class}


def is_rating(labels: np.ndarray) -> bool:
    """Whether labels are real-valued ratings, rather than numbers of classes."""
    return labels.dtype.kind == "f"


def _loss_of_classes(predictions_NC: np.ndarray, labels_N: np.ndarray, loss: str) -> float:
    y_NC = predictions_NC.astype(np.float64)
    rows = np.arange(len(labels_N))
    if loss == "squared-error":
        y_NC[rows, labels_N] -= 1
        return float((y_NC**2).sum(axis=1).mean())
    y_NC -= y_NC.max(axis=1, keepdims=True)
    return float((np.log(np.exp(y_NC).sum(axis=1)) - y_NC[rows, labels_N]).mean())


# --- of classes: predicted and true numbers, [N]


def accuracy(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """The share that is predicted right."""
    return float((predicted_N == labels_N).mean())


def f1(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) of class 1; 0 where no text is of it and none is predicted to be (van
    Rijsbergen, Information Retrieval, 1979).
    """
    return _f1_of(1, predicted_N, labels_N)


def macro_f1(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """The mean of the F1 of every class that a text is of or is predicted to be (the first of the
    two definitions in Opitz & Burst, arXiv 1911.03347).
    """
    classes = np.union1d(predicted_N, labels_N)
    return float(np.mean([_f1_of(c, predicted_N, labels_N) for c in classes]))


def mcc(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Matthews' correlation coefficient (Biochim. Biophys. Acta 405, 1975), of any number of
    classes: R_K of Gorodkin (Comput. Biol. Chem. 28, 2004); 0 where only one class is predicted, or
    there.
    """
    size = int(max(predicted_N.max(), labels_N.max())) + 1
    predicted_C, true_C = (
        np.bincount(numbers, minlength=size).astype(np.float64)
        for numbers in (predicted_N, labels_N)
    )
    n, right = float(len(labels_N)), float((predicted_N == labels_N).sum())
    spread = (n**2 - predicted_C @ predicted_C) * (n**2 - true_C @ true_C)
    return float((n * right - predicted_C @ true_C) / np.sqrt(spread)) if spread > 0 else 0.0


def _f1_of(positive: int, predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    is_predicted, is_true = predicted_N == positive, labels_N == positive
    marked = int(is_predicted.sum() + is_true.sum())
    return 2 * int((is_predicted & is_true).sum()) / marked if marked else 0.0


# --- of ratings: predicted and true ones, [N]


def pearson(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Pearson's correlation; 0 where predictions or ratings are all alike."""
    x_N, y_N = (values.astype(np.float64) for values in (predicted_N, labels_N))
    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return 0.0
    x_N, y_N = ((v - v.mean()) / np.ptp(v) for v in (x_N, y_N))
    return float(np.clip((x_N @ y_N) / np.sqrt((x_N @ x_N) * (y_N @ y_N)), -1.0, 1.0))


def spearman(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, of equals their mean rank; 0 as there."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted_N), rankdata(labels_N))


Metric = Callable[[np.ndarray, np.ndarray], float]

METRICS_OF_CLASSES: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "mcc": mcc,
}
METRICS_OF_RATINGS: dict[str, Metric] = {"pearson": pearson, "spearman": spearman}
METRICS_OF_RESPONSES: dict[str, Callable[[float, float], float]] = {
    "perplexity": lambda loss, share: math.exp(min(loss, _MOST_NATS)),
    "next-token-accuracy": lambda loss, share: share,
}
"""Of a token's mean loss and the share of tokens that are the likeliest."""
_MOST_NATS = 700.0  # beyond, no float64 holds the perplexity
DEFAULTS = {
    "classification": "accuracy",
    "regression": "pearson",
    "language-modelling": "perplexity",
}
"""Kind of a task -> what models are judged by."""
CORRELATIONS = ("mcc", *METRICS_OF_RATINGS)
"""From -1 on; the others are from 0 on. All but the perplexity are at most 1."""
LESS_IS_BETTER = frozenset({"perplexity"})


def merit(metric: str, values: np.ndarray | float) -> np.ndarray:
    """Values of a metric on a scale on which more is better, and half a hundredth is little: the
    values themselves; of a perplexity, the loss a token in nats, with its sign turned.
    """
    found = np.asarray(values, dtype=np.float64)
    return -np.log(found) if metric in LESS_IS_BETTER else found


def mean_of(metric: str, values: Sequence[float], shares: Sequence[float] | None = None) -> float:
    """The mean over models, weighted by their shares; of perplexities that of their losses, so the
    geometric mean.
    """
    weights = [1 / len(values)] * len(values) if shares is None else shares
    if metric not in LESS_IS_BETTER:
        return math.fsum(share * value for share, value in zip(weights, values, strict=True))
    logs = (share * math.log(value) for share, value in zip(weights, values, strict=True))
    return math.exp(math.fsum(logs))


def why_unfit(metric: str, kind: str, classes: int = 2) -> str:
    """Why a metric is none of a kind of task with so many classes, or ""."""
    of_kind: Mapping[str, Mapping[str, object]] = {
        "regression": METRICS_OF_RATINGS,
        "language-modelling": METRICS_OF_RESPONSES,
    }
    fitting = of_kind.get(kind, METRICS_OF_CLASSES)
    if metric not in fitting:
        what = {"regression": "ratings", "language-modelling": "responses"}.get(kind, "classes")
        return f"{metric} is no metric of a task with {what}; those are: {', '.join(fitting)}"
    if metric == "f1" and classes != 2:
        return (
            f"f1 is of one class against another, and there are {classes:,} classes: take macro-f1 "
            "(the mean over classes), mcc or accuracy"
        )
    return ""
