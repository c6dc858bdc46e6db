"""Where a run puts its snapshots: a folder of its own, or that of the run which it goes on with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from lightning_ssc.settings import Settings
from lightning_ssc.snapshots.claim import Claim, TakenError
from lightning_ssc.snapshots.snapshot import SnapshotError, SnapshotHeader
from lightning_ssc.snapshots.store import SnapshotStore

log = logging.getLogger(__name__)

OnMismatch = Literal["raise", "new"]


class MismatchError(ValueError):
    """What a run brings does not go with the snapshots that there are; the message says what to do."""


@dataclass(frozen=True)
class _Occupied:
    """Why a folder cannot be had, and what can be done about it."""

    folder: Path
    why: str
    remedy: str

    def refusal(self) -> MismatchError:
        return MismatchError(f"store={self.folder} {self.why}. {self.remedy}.")


def free_folder(root: Path, *, named: bool) -> Claim:
    """Claim a folder without snapshots.

    Args:
        root: The folder.
        named: Whether it was asked for by name; if not, one beside it will do.

    Raises:
        MismatchError: It was asked for by name and is another run's.
        OSError: It cannot be made or written.
    """
    said: _Occupied | None = None
    for number in count():
        claim = _claim_without_snapshots(_beside(root, number))
        if isinstance(claim, Claim):
            if said is None:
                log.info("Snapshots go to %s.", claim.root)
            else:
                log.warning("Snapshots go to %s: %s %s.", claim.root, said.folder, said.why)
            return claim
        if named:
            raise claim.refusal()
        said = said or claim
    raise AssertionError("numbers do not end")


def own_folder(root: Path) -> Claim:
    """Claim a folder, whatever snapshots it holds.

    Raises:
        MismatchError: A run writes into it.
        OSError: It cannot be made or written.
    """
    claim = _claim(root)
    if isinstance(claim, _Occupied):
        raise claim.refusal()
    return claim


def _claim_without_snapshots(folder: Path) -> Claim | _Occupied:
    if not (taken := SnapshotStore(folder).steps):
        claim = _claim(folder)
        if isinstance(claim, _Occupied) or not (taken := SnapshotStore(folder).steps):
            return claim
        claim.release()  # its run has ended between the two looks
    why = f"already holds the snapshots of another run (steps {taken})"
    return _Occupied(folder, why, "Name a new folder, or move those away")


def _claim(folder: Path, *, from_elsewhere: bool = False) -> Claim | _Occupied:
    try:
        return Claim(folder, from_elsewhere=from_elsewhere)
    except TakenError as error:
        remedy = f"Name a new folder, or end that run (a Recorder: close() it); if it has ended, delete {error.path}"
        return _Occupied(folder, str(error), remedy)
    except OSError as error:
        why = f"store={folder} cannot be written ({error.strerror or error}). Name another folder with store=."
        raise OSError(error.errno, why) from error


def _beside(root: Path, number: int) -> Path:
    """The folder itself, and those that are counted on from it."""
    whole = root.resolve() if root.name in ("", "..") else root.absolute()  # "." has no name to count on from
    return whole.with_name(f"{whole.name}-{number}") if number else root


def differences(header: SnapshotHeader, settings: Settings, layers: Sequence[str]) -> list[str]:
    """In what a run differs from the one that took a snapshot, as far as graphs depend on it.

    Args:
        header: What the snapshot says of itself. Settings that it does not know are those by default.
        settings: The run's settings.
        layers: Labels of the layers that it watches.
    """
    was, now = {**asdict(Settings()), **header.settings}, settings.stored()
    found = [f"{name} was {was[name]!r} and is {value!r}" for name, value in now.items() if was[name] != value]
    for what, names in (
        ("layers that are not watched any more", [name for name in header.layers if name not in layers]),
        ("layers that were not watched", [name for name in layers if name not in header.layers]),
    ):
        if names:
            found.append(f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    return found


def continued_folder(
    root: Path,
    state: Mapping[str, Any],
    fingerprint: str,
    settings: Settings,
    layers: Sequence[str],
    *,
    named: bool,
    on_mismatch: OnMismatch = "raise",
) -> tuple[Claim, list[int]]:
    """Take over the snapshots of the run that is resumed, and set aside what it had gone on to afterwards.

    Args:
        root: Where this run would put its snapshots.
        state: What the resumed run kept in its checkpoint: ``root``, ``run``, ``steps``, ``probe`` and ``pending``;
            and ``checkpoint``, the checkpoint's file, near which a folder is looked for that has been moved.
        fingerprint: Fingerprint of this run's probe.
        settings: How it makes graphs.
        layers: Labels of the layers that it watches.
        named: Whether ``root`` was asked for by name.
        on_mismatch: ``"raise"``, or ``"new"`` to begin a folder of its own where probe, settings or layers differ.

    Returns:
        The claimed folder, and the steps of the snapshots that are there.

    Raises:
        MismatchError: Probe, settings or layers are others, or the folder is another run's.
    """
    if "epochs" in state:  # of format 1, which counted logging steps; the untrained network's was 0
        keys = {e: 0 if e == 0 else s + 1 for e, s in zip(state["epochs"], state["steps"], strict=True)}
        state = {**state, "steps": list(keys.values()), "pending": keys.get(state.get("pending"))}
    before, steps = _found(root, state), list(state["steps"])
    if what := _mismatch(before, state, fingerprint, settings, layers):
        if on_mismatch == "raise":
            raise MismatchError(
                f"{what} Resume with the same, resume without this callback's state, or begin a folder of its own with "
                f"on_mismatch='new'."
            )
        log.warning("%s The run begins a folder of its own.", what)
        return free_folder(root, named=False), []
    claim = _claim_to_go_on(root, before.root, named)
    store = SnapshotStore(claim.root)
    store.take_over(before, steps)
    there = store.steps
    if later := [step for step in there if step not in steps]:
        store.set_aside(later)
        log.info("Snapshots of steps %s, taken after the checkpoint, are in %s.", later, claim.root / "superseded")
    pending = state.get("pending")
    if pending is not None and pending not in there:
        log.warning(
            "The snapshot of step %d was still being solved when the run ended. It is taken again if the checkpoint is "
            "that of the end of this epoch.",
            pending,
        )
    if lost := [step for step in steps if step not in there and step != pending]:
        log.warning("The snapshots of steps %s are gone from %s; the run goes on without them.", lost, before)
    return claim, [step for step in steps if step in there]


def _claim_to_go_on(root: Path, before: Path, named: bool) -> Claim:
    """The folder of the resumed run itself, where it is the one that was asked for, or a free one."""
    if root.resolve() != before.resolve():
        return free_folder(root, named=named)
    # On another machine its process cannot be asked; who names the folder and resumes its run says that it ended.
    claim = _claim(root, from_elsewhere=named)
    if isinstance(claim, _Occupied):
        if named:
            raise claim.refusal()
        return free_folder(root, named=False)
    log.info("Snapshots go to %s, where those of the resumed run are.", claim.root)
    return claim


def _found(root: Path, state: Mapping[str, Any]) -> SnapshotStore:
    """The snapshots of the resumed run, where they were or where somebody has moved them."""
    before = SnapshotStore(state["root"])
    if before.root.exists():
        return before
    near = Path(state["checkpoint"]).absolute().parents[:3] if state.get("checkpoint") else ()
    for folder in (root, *(parent / before.root.name for parent in near)):
        headers = [header for header in SnapshotStore(folder).headers() if isinstance(header, SnapshotHeader)]
        if any(header.run == state.get("run", "") and header.step in state["steps"] for header in headers):
            log.info("The snapshots in %s were once in %s.", folder, before)
            return SnapshotStore(folder)
    return before


def _mismatch(
    before: SnapshotStore, state: Mapping[str, Any], fingerprint: str, settings: Settings, layers: Sequence[str]
) -> str:
    """Why the snapshots of the resumed run cannot be gone on with; empty where they can."""
    if state["probe"] != fingerprint:
        return (
            f"The probe differs from the one of the snapshots in {before}, so their graphs cannot be compared (other "
            f"data, probe_size or transforms)."
        )
    for step in reversed([step for step in state["steps"] if step in before.steps]):
        try:
            found = differences(before.header(step=step), settings, layers)
        except SnapshotError:
            continue  # whoever reads it says so
        if found:
            return f"The snapshots in {before} were taken with other settings: {'; '.join(found)}."
        break
    return ""
