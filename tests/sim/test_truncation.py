"""What `check` and a run say of texts that are cut at `max_tokens`."""

import csv

import pytest

FILLER = "filler " * 30
CUT = "texts are cut at 16 tokens (task.max_tokens)"


@pytest.fixture
def cuts(tmp_path, simulate):
    """What a dry run remarks of 60 training texts of this kind that are cut: a text, or both of a
    pair, as a function of its number.
    """

    def remarks(text, second=None, *, dry=True, **changes) -> list[str]:
        for name, numbers in (("train.csv", range(60)), ("held.csv", range(90, 110))):
            with (tmp_path / name).open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["text", "other", "label"])
                for i in numbers:
                    rows.writerow([text(i), second(i) if second else "", "ab"[i % 2]])
        dataset = {"path": "train.csv", "test": "held.csv", "keep_test_copies": True}
        if second:
            dataset["text_b"] = "other"
        task = {"dataset": dataset, "max_tokens": 16, **changes.pop("task", {})}
        said = simulate(dry=dry, task=task, **changes).remarks
        return [remark for remark in said if "are cut" in remark]

    return remarks


ALL_EQUAL = [f"60 of 60 {CUT}, and 60 of them become equal to another"]


@pytest.mark.parametrize(
    ("text", "second", "said"),
    [
        (lambda i: f"{FILLER}{i}", None, ALL_EQUAL),
        (
            lambda i: f"{i} {FILLER}",
            None,
            [f"60 of 60 {CUT}"],
        ),
        (lambda i: f"{i} " * 15, None, []),  # with the mark before it: as long as it may be
        (
            lambda i: f"{i} " * (16 if i < 3 else 5),
            None,
            [f"3 of 60 {CUT}"],
        ),
        (lambda i: f"{i} " * (16 if i < 2 else 5), None, []),
        (
            lambda i: f"{FILLER}{i}" if i < 2 else f"{i}",
            None,
            [f"2 of 60 {CUT}, and 2 of them become equal to another"],
        ),
        (lambda i: f"{FILLER}{i // 30}", None, ALL_EQUAL),
        (
            lambda i: FILLER,
            None,
            [f"60 of 60 {CUT}"],
        ),  # were equal before
        (lambda i: FILLER, str, ALL_EQUAL),
        (
            lambda i: f"{i}",
            lambda i: FILLER,
            [f"60 of 60 {CUT}"],
        ),
        (str, str, []),
    ],
)
def test_texts_that_are_cut_are_counted_where_it_matters(cuts, text, second, said):
    assert cuts(text, second) == said


def test_a_template_that_leaves_little_room_cuts_too(cuts):
    task = {"template": "one two three {text} four five six seven eight"}
    assert cuts(lambda i: f"{i} a b c d e f", task=task) == []  # 9 with the mark, and 7
    said = [f"60 of 60 {CUT}, and 60 of them become equal to another"]
    assert cuts(lambda i: f"a  b c d e f g {i}", task=task) == said


def test_each_tokenizer_is_named_where_the_fleet_has_several(cuts, own_model):
    group = {"device": "jetson-tx2", "link": "lte"}
    fleet = [
        {"count": 2, "backbone": "words", **group},
        {"count": 1, "backbone": "random-bert-l1", **group},
        {"count": 1, "backbone": "random-bert", **group},
    ]
    more = {
        "fleet": fleet,
        "arrivals": {"kind": "at-once"},
        "backbones": {"words": {"path": str(own_model())}},
    }
    # 15 words and what stands around them: before a text and after it, or only before
    assert cuts(lambda i: f"{i} " + "a1 " * 14, **more) == [
        f"30 of 30 {CUT}, and 30 of them become equal to another as words reads them"
    ]
    assert cuts(lambda i: f"{i} " + "a1 " * 15, **more)[:1] == [
        f"30 of 30 {CUT} as random-bert and random-bert-l1 read them"
    ]


def test_texts_that_are_charged_at_one_length_are_cut_all_the_same(cuts):
    charged = {"cost_as": {"backbone": "bert-base", "tokens": 128}}
    assert cuts(lambda i: f"{FILLER}{i}", dry=False, **charged) == ALL_EQUAL
