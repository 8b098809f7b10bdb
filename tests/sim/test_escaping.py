"""What users name goes through LaTeX and Markdown as it is."""

import re
import shutil
import subprocess

import pytest

from sim.views import escaping

NAMES = (
    "a_b & 100 %",
    r"x\y{z}^2~$3#",
    "one | two",
    "line\nbreak",
    "µs ± 1 × 2",
    "[link](http://x) <b> `c` *d*",
    '"q"',
    "*starred* [a]",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_character_of_a_name_means_anything_to_latex(name):
    text = escaping.latex(name)
    bare = re.sub(r"\\text\w+\{\}|\$\\(pm|times)\$|\\[&%$#_{}]|\{[][*]\}", "", text)
    assert not set(bare) & set('\\&%$#_{}~^<>|"[]*\n')


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
def test_latex_itself_takes_every_name(tmp_path):
    body = r" \\ ".join(escaping.latex(name) for name in NAMES)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp}"
    source = rf"{head}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "a.tex").write_text(source, encoding="utf-8")
    subprocess.run(
        ["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True
    )


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_a_name_as_it_is(name):
    from markdown_it import MarkdownIt

    shown = (
        MarkdownIt("commonmark")
        .enable("table")
        .render(f"| a |\n|---|\n| {escaping.markdown(name)} |")
    )
    cell = re.search(r"<td>(.*?)</td>", shown, re.DOTALL)[1]
    for entity, plain in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        cell = cell.replace(entity, plain)
    assert cell == " ".join(name.split())


def test_figures_draw_a_name_with_dollars_as_it_is_written(tmp_path):
    """`$x^$` is no mathematics, and what is none ends matplotlib with an error of its parser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from sim.views.saving_figures import save

    def drawn(name):
        figure = Figure()
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        ax.plot([1, 10], [10, 60], label=name)
        ax.set(yscale="log", title=name, xlabel=name)
        ax.set_xticks([1, 10], [name, name])
        ax.legend()
        figure.suptitle(name)
        path = save(figure, tmp_path / "new" / "figure.png")
        ticks = [label for label in ax.get_yticklabels(which="both") if label.get_text()]
        return ticks, Image.open(path).tobytes()

    ticks, with_dollars = drawn("a $\\frac$ b")
    assert with_dollars != drawn("a b")[1]
    assert len(ticks) > 4  # within a decade the smaller ones are named, too
    assert all(label.get_parse_math() for label in ticks)  # powers of ten stay powers


def test_a_long_name_leaves_room_for_the_panels(tmp_path, recwarn):
    """Names that begin alike are told apart by their ends."""
    from sim.views.page import FULL_WIDTH
    from sim.views.saving_figures import save

    figure, (ax,) = FULL_WIDTH.figure(2.0, 1, title="", note="")
    for end in ("a", "b\nc"):
        ax.plot([0, 1], label="x" * 300 + end)
    figure.legend(loc="outside right center")
    save(figure, tmp_path / "figure.png")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"{'x' * 20}…{'x' * 18}{end}" for end in ("a", "b\nc")]
    assert not recwarn.list and ax.get_position().width > 0.3
