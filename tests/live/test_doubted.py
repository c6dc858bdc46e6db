"""Labels in doubt on the page and in the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from werkzeug.test import Client

from lightning_ssc.analysis import doubts
from lightning_ssc.live import doubted as module
from lightning_ssc.live.doubted import doubted, doubted_labels
from lightning_ssc.live.folder import LogFolder
from lightning_ssc.live.report import report
from lightning_ssc.live.serve import page
from lightning_ssc.snapshots import SnapshotStore
from tests.live.pages import contents
from tests.runs import doubtful_run, made_run

WRONG = [4, 31, 77]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    return doubtful_run(tmp_path_factory.mktemp("logs") / "version_0" / "ssc", WRONG)


def test_the_page_is_told_what_the_table_says(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Client(page(LogFolder(store.root.parent.parent))).get("/doubts", query_string={"run": "version_0"})
    found, table = json.loads(answer.text), doubts(store)
    assert sorted(found["inputs"]) == WRONG
    assert found["inputs"] == table.in_doubt().tolist()
    assert found["rather"] == [i % 3 for i in found["inputs"]]
    assert found["against"] == table.against[found["inputs"]].tolist()
    assert (found["count"], found["layers"], found["moments"]) == (3, ["0", "1"], 2)
    monkeypatch.setattr(module, "SHOWN", 2)
    assert (len(doubted(store)["inputs"]), doubted(store)["count"]) == (2, 3)


def test_of_a_long_run_some_moments_are_asked(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOMENTS", 1)
    found = doubted_labels(store)
    assert found is not None
    assert len(found.steps) == 1


def test_without_labels_there_is_nothing_to_doubt(tmp_path: Path) -> None:
    assert doubted(made_run(tmp_path, labels=False)) == {}


def test_the_report_has_them_and_writes_all(store: SnapshotStore, tmp_path: Path) -> None:
    html = report(store.root, tmp_path).read_text()
    (piece,) = (piece for key, piece in contents(html).items() if key[0] == "doubts")
    assert piece == json.loads(json.dumps(doubted(store)))
    with (tmp_path / "labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["input"]) for line in lines[:3]] == piece["inputs"]
    assert {line["in_doubt"] for line in lines[:3]} != {line["in_doubt"] for line in lines[3:]}
