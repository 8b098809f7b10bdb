"""Tables for papers: one unit a column, the best in bold, and the width that they were made for."""

import shutil
import subprocess

import pytest

from sim.compare.latex import IN_COLUMN, PAGE, tables_for_paper
from sim.compare.planned_run import CompareError


def row(method, reference=False, **values):
    table = {"method": method, "reference": reference, "seeds": 3}
    for name, value in values.items():
        table |= {name: value[0], f"{name}_low": value[1], f"{name}_high": value[2]}
    return table


def of(accuracy, time_s, scale=1.0):
    costs = dict.fromkeys(PAGE[3:7], (scale * 2500000.0, scale * 2400000.0, scale * 2600000.0))
    return {
        "chosen": accuracy,
        "time_s": time_s,
        "flop": (scale * 0.67e12, scale * 0.6e12, scale * 0.75e12),
        "energy_j": (scale * 22.9, scale * 22.0, scale * 23.8),
        **costs,
    }


TABLE = [
    row("fed-mobillm", **of((0.836, 0.826, 0.846), (2.07, 1.9, 2.3))),
    row("fedavg-lora & [co]", **of((0.894, 0.884, 0.904), (523.0, 500.0, 546.0), 20.0)),
    row("a name of 30 characters, as is", **of((0.5, 0.49, 0.51), (26_760.0, 26_000, 27_520), 4e3)),
    {"method": "never", "reference": False, "seeds": 3, "time_s": None, "time_s_at_least": 600.0},
    row("centralised", True, **of((0.9, 0.89, 0.91), (0.9, 0.8, 1.0), 0.01)),
]
TITLE = "cost to the end of 100 % of each method's own convergence"


def cells(text, method):
    line = next(line for line in text.splitlines() if line.startswith(method))
    return [cell.strip() for cell in line.removesuffix(r" \\").split(" & ")]


def test_a_column_has_one_unit_and_the_best_is_bold():
    text = tables_for_paper({TITLE: TABLE}, IN_COLUMN, is_page=False)
    assert r"Method &  & {[s]} & {[MB]} \\" in text  # a reference has 25 kB
    assert cells(text, "fed-mob")[1:3] == [
        r"0.836\,{\tiny$\pm$0.010}",
        r"\textbf{2.07}\,{\tiny(1.90--2.30)}",
    ]
    assert cells(text, "fedavg")[1].startswith(r"\textbf{0.894}")
    assert cells(text, "a name")[2].startswith("26{,}760")
    assert cells(text, "never") == ["never", "--", r"$\geq$600", "--"]
    assert text.count(r"\textbf") == 3  # a reference's 0.9 s and 0.900 are nobody's best
    rows = text.splitlines()
    assert rows.index(r"\midrule", rows.index(r"\midrule") + 1) == len(rows) - 7
    assert r"\label{tab:cost-to-the-end-of-100-of-each-method-s-own-convergence}" in text
    assert r"100 \% of each" in text and "over 3 seeds, with 95" in text
    assert "Costed as" not in text
    charged = tables_for_paper({TITLE: TABLE}, IN_COLUMN, False, costed_as="roberta_base")
    assert r"Costed as roberta\_base." in charged


def note(text):
    [line] = [line for line in text.splitlines() if line.startswith(r"\par")]
    return line


def test_what_columns_and_signs_mean_stands_below_where_they_are():
    table = [{**one, "test_texts": 300} for one in TABLE]
    said = note(tables_for_paper({TITLE: table}, IN_COLUMN, is_page=False))
    for part in (
        r"\emph{Accuracy}: at the evaluation that validation texts choose; \emph{Time}: on the",
        r"\emph{Bytes}: up, down and delivery. Test texts: $n=300$. ",
        r"Intervals (95 \%): accuracy over seeds and test texts, costs over seeds and between the "
        "evaluations before and after.",
        r"$\geq$: not reached in every seed, counted until its end. 1\,MB is $10^6$ bytes.",
    ):
        assert part in said
    alone = [{**one, "seeds": 1} for one in table[:3]]
    said = note(tables_for_paper({TITLE: alone}, ["chosen", "energy_j"], is_page=False))
    assert "accuracy over test texts alone, costs between the evaluations before" in said
    assert not any(word in said for word in ("Bytes", "bytes", "geq", "Time"))
    exact = [{"method": "a", "reference": False, "seeds": 3, "energy_j": 2.0}]
    assert "Intervals" not in note(tables_for_paper({TITLE: exact}, ["energy_j"], is_page=False))


def test_what_has_not_learned_is_in_no_column_the_best():
    idle = row("idle", **of((0.3, 0.2, 0.4), (0.1, 0.09, 0.11), 0.01))
    for learned, best in ((0.0, "idle"), (0.8, "fed-mob")):
        text = tables_for_paper({TITLE: [*TABLE, idle]}, IN_COLUMN, False, learned)
        assert text.count(r"\textbf") == 3
        assert all(cell.startswith(r"\textbf") for cell in cells(text, best)[2:])


def test_headings_name_the_metric_and_devices_have_columns_of_their_own():
    rated = [{**one, "metric": "mcc"} for one in (row("a", device_worst=(0.5, 0.4, 0.6)), row("b"))]
    text = tables_for_paper({TITLE: rated}, ["final", "chosen", "device_worst"], is_page=False)
    assert r" & mcc at the end & mcc & Worst device \\" in text and "Accuracy" not in text
    assert cells(text, "a")[3] == r"0.500\,{\tiny$\pm$0.100}"


def test_what_diverged_says_so_and_in_how_many_seeds():
    lost = {"method": "lost", "reference": False, "seeds": 3, "chosen": None, "time_s": None}
    lost |= {"diverged": 2, "diverged_without": 1, "reached": 2, "time_s_at_least": 600.0}
    text = tables_for_paper({TITLE: [*TABLE, lost]}, ["chosen", "time_s"], is_page=False)
    assert cells(text, "lost") == ["lost", "diverged (2 of 3)", "diverged (1 of 3)"]


def test_a_column_that_there_is_none_of_is_refused():
    with pytest.raises(CompareError, match="'tmie' is no column"):
        tables_for_paper({TITLE: TABLE}, ["tmie"], is_page=False)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
@pytest.mark.parametrize("columns", [IN_COLUMN, PAGE])
def test_the_tables_fit_what_they_are_made_for(columns, tmp_path):
    text = tables_for_paper({TITLE: TABLE}, columns, is_page=columns is PAGE)
    source = rf"""\documentclass[twocolumn]{{article}}\usepackage{{booktabs,graphicx}}
\textwidth=7in\columnsep=0.4in
\begin{{document}}{text}\end{{document}}"""
    (tmp_path / "a.tex").write_text(source, encoding="utf-8")
    how = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    said = subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], **how).stdout
    assert "Overfull" not in said and "Output written" in said


def test_another_metric_is_not_called_accuracy():
    table = [{**one, "metric": "macro-f1"} for one in TABLE]
    text = tables_for_paper({TITLE: table}, ["final", "chosen", "time_s"], is_page=True)
    assert " & macro-f1 at the end & macro-f1 & Time" in text and "Accuracy" not in text
