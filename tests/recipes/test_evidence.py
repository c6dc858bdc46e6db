"""The page is what the files say, and verdicts turn with the numbers."""

import shutil

import pytest

from recipes.evidence import RESULTS, claims, claims_section, folders, page
from recipes.readme import README, with_block, with_row
from recipes.tables import read_table, write_table


def test_the_page_holds_what_the_results_say():
    assert page(README.read_text()) == README.read_text(), "run python -m recipes.evidence"


def test_pictures_are_small_and_there():
    shown = [line.split("](")[1].rstrip(")") for line in README.read_text().splitlines() if line.startswith("![")]
    assert any(path.startswith("results/converged") for path in shown)
    assert all((README.parent / path).stat().st_size < 200_000 for path in shown if path.startswith("results"))


@pytest.mark.parametrize(
    ("table", "column", "value", "claim"),
    [
        ("table1", "alike_low", 0.8, "neighbours label inputs"),
        ("table1", "ssc_label", 0.7, "neighbours label inputs"),
        ("modularity", "modularity", 0.3, "modularity rises with depth"),
        ("statistics", "low", 0.0, "a chess board"),
        ("statistics", "untrained", 0.9, "a chess board"),
        ("statistics", "value", 0.1, "deeper networks fall into few blocks"),
        ("confidently_wrong", "of_them_ssc_label_is_prediction", 0.4, "a wrongly classified input"),
    ],
)
def test_a_verdict_turns_with_its_number(table, column, value, claim, tmp_path):
    shutil.copytree(RESULTS / "converged", tmp_path / "converged")
    first = folders(tmp_path)[0]
    lines = [line | {column: value} for line in read_table(first.root / f"{table}.csv")]
    write_table(first.root / f"{table}.csv", lines)
    held = [line["held"] for line in claims(folders(tmp_path)[0]) if line["claim"].startswith(claim)]
    assert held
    assert set(held) == {"no"}


def test_a_line_that_was_trained_here_stands_beside_those_of_public_networks(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "narrow" / "claims.csv"
    lines = [line | {"held": "not shown", "seeds": "0"} for line in read_table(path)]
    lines[0] |= {"held": "no", "seeds": "2", "measured": "0.1 ± 0.01"}
    write_table(path, lines)
    text = claims_section(tmp_path / "results")
    public = claims(folders(tmp_path / "results")[0])
    yes = sum(line["held"] == "yes" for line in public)
    assert (
        f"Decided: {len(public) + 1} of {len(public) + len(lines)} lines (yes: {yes}, no: {len(public) + 1 - yes})"
        in text
    )
    [first, second, *_] = [line for line in text.splitlines() if line.startswith("| modularity rises with depth |")]
    assert f"| {lines[0]['runs']} (2 seeds) |" in first
    assert "| 0.1 ± 0.01 |" in first
    assert first.endswith("| **no** |")
    assert second.endswith("| not shown |")


def test_blocks_and_rows_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="there is no block <!-- one -->"):
        with_block("text", "one", "new")
    with pytest.raises(ValueError, match=r"there is no row of `a\.yaml`"):
        with_row("| `b.yaml` | 1 |", "`a.yaml`", ["2"])
