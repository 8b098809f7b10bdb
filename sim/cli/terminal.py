"""Where the verbs write: standard output, and standard error for what is said beside the result."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

# what users named is no markup and no emoji
console = Console(soft_wrap=False, markup=False, emoji=False)
# for verbs that print words of their own: no number is picked out
plain = Console(soft_wrap=False, highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def show_remarks(remarks: Iterable[str]) -> None:
    """What whoever reads the result has to know."""
    for remark in remarks:
        errors.print(f"note: {remark}", style="yellow")
