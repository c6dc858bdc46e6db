"""Runs that are killed: what `kill -9` would leave on disk at chosen moments, and runs that go on from there.

A killed process loses what it had in memory, and what it had written is there: so a copy of the folder, made between
two writes, is what a kill at this moment leaves. Only rank zero writes, in its main thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_ssc import SnapshotStore, SSCMonitor, every
from tests.nets import Classifier, trainer
from tests.processes import join

MOMENTS = 20


def train(root: Path, how: str, epochs: int) -> None:
    """Train under a monitor, "epochs", "steps", "background" or "ranks", from the last checkpoint if there is one."""
    pl.seed_everything(0, verbose=False)
    by_steps = how in ("steps", "ranks")
    kept = ModelCheckpoint(root / "kept", save_last=True, every_n_train_steps=1 if by_steps else None)
    last = root / "kept" / "last.ckpt"
    earlier = len(list(root.glob("ssc*")))
    monitor = SSCMonitor(
        ["model.0", "model.9"],
        schedule=every(steps=1) if by_steps else every(epochs=1),
        probe_size=30,
        heatmap=False,
        store=root / f"ssc-{earlier - 1 if last.exists() else earlier}",
        background=how == "background",
    )
    ranks = {"strategy": "ddp", "devices": 2} if how == "ranks" else {}
    run = trainer(root, monitor, kept, max_epochs=epochs, enable_checkpointing=True, **ranks)
    run.fit(Classifier(), ckpt_path=last if last.exists() else None, weights_only=True)
    (root / "done").touch()


@contextmanager
def moments(passed: Callable[[], None]) -> Iterator[None]:
    """Around everything that writes, and at the end of every batch, a function is called."""

    def around(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def both(*args: Any, **options: Any) -> Any:
            passed()
            try:
                return original(*args, **options)
            finally:
                passed()

        patch.setattr(owner, name, both)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "link", "rename"):
            around(os, name)
        for name in ("replace", "unlink"):
            around(Path, name)
        around(np.lib.format, "write_array")
        around(SSCMonitor, "on_train_batch_end")
        yield


def train_and_copy(world: int, root: Path, how: str, epochs: int) -> None:
    """Train twice: count the moments at which anything is written, and copy the folder at some of them."""
    is_zero = join(world) == 0

    def run(name: str, wanted: frozenset[int]) -> int:
        count = 0

        def passed() -> None:
            nonlocal count
            if count in wanted and is_zero:
                shutil.copytree(root / name, root / "copies" / f"{count:04d}")
            count += 1

        with moments(passed):
            train(root / name, how, epochs)
        torch.distributed.barrier()
        return count

    last = run("counted", frozenset()) - 1
    run("run", frozenset(round(number * last / (MOMENTS - 1)) for number in range(MOMENTS)))


def resume_copies(world: int, root: Path, how: str, epochs: int) -> None:
    """Put every copy in the place of the run, which its checkpoints name, go on from it, and tell what there was."""
    rank, place, told = join(world), root / "run", {}
    for copy in sorted((root / "copies").iterdir()):
        if rank == 0:
            shutil.rmtree(place)
            shutil.copytree(copy, place)
            stores = map(SnapshotStore, sorted(place.glob("ssc*")))
            told[copy.name] = [[taken.step for taken in store] for store in stores]  # every one of them can be read
        torch.distributed.barrier()
        train(place, how, epochs)
        torch.distributed.barrier()
        if rank == 0:
            place.rename(root / f"resumed-{copy.name}")
            place.mkdir()
    if rank == 0:
        (root / "told.json").write_text(json.dumps(told))
