"""The command on the public ResNet-20 and a hundred test images: what it writes holds together."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ssc.capture import make_probe
from recipes import converged
from recipes.tables import read_table
from tests.cifar import without_checksums, write_cifar10

SHARED = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="module")
def real_cifar(tmp_path_factory):
    """CIFAR-10 whose test batch holds 200 of the true test images."""
    if not (SHARED / "cifar10_resnets").is_dir():
        pytest.skip("the public weights and the packed images (../shared/data) are not beside this checkout")
    spec = importlib.util.spec_from_file_location("unpack", SHARED / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels, _ = unpack.read_split(SHARED / "cifar10", "test")
    root = tmp_path_factory.mktemp("real_cifar")
    write_cifar10(root, images[:200], labels[:200])
    return root


def test_tables_and_figures_of_a_converged_network(real_cifar, tmp_path, monkeypatch):
    without_checksums(monkeypatch)

    converged.converged(
        SHARED / "cifar10_resnets",
        converged.Images(str(real_cifar)),
        size=100,
        depths=[20],
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        draws=20,
    )
    tables = {path.stem: read_table(path) for path in (tmp_path / "out" / "n100").glob("*.csv")}
    numbers = {name: {key: np.array([_number(line[key]) for line in lines]) for key in lines[0]}
               for name, lines in tables.items()}  # fmt: skip

    assert [line["layer"] for line in tables["table1"]] == ["last convolution", "last block", "classifier"]
    table1 = numbers["table1"]
    assert (table1["alike"] > 0.85).all()
    assert ((table1["ssc_label_low"] <= table1["ssc_label"]) & (table1["ssc_label"] <= table1["ssc_label_high"])).all()
    assert (table1["ssc_label_of_shuffled"] < 0.4).all()

    curve = numbers["modularity"]
    assert len(curve["modularity"]) == 19
    assert curve["modularity"][-1] > 0.3 > 0.15 > curve["modularity"][0]
    assert curve["of_shuffled"].max() < 0.1

    seen = {(line["cka"], line["statistic"]): float(line["value"]) for line in tables["statistics"]}
    assert seen["ssc", "board"] > 0.05
    assert seen["ssc", "cut in two: contrast"] > 0.1

    ssc, linear = tables["estimators"]
    assert abs(float(ssc["permuted_biased"])) < 0.02
    assert float(ssc["largest_difference"]) < 0.01
    assert float(linear["permuted_biased"]) > 0.2 > 0.05 > abs(float(linear["permuted_unbiased"]))

    wrong = numbers["confidently_wrong"]
    assert (wrong["class"] != wrong["prediction"]).all()
    assert (np.diff(wrong["score"]) <= 0).all()
    pictures = {path.stem for path in (tmp_path / "out" / "n100").glob("*.png")}
    assert pictures == {"heatmaps_ssc", "heatmaps_linear", "modularity", "embeddings", "confidently_wrong"}


def test_a_snapshot_that_is_there_is_read_and_one_of_other_images_refused(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    one, other = (make_probe((images, torch.arange(6) % 2)) for images in torch.rand(2, 6, 3, 2, 2))
    taken = converged.snapshot_of(tmp_path / "made", network, ["1"], one, 10**9)
    again = converged.snapshot_of(tmp_path / "made", None, ["1"], one, 10**9)
    assert torch.equal(again.layers["1"].coef.to_dense(), taken.layers["1"].coef.to_dense())
    with pytest.raises(ValueError, match=r"made holds a snapshot of other images: move it away, or name another --r"):
        converged.snapshot_of(tmp_path / "made", network, ["1"], other, 10**9)


def _number(cell):
    try:
        return float(cell)
    except ValueError:
        return float("nan")
