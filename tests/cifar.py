"""CIFAR-10 in the layout of its original files, made of a few images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path, images: NDArray[np.uint8], labels: list[int]) -> None:
    """Write the seven files of CIFAR-10, with the same (N, 32, 32, 3) images in each training batch and in the test."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    batch = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels}
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))


def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision asks for the files of CIFAR-10 and not for their checksums."""
    for split in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, split, [[name, None] for name, _ in getattr(CIFAR10, split)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
