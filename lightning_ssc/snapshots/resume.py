"""Where a run puts its snapshots: a folder of its own, or that of the run which it goes on with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lightning_ssc.snapshots.store import SnapshotStore

log = logging.getLogger(__name__)


class MismatchError(ValueError):
    """What a run brings does not go with the snapshots that there are; the message says what to do."""


def free_folder(root: Path, *, named: bool) -> Path:
    """A folder without snapshots.

    Args:
        root: The folder.
        named: Whether it was asked for by name; if not, one beside it will do.

    Raises:
        MismatchError: It was asked for by name and holds another run's snapshots.
    """
    if (taken := SnapshotStore(root).steps) and named:
        raise MismatchError(
            f"store={root} already holds the snapshots of another run (steps {taken}). Name a new folder, or move "
            f"those away."
        )
    return next(p for i in count() if not SnapshotStore(p := root.with_name(f"{root.name}-{i}" if i else root.name)))


def continued_folder(root: Path, state: Mapping[str, Any], fingerprint: str, *, named: bool) -> tuple[Path, list[int]]:
    """Take over the snapshots of the run that is resumed, and set aside what it had gone on to afterwards.

    Args:
        root: Where this run would put its snapshots.
        state: What the resumed run kept in its checkpoint: ``root``, ``steps``, ``probe`` and ``pending``.
        fingerprint: Fingerprint of this run's probe.
        named: Whether ``root`` was asked for by name.

    Returns:
        The folder, and the steps of the snapshots that are there.

    Raises:
        MismatchError: The probe is another one, or the folder holds another run's snapshots.
    """
    if "epochs" in state:  # of format 1, which counted logging steps; the untrained network's was 0
        keys = {e: 0 if e == 0 else s + 1 for e, s in zip(state["epochs"], state["steps"], strict=True)}
        state = {**state, "steps": list(keys.values()), "pending": keys.get(state.get("pending"))}
    before, steps = SnapshotStore(state["root"]), list(state["steps"])
    if state["probe"] != fingerprint:
        raise MismatchError(
            f"The probe differs from the one of the snapshots in {before}, so their graphs cannot be compared. Resume "
            f"with the same probe data, probe_size and transforms, or without this callback's state."
        )
    if root.resolve() != before.root.resolve():
        root = free_folder(root, named=named)
    store = SnapshotStore(root)
    store.take_over(before, steps)
    there = store.steps
    if later := [step for step in there if step not in steps]:
        store.set_aside(later)
        log.info("Snapshots of steps %s, taken after the checkpoint, are in %s.", later, root / "superseded")
    pending = state.get("pending")
    if pending is not None and pending not in there:
        log.warning(
            "The snapshot of step %d was still being solved when the run ended. It is taken again if the checkpoint is "
            "that of the end of this epoch.",
            pending,
        )
    if lost := [step for step in steps if step not in there and step != pending]:
        log.warning("The snapshots of steps %s are gone from %s; the run goes on without them.", lost, before)
    return root, [step for step in steps if step in there]
