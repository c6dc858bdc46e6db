"""A series of snapshots of one network, from the probe to stored and logged measures, in any training loop."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lightning_ssc import writers
from lightning_ssc.ahead import compile_ahead
from lightning_ssc.alarms import warn_of_collapse
from lightning_ssc.analysis import Dynamics, dynamics, stored
from lightning_ssc.background import Background
from lightning_ssc.capture import (
    LayerPattern,
    Probe,
    ProbeSource,
    Runner,
    WatchedLayer,
    goes_to_disk,
    in_parts,
    is_sharded,
    is_spread,
    make_probe,
    parameters_through,
    plan_shared,
    share_layers,
    trace,
    unwrapped,
)
from lightning_ssc.pipeline import Past, Pending, Stopwatch, begin_snapshot, compared, probe_card
from lightning_ssc.ranks import Ranks
from lightning_ssc.reference import read_reference
from lightning_ssc.remarks import Remarks
from lightning_ssc.snapshots import (
    Claim,
    MemoryStore,
    MismatchError,
    Moment,
    OnMismatch,
    ProbeCard,
    Settings,
    Snapshot,
    SnapshotError,
    SnapshotHeader,
    SnapshotStore,
    Store,
    continued_folder,
    epochs_as_steps,
    free_folder,
)
from lightning_ssc.threads import at_most, worth
from lightning_ssc.weights import CheckpointError, fingerprint, with_weights
from lightning_ssc.writers import Images

log = logging.getLogger(__name__)

Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass
class _Begun:
    """A snapshot that waits to be collected: this process's share of it, or why that failed."""

    moment: Moment
    share: Pending | None = None
    error: Exception | None = None

    def done(self) -> bool:
        return self.share is None or self.share.done()


