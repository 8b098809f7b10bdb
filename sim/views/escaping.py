"""What a user named, as plain text within LaTeX or Markdown: no character of it means anything to
the format.
"""

import re

_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{sign: f"{{{sign}}}" for sign in "[]*"},  # which mean something behind a line's end
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "µ": r"\textmu{}",
        "×": r"$\times$",
        "–": "--",
    }
)


def latex(text: str) -> str:
    """The text as LaTeX prints it, in one line."""
    return " ".join(text.split()).translate(_LATEX)


def markdown(text: str) -> str:
    """The text as Markdown shows it, in one line, within a cell of a table too."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~$])", r"\\\1", " ".join(text.split()))
