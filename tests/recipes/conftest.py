"""CIFAR-10 in the layout of its original files, made of a few images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="session")
def made_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the seven files of CIFAR-10: 20 images in each training batch and in the test batch.

    An image's label is its place modulo ten, and its red, green and blue planes are 10, 20 and 15 times its label.
    """
    root = tmp_path_factory.mktemp("cifar")
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    labels = [i % 10 for i in range(20)]
    pixels = np.stack([np.repeat([10 * label, 20 * label, 15 * label], 32 * 32) for label in labels])
    batch = {"data": pixels.astype(np.uint8), "labels": labels}
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    return root


@pytest.fixture
def cifar_root(made_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, and torchvision that asks for the files of CIFAR-10 and not for their checksums."""
    for split in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, split, [[name, None] for name, _ in getattr(CIFAR10, split)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    return made_cifar