class Recorder:
    """Takes, compares, stores and logs snapshots of one network: what the callback does, for a loop of your own.

    Over several processes (``torch.distributed``) all make one and call the same methods; each solves its share of the
    layers, and rank zero stores and logs.

    Args:
        network: The network, or a :class:`~lightning_ssc.capture.Runner` that says how it is run. What DDP, Fabric
            and ``torch.compile`` wrap around it is looked through. It is left as it was.
        probe: The inputs: ``(inputs, labels)``, tensors, a data set or a loader.
        layers: Which layers, see :func:`lightning_ssc.capture.select_layers`.
        settings: How activations become graphs.
        store: The folder for the snapshots, or ``None`` to keep them in memory.
        loggers: Anything with ``log_metrics(metrics, step)``, such as Lightning's or Fabric's loggers.
        images: Which images the loggers get.
        reference: What to compare with throughout: a snapshot, the file of one, a folder of them (its last is taken),
            or a checkpoint of the same network (``FILE:NAME`` of one that holds several, as in ``"last.ckpt:ema"``).
        background: Solve in a thread beside training. :meth:`record` then returns when the Grams are formed, and the
            results are stored and logged by the next :meth:`poll` after they are there, :meth:`record` or
            :meth:`finish`.
        name: First part of the tags.
        resume: What :meth:`state_dict` returned in the run that this one goes on with.
        probe_size: How many samples to draw from a data set.
        class_names: Names of the classes, for pages and pictures.
        texts: What to show of every input that is no picture, such as its sentence; by default its tokens or numbers.
        ranks: How the processes talk.
        bar: ``bar(parts, description)`` shows progress, as a context that gives a function to call with 1 a part.
        fallback: Whether a folder beside ``store`` is taken where that one is another run's.
        on_mismatch: ``"raise"``, or ``"new"`` to begin a folder of its own, where probe, settings or layers are not
            those of the run that is resumed.
        layout: Names of all recorders with these loggers, and whether they have a reference, for TensorBoard's custom
            scalars, of which it keeps the last layout it is given; empty where another one does it.

    Raises:
        ValueError: A layer is unknown or never runs, or the probe cannot be made.
        MismatchError: The folder is another run's, or the run that is resumed had another probe, other settings or
            other layers.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> recorder = Recorder(net, (torch.rand(30, 4), torch.arange(30) % 2), layers="Linear")
        >>> for epoch in range(3):
        ...     values = recorder.record(epoch=epoch)
        >>> recorder.finish()
        >>> recorder.store.epochs, "ssc/cka_to_previous/2" in values
        ([0, 1, 2], True)
    """

    def __init__(
        self,
        network: nn.Module | Runner,
        probe: Probe | ProbeSource,
        layers: str | type[nn.Module] | Sequence[LayerPattern] = "blocks",
        *,
        settings: Settings | None = None,
        store: str | Path | None = None,
        loggers: Iterable[Any] = (),
        images: Images | None = None,
        reference: Snapshot | str | Path | None = None,
        background: bool = False,
        name: str = "ssc",
        resume: Mapping[str, Any] | None = None,
        probe_size: int = 1000,
        class_names: Sequence[str] = (),
        texts: Sequence[str] = (),
        ranks: Ranks | None = None,
        bar: Bar = lambda parts, description: nullcontext(lambda done: None),
        fallback: bool = False,
        on_mismatch: OnMismatch = "raise",
        layout: Mapping[str, bool] | None = None,
    ) -> None:
        self.settings, self.images, self.name = settings or Settings(), images or Images(), name
        self.loggers, self.background = list(loggers), background
        self.scalars: dict[str, float] = {}
        self._ranks, self._bar, self._remarks = ranks or Ranks(), bar, Remarks()
        self._layout = {name: reference is not None} if layout is None else dict(layout)
        self._runner = network if isinstance(network, Runner) else _runner(network)
        assert self._runner.device is not None
        compile_ahead(self.settings, self._runner.device)
        self.probe: Probe = self._ranks.together(
            lambda: probe if isinstance(probe, Probe) else make_probe(probe, probe_size)
        )
        if len(set(self._ranks.everyones(self._ranks.together(lambda: self.probe.fingerprint)))) > 1:
            raise MismatchError(
                "The processes draw different probes, as from a stream that shards itself by rank. Give probe= the "
                "same tensors or a map-style data set on all of them."
            )
        self.watched: list[WatchedLayer] = self._ranks.together(lambda: self._trace(layers))
        self._reference_source = reference if isinstance(reference, Snapshot) or reference is None else Path(reference)
        self._past = Past()  # on rank zero
        self._collapsed: list[str] = []  # layers that a warning was given of
        self._steps: list[int] = []
        self._weights: list[float] | None = None  # fingerprint of the last snapshot's, where this process took it
        self._begun: _Begun | None = None
        self._worker: Background | None = None
        self._drawing: tuple[int, Future[list[writers.Drawn]]] | None = None  # on rank zero, with the step it is of
        self._to_recall = False
        self._finished_at: list[int] = []
        self._claim: Claim | None = None  # on rank zero
        self._run = ""
        self.store = self._open(store, resume, fallback, on_mismatch)
        self.card: ProbeCard = self._ranks.together(lambda: probe_card(self.probe, class_names, texts))
        self._ranks.on_zero(lambda: self.store.save_card(self.card))

    # -- Before the first snapshot

    def _trace(self, layers: str | type[nn.Module] | Sequence[LayerPattern]) -> list[WatchedLayer]:
        watched = trace(self._runner, layers, self.probe.batches, self.settings.rows, self._left_out)
        if is_sharded(self._runner.model):
            watched = self._without_parts(watched)
        if self._runner.memory is not None:  # what is free may be enough on one rank and not on another
            size, memory, ranks = len(self.probe), self._runner.memory, self._ranks.size
            staged = is_spread(self._runner.model, watched, ranks)
            disk = goes_to_disk(watched, size, memory, self._runner.grams_on_cpu)
            plan_shared(watched, size, memory, ranks, staged=staged, disk=disk)  # or it is too small
        return watched

    def _left_out(self, text: str) -> None:
        log.info("%s", text)
        self._remarks.add(text)

    def _without_parts(self, watched: list[WatchedLayer]) -> list[WatchedLayer]:
        """The layers of a sharded network that put out the same on all processes; none holds the others whole."""
        parts = in_parts(self._runner, watched, self.probe.batches, self._ranks, self.settings.rows)
        whole = [layer for layer in watched if layer not in parts]
        if not parts:
            return whole
        names = ", ".join(layer.label for layer in parts)
        if not whole or any(layer.layer.named for layer in parts):
            raise ValueError(
                f"Each process puts out a part of its own of these layers: {names}. Watch the linear layers around "
                f"them, whose parts can be put together, or the blocks that they are in."
            )
        log.warning("Not watched, because each process puts out a part of its own: %s.", names)
        return whole

    def _open(
        self, folder: str | Path | None, resume: Mapping[str, Any] | None, fallback: bool, on_mismatch: OnMismatch
    ) -> Store:
        """Rank zero decides for all: ranks must not go by what each of them sees on disk."""
        if folder is None:
            return MemoryStore()
        root = Path(folder)

        def choose() -> tuple[Path, list[int], str]:
            steps: list[int] = []
            if resume and "root" in resume:
                self._claim, steps = continued_folder(
                    root,
                    resume,
                    self.probe.fingerprint,
                    self.settings,
                    [layer.label for layer in self.watched],
                    named=not fallback,
                    on_mismatch=on_mismatch,
                )
            else:
                self._claim = free_folder(root, named=not fallback)
            return self._claim.root, steps, (steps and resume and resume.get("run")) or uuid.uuid4().hex

        root, self._steps, self._run = self._ranks.from_zero(choose)
        self._to_recall = bool(self._steps)
        return SnapshotStore(root)

    def prepare(self) -> None:
        """Load or take the reference, recall the run that is resumed, and lay out TensorBoard's charts.

        The first :meth:`record` does it where nobody has.

        Raises:
            MismatchError: The reference was taken on another probe.
            CheckpointError: The reference cannot be used.
            SnapshotError: The reference cannot be read.
        """
        layout, self._layout = self._layout, {}
        if layout:
            self._ranks.on_zero(lambda: writers.log_layout(self.loggers, layout))
        if self._reference_source is not None:
            self._past = replace(self._past, reference=self._load_reference(self._reference_source))
            self._reference_source = None  # not before it is there: without it no snapshot is taken
        recall, self._to_recall = self._to_recall, False  # on every rank, though only rank zero keeps the last one
        if recall:
            self._recall(self._steps[-1])
            self._tell(self.last)

    def _recall(self, step: int | None) -> None:
        """Take up the past after a snapshot, on rank zero; the run goes on without one that cannot be read."""

        def recalled() -> Past:
            try:
                return Past() if step is None else Past.recalled(self.store, step)
            except SnapshotError as error:
                log.warning("%s The next snapshot is not compared with it.", error)
                return Past()

        self._past = replace(self._ranks.on_zero(recalled) or Past(), reference=self._past.reference)

    def _load_reference(self, source: Snapshot | Path) -> Snapshot | None:
        """The reference on rank zero, which alone compares with it; every rank takes part where it is a checkpoint."""
        found = self._ranks.on_zero(lambda: source if isinstance(source, Snapshot) else read_reference(source))
        weights = self._ranks.broadcast(None if isinstance(found, Snapshot) else found)
        if weights is not None:
            with ExitStack() as lent:
                self._ranks.together(lambda: self._lend(lent, weights, source))
                begun = self._begin(Moment(0, 0), None, background=False)
            found = self._joined(begun)

        def checked() -> Any:
            if found.probe != self.probe.fingerprint:
                raise MismatchError(
                    f"reference={source} was taken on another probe, so its graphs cannot be compared. Use the same "
                    f"probe data, probe_size and transforms for both runs."
                )
            return found

        reference: Snapshot | None = self._ranks.on_zero(checked)
        return reference

    def _lend(self, lent: ExitStack, weights: Mapping[str, Any], source: Snapshot | Path) -> None:
        """Put a checkpoint's weights into the network, until the scope ends."""
        if is_sharded(self._runner.model):
            raise CheckpointError(
                f"reference={source} is a checkpoint, and no process has room for the weights of a sharded network. "
                f"Name a folder of snapshots; lightning-ssc analyze makes one of a checkpoint."
            )
        try:
            lent.enter_context(with_weights(self._runner.model, weights))
        except CheckpointError as error:
            raise CheckpointError(f"reference={source}: {error}") from error

    # -- One snapshot

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots that were taken, ascending."""
        return list(self._steps)

    def holds(self, epoch: int) -> bool:
        """Whether there is a snapshot of an epoch's end."""
        return bool(self._ranks.from_zero(lambda: epoch in self.store))

    def parameters_through(self) -> dict[str, list[str]]:
        """Names of parameters by the watched layer through which, with those before it, they act on the output alone.

        See :func:`lightning_ssc.capture.parameters_through`.
        """
        return parameters_through(self._runner, self.watched, self.probe.batches)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being solved right now."""
        return self._begun is not None and not self._begun.done()

    @property
    def pending(self) -> Moment | None:
        """Moment of the snapshot that was begun and is not yet stored."""
        return None if self._begun is None else self._begun.moment

    def record(
        self,
        epoch: float | None = None,
        step: int | None = None,
        learning_rate: float | None = None,
        *,
        trigger: str = "",
        logged: int | None = None,
    ) -> dict[str, float]:
        """Take a snapshot, after the one before is done.

        Args:
            epoch: Epochs that are done; 0 is the untrained network.
            step: Training steps that are done, by which snapshots are told apart: one that is there is not taken
                again, unless it is the last and the weights have changed since (as by averaging, at the end of
                training); then this one takes its place. Where it is not given whole epochs count; give it always, or
                never.
            learning_rate: Learning rate of the finished epoch; from it the curves know where it dropped.
            trigger: What called for it.
            logged: Step under which loggers get it; ``step`` where it is not given.

        Returns:
            What the last snapshot whose results are there says in numbers, by tag: in the background, the one before.

        Raises:
            ValueError: Neither epoch nor step is given, or a part of an epoch without its step; activations are not
                finite, or a layer cannot be solved.
            OSError: It cannot be stored.
        """
        if step is None:
            if epoch is None:
                raise ValueError("record() needs to know when this is: give it epoch=, step= or both.")
            step = epochs_as_steps(epoch)
        moment = Moment(step, math.nan if epoch is None else epoch, trigger, step if logged is None else logged)
        self.prepare()
        self.collect()
        weights = self._ranks.together(lambda: fingerprint(self._runner.model))
        is_there = bool(self._steps) and moment.step == self._steps[-1] and self._weights is not None
        if is_there and not self._ranks.all_true(weights == self._weights):
            self.withdraw_last()
        if moment.step not in self._steps:
            self._weights = weights
            begun = self._begin(moment, learning_rate, self.background)
            self._raise_if_failed(begun)
            self._begun = begun
            if not self.background:
                self.collect()
        return self.scalars

    def withdraw_last(self) -> None:
        """Make way for another snapshot of the same step, which is compared with the one before; the store replaces."""
        self._steps.pop()
        self._recall(self._steps[-1] if self._steps else None)

    @property
    def has_news(self) -> bool:
        """Whether :meth:`poll` would have something to store or to log."""
        solved = self._begun is not None and self._begun.done()
        return solved or (self._drawing is not None and self._drawing[1].done())

    def poll(self) -> dict[str, float]:
        """Store and log the snapshot that was solved in the background, if it is done; returns what is known then."""
        if self._drawing is not None and self._drawing[1].done():
            self._log_drawn()
        if self._begun is not None and self._ranks.all_true(self._begun.done()):
            self.collect()
        return self.scalars

    def collect(self) -> dict[str, float]:
        """Wait for the snapshot that is being solved, store and log it; returns what is known then.

        An interrupted wait can be taken up again.

        Raises:
            ValueError: A layer cannot be solved.
            OSError: The snapshot cannot be stored.
        """
        self._log_drawn()
        if self._begun is None:
            return self.scalars
        timed, moment = Stopwatch(), self._begun.moment
        try:
            joined = self._joined(self._begun)
            taken = self._ranks.on_zero(lambda: self._compared(joined, timed))
            self._tell(taken)
            with timed("store"):
                self._ranks.on_zero(lambda: self.store.save(taken) if taken is not None else None)
        except Exception:
            self._begun = None
            raise
        self._steps = sorted({*self._steps, moment.step})
        self._begun = None  # not before it is stored: whoever is interrupted until then finds it again
        if taken is not None:
            self._collapsed += warn_of_collapse(taken, self._past.best, self._collapsed)
            self._past = self._past.followed_by(taken)
        self._ranks.on_zero(lambda: self._log(timed))
        return self.scalars

    def _compared(self, taken: Snapshot | None, timed: Stopwatch) -> Snapshot:
        """A snapshot with what it measures against others, on rank zero."""
        assert taken is not None
        with timed("measure"), at_most(worth(len(self.probe))):
            taken = compared(taken, self._past)
        seconds = {**taken.seconds, **timed.seconds}
        return replace(taken, seconds=seconds, run=self._run, notes=self._remarks.take())

    def _begin(self, moment: Moment, learning_rate: float | None, background: bool) -> _Begun:
        """Begin it together with the other ranks; what goes wrong is said by :meth:`_joined`, on all of them."""
        begun = _Begun(moment)
        try:
            share = share_layers(self.watched, self._ranks.rank, self._ranks.size)
            with self._bar(len(share), f"SSC {moment}") as advance:
                begun.share = begin_snapshot(
                    self._runner,
                    self.probe,
                    self.watched,
                    self.settings,
                    moment,
                    learning_rate=learning_rate,
                    solver=self._solver() if background else None,
                    ranks=self._ranks,
                    progress=advance,
                )
        except Exception as caught:
            begun.error = caught
        return begun

    def _solver(self) -> Background:
        if self._worker is None:  # Grams wait on the host, wherever they are formed
            self._worker = Background(self._runner.budget_of_waiting())
        return self._worker

    def _raise_if_failed(self, begun: _Begun) -> None:
        """Say now what went wrong, not when the snapshot is collected; what another rank lacks is not solved for."""
        try:
            self._ranks.raise_together(begun.error)
        except Exception:
            if begun.share is not None:
                begun.share.cancel()
            raise

    def _joined(self, begun: _Begun) -> Snapshot | None:
        """All layers on rank zero, ``None`` on the others, or a failure on all."""
        mine: Snapshot | None = None
        error = begun.error
        if begun.share is not None:
            try:
                with self._bar(len(begun.share.graphs), f"SSC {begun.moment}") as advance:
                    mine = begun.share.result(advance)
            except Exception as caught:
                error = caught
        self._ranks.raise_together(error)
        assert mine is not None
        shares = self._ranks.gather(mine.layers)
        if shares is None:
            return None
        graphs = {label: graph for layers in shares for label, graph in layers.items()}
        names = [layer.label for layer in self.watched]  # of which a full disk may leave some out
        return replace(mine, layers={name: graphs[name] for name in names if name in graphs})

    def _tell(self, taken: Snapshot | None) -> None:
        """Every rank knows what a snapshot says in numbers: checkpoints and early stopping go by it."""
        self.scalars = self._ranks.from_zero(lambda: {} if taken is None else writers.scalars_of(taken, self.name))

    def _log(self, timed: Stopwatch) -> None:
        assert self.last is not None
        with timed("log"), at_most(worth(len(self.probe))):
            drawing = writers.log_snapshot(
                self.loggers,
                self.last,
                self.scalars,
                self.images,
                self.card,
                self.name,
                partial(self._curves, frozenset(self._steps)),
                self._worker.do if self._worker is not None else None,
            )
        self._drawing = None if drawing is None else (self.last.moment.logged, drawing)
        seconds = {f"{self.name}/seconds/{stage}": timed.seconds[stage] for stage in ("store", "log")}
        writers.log_scalars(self.loggers, seconds, self.last.moment.logged)
        writers.flush(self.loggers)

    def _curves(self, steps: frozenset[int]) -> Dynamics:
        """The run so far, from what was measured when its snapshots were taken."""
        headers = [found for found in self.store.headers() if isinstance(found, SnapshotHeader)]
        return stored([header for header in headers if header.step in steps])

    def _log_drawn(self) -> None:
        """Write what was drawn in the background, in the thread that loggers are used to."""
        drawing, self._drawing = self._drawing, None
        if drawing is not None:
            step, pictures = drawing
            writers.log_images(self.loggers, pictures.result(), step)
            writers.flush(self.loggers)

    # -- The end

    @property
    def last(self) -> Snapshot | None:
        """The last snapshot, on rank zero."""
        return self._past.previous

    def finish(self) -> None:
        """Wait for what is still being solved, and compare every snapshot with the last one.

        Raises:
            SnapshotError: Snapshots cannot be read; the others are compared all the same.
        """
        try:
            self.collect()
            self._ranks.on_zero(self.log_history)
            if self.images.projector and self._steps:
                self._ranks.on_zero(self._log_projector)
        finally:
            self.close()

    def log_history(self) -> None:
        """Write what is to the final state, on this process; damaged snapshots are left out, then reported."""
        self._log_drawn()
        steps = list(self._steps)
        if steps == self._finished_at:
            return
        self._finished_at = list(steps)
        damaged: list[SnapshotError] = []
        while steps:
            try:
                table = dynamics(self.store, steps=steps)
            except SnapshotError as error:
                if error.step not in steps:
                    raise
                steps.remove(error.step)
                damaged.append(error)
                continue
            writers.log_history(self.loggers, table, self.name)
            writers.flush(self.loggers)
            break
        if damaged:
            raise SnapshotError("; ".join(map(str, damaged)))

    def _log_projector(self) -> None:
        assert self.last is not None
        with at_most(worth(len(self.probe))):
            writers.log_projector(self.loggers, self.last, self.card, self.name)
        writers.flush(self.loggers)

    def close(self) -> None:
        """Let the thread of the background and the folder go; what is still being solved is given up."""
        self._begun = self._drawing = None
        if self._claim is not None:
            self._claim.release()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def state_dict(self) -> dict[str, Any]:
        """Where the snapshots lie and which they are, for ``resume=``; the graphs themselves stay on disk."""
        steps = list(self._steps)
        if self._begun is not None:  # it is stored by the time that anybody resumes, unless the process is killed
            steps.append(self._begun.moment.step)
        where = {"root": str(self.store.root), "run": self._run} if isinstance(self.store, SnapshotStore) else {}
        pending = None if self._begun is None else self._begun.moment.step
        return {**where, "steps": steps, "pending": pending, "probe": self.probe.fingerprint}


def _runner(network: nn.Module) -> Runner:
    model, context = unwrapped(network)
    return Runner(model, context=context)
