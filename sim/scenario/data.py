"""What a scenario may say of its data: a file of one's own, or sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from learning.data.labels import MOST_CLASSES
from sim.scenario.named_files import FilePath
from sim.scenario.settings import Settings

Column = str | Annotated[int, Field(ge=1, le=1_000_000)]
"""A column by its name, or by its number from 1 in a table without a header."""


class OwnData(Settings):
    """A file of one's own: CSV, TSV, JSONL or Parquet, with the names of its columns."""

    path: FilePath
    text: Column | None = "text"
    """Default `text`; none beside a `response`."""
    text_b: Column | None = None
    label: Column | None = "label"
    """Default `label`; of responses and plain text it is a topic, and by default there is none."""
    client: Column | None = None
    prompt: Column | None = None
    """What a response is said to; single cells may be blank."""
    response: Column | None = None
    """What is to be said, in language modelling."""
    test: FilePath | None = None
    """A second file that holds the test texts; without it they are split off."""
    delimiter: str | None = Field(None, max_length=9)
    """What splits the cells of a table of text: one character, or `tab`; default a tab in .tsv,
    elsewhere what fits.
    """
    encoding: str | None = Field(None, max_length=40)
    """Of files of text; default UTF-8, or what their byte-order mark says."""
    header: bool = True
    """The first line of a table of text names its columns; if not, `text: 1, label: 2` number them.
    """
    skip_blank: bool = False
    """Leave out rows that lack a text, a label or a client, and count them; by default the first is
    an error.
    """
    keep_test_copies: bool = False
    """Test on texts that stand in the training part, too; by default they are left out of the test
    part.
    """

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: Callable[[OwnData], dict[str, Any]]) -> dict[str, Any]:
        """As in `Scenario`: who leaves the later settings alone keeps the digest."""
        later = {
            "prompt": None,
            "response": None,
            "delimiter": None,
            "encoding": None,
            "header": True,
            "skip_blank": False,
            "keep_test_copies": False,
        }
        return {
            key: value
            for key, value in dump(self).items()
            if key not in later or value != later[key]
        }


def to_be_said(task: dict[str, Any]) -> dict[str, Any]:
    """A task of which labels need not be known: columns of its own file that nobody names are not
    looked for, but for the text of plain text.
    """
    own = task.get("dataset")
    if not isinstance(own, dict) or "path" not in own:
        return task
    is_plain = all(own.get(key) is None for key in ("prompt", "response"))
    return task | {"dataset": {"label": None} | ({} if is_plain else {"text": None}) | own}


class SizedData(Settings):
    """A data set known by its size alone: enough for a dry run, which needs no texts."""

    classes: int | None = Field(None, ge=2, le=MOST_CLASSES)
    """Of a classification."""
    tokens: int = Field(ge=1, le=1_000_000)
    """Length of every text in tokens, a response's with its prompt."""
    response_tokens: int | None = Field(None, ge=1, le=1_000_000)
    """Of these, those that are to be said: of language modelling, which has no `classes`."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.classes is None) == (self.response_tokens is None):
            raise ValueError(
                "data known by their size have `classes`, or for language modelling "
                "`response_tokens`: one of the two"
            )
        if self.response_tokens is not None and self.response_tokens >= self.tokens:
            raise ValueError(
                f"response_tokens: {self.response_tokens} of {self.tokens} `tokens`: a text begins "
                "with one, at least, that is not to be said"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: Callable[[SizedData], dict[str, Any]]) -> dict[str, Any]:
        """As in `Scenario`: who leaves the later setting alone keeps the digest."""
        return {key: value for key, value in dump(self).items() if value is not None}


def kind_of_data(given: Any) -> str:
    """Which of the three a data set is given as, so that a mistake is answered for that one
    alone.
    """
    if isinstance(given, dict | Settings):
        keys = set(given if isinstance(given, dict) else given.model_fields_set)
        return (
            "SizedData"
            if keys & {"classes", "tokens", "response_tokens"} and "path" not in keys
            else "OwnData"
        )
    return "str"
