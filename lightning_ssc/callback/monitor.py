"""SSCMonitor, the callback: when, on what, and where the results go. It holds no mathematics."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_ssc import writers
from lightning_ssc.analysis.dynamics import dynamics
from lightning_ssc.background import Beside, Solver
from lightning_ssc.callback.lightning import (
    SIGTERM,
    Callback,
    LightningModule,
    MisconfigurationError,
    Trainer,
    agree,
    epoch_step,
    first_loader,
    interruptible,
    is_last_epoch,
    learning_rate,
    metrics_steering,
    progress,
    validation_loader,
)
from lightning_ssc.callback.triggers import Schedule, as_schedule
from lightning_ssc.capture import (
    Forward,
    LayerPattern,
    Pooling,
    Probe,
    ProbeSource,
    Runner,
    WatchedLayer,
    class_names,
    isolated_random_state,
    make_probe,
    pictures,
    plan_passes,
    select_layers,
    share_layers,
    trace,
)
from lightning_ssc.capture.memory import free_memory
from lightning_ssc.capture.runner import check_sizes
from lightning_ssc.pipeline import Pending, Settings, Stopwatch, begin_snapshot
from lightning_ssc.snapshots import MemoryStore, ProbeCard, Snapshot, SnapshotError, SnapshotStore

log = logging.getLogger(__name__)


@dataclass
class _Begun:
    """A snapshot that waits to be collected: this process's share of it, or why that failed."""

    epoch: int
    step: int
    share: Pending | None = None
    error: Exception | None = None

    def done(self) -> bool:
        return self.share is None or self.share.done()


class SSCMonitor(Callback):
    """Watch the subspaces of a network's layers form while it trains.

    At chosen epochs a fixed probe set is run through the network; every watched layer's activations become a sparse
    affinity graph over the probe inputs (Sparse Subspace Clustering), and how the graphs form, settle and relate goes
    to the Trainer's loggers (tags: see :mod:`lightning_ssc.writers`) and to a :class:`~lightning_ssc.SnapshotStore`.
    Training is the same, bit for bit, as without the callback.

    Scalars are also in ``trainer.callback_metrics``, so ``ModelCheckpoint(monitor="ssc/modularity/layer4.1")`` works.

    Args:
        layers: A preset (``"blocks"``, ``"conv"``, ``"stages"``), names, globs or module types, see
            :func:`lightning_ssc.capture.layers.select_layers`.
        probe: A data set, a loader (its data set is used) or ``(inputs, labels)``. By default the data module's (or the
            module's) ``probe_dataloader()``, else the validation data as ``val_dataloader()`` gives them.
        probe_size: How many samples to draw, balanced over classes. Tensors handed over are taken whole.
        schedule: Every n epochs, a list of finished epochs, or a function of the epoch
            (:mod:`lightning_ssc.callback.triggers`). Epoch 0 is the untrained network. The final state is always taken:
            it is what the others are compared with.
        tau: Weight of the fit in self-expression; the paper advises 10 to 100.
        normalize: Scale samples to unit length first.
        solver: ``"active_set"``, exact, or ``"admm"``, Algorithm 1 of the paper.
        tol: Relative duality gap asked of every sample.
        preset: ``"paper"`` for the published setting (raw samples, ADMM, tau = mu = 10, 100 iterations).
        pooling: ``"flatten"`` keeps every activation, ``"mean"`` averages over space or tokens, ``"cls"`` takes the
            class token.
        linear_cka: Linear CKA beside SSC-CKA.
        heatmap: The image of SSC-CKA between all layers with every snapshot.
        embedding: An image of the spectral embedding with every snapshot, of every layer or, where there are more, of
            24 spread over the depth.
        neighbours: For how many inputs, the same throughout and one a class as far as that goes, an image of their
            nearest inputs in the last hidden layer comes with every snapshot; 0 for none.
        projector: Every layer's embedding of the final state, with classes and pictures, for TensorBoard's projector
            tab. Each layer takes some megabytes there.
        labels: What modularity is measured over: ``"classes"``, the probe's labels, or ``"communities"``, those that
            Louvain's method finds in each graph, for data without classes.
        reference: What to compare with live: a stored snapshot (``.npz``), a folder of them (its last is taken), or a
            checkpoint of the same network.
        store: Whether snapshots are kept on disk, in ``<log_dir>/<name>``; or the folder.
        background: Solve in a thread beside training, which then waits only for the probe's forward pass, the Grams and
            the writing of results. Results are the same. They are logged, under the step they belong to, at the first
            batch after they are there (over several processes, at the end of an epoch). A snapshot that is due while
            the one before is still being solved waits for it, and so does the end of fit. An exception or Ctrl-C waits
            for it, too; a second Ctrl-C gives it up. It is lost if the process is killed or has to end (SIGTERM). A
            layer that is being solved then still goes on to its end, and the process with it. On a GPU layers are
            solved there beside training, which has to leave memory for some N x N matrices. Finding
            ``labels="communities"`` is work of Python, which training waits for.
        name: First part of the tags; a second monitor in the same Trainer needs a name of its own.
        on_error: ``"raise"``, or ``"warn"`` to report a snapshot that failed and go on training. What is wrong at the
            start of fit (layers, probe, store) is always raised.
        forward: ``forward(module, inputs)`` runs the network, where ``module(inputs)`` would not do.
        chunk: Samples a forward pass of the probe.
        memory: Bytes that activations and Grams may take during a snapshot, beside what the network needs to run a
            chunk and the solver to solve a layer (one Gram, eight in float64 for ``"admm"``); by default half of what
            the device has free. With ``background=True`` the Grams that wait may take as many again on the host (by
            default a quarter of what it has free).
        verbose: Print one line a snapshot.

    Raises:
        ValueError: An argument is out of range; at the start of fit, a layer is unknown or never runs.
        MisconfigurationException: There is no probe, the Trainer's strategy shards the model, or training is steered
            by a metric of a monitor in the background.

    Example:
        >>> monitor = SSCMonitor(layers="blocks", schedule=5)
        >>> monitor.state_key
        "SSCMonitor{'name': 'ssc'}"
    """

    def __init__(
        self,
        layers: str | type[nn.Module] | Sequence[LayerPattern] = "blocks",
        probe: ProbeSource | None = None,
        probe_size: int = 1000,
        schedule: int | list[int] | Schedule = 1,
        tau: float = 10.0,
        normalize: bool = True,
        solver: Literal["active_set", "admm"] = "active_set",
        tol: float = 1e-5,
        preset: Literal["paper"] | None = None,
        pooling: Pooling = "flatten",
        linear_cka: bool = True,
        heatmap: bool = True,
        embedding: bool = True,
        neighbours: int = 3,
        projector: bool = False,
        labels: Literal["classes", "communities"] = "classes",
        reference: str | Path | None = None,
        store: bool | str | Path = True,
        background: bool = False,
        name: str = "ssc",
        on_error: Literal["raise", "warn"] = "raise",
        forward: Forward | None = None,
        chunk: int = 256,
        memory: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        if probe_size < 3:
            raise ValueError(f"probe_size must be at least 3, got {probe_size}; 500 to 2000 make readable curves.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
        check_sizes(chunk, memory)
        self.layers = layers
        self.name = name
        self.settings = Settings(tau, normalize, solver, tol, preset, pooling, linear_cka, labels)
        self.schedule = as_schedule(schedule)
        self.heatmap, self.embedding, self.neighbours, self.projector = heatmap, embedding, neighbours, projector
        self.background = background
        self.on_error = on_error
        self.store: SnapshotStore | None = None
        self._probe_source, self._probe_size = probe, probe_size
        self._store, self._reference_path, self._forward = store, reference, forward
        self._chunk, self._memory, self._verbose = chunk, memory, verbose
        self._restored: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self._steps: dict[int, int] = {}  # of the epochs taken, ascending
        self._begun: _Begun | None = None
        self._worker: Beside | None = None
        self._compared: list[int] = []
        self._probe: Probe | None = None
        self._card = ProbeCard("")
        self._watched: list[WatchedLayer] = []
        self._sources: list[Any] = []
        self._last: Snapshot | None = None
        self._reference: Snapshot | None = None
        self._learning_rate: float | None = None

    # -- Lightning's hooks, in the order in which they run

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint, by the monitor's name."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Where the snapshots lie and which they are; the graphs themselves stay on disk."""
        if self.store is None or self._probe is None:
            return dict(self._restored)
        steps, begun = dict(self._steps), self._begun
        if begun is not None:  # it is stored by the time that anybody resumes, unless the process is killed
            steps[begun.epoch] = begun.step
        return {
            "root": str(self.store.root.absolute()),
            "epochs": list(steps),
            "steps": list(steps.values()),
            "pending": None if begun is None else begun.epoch,
            "probe": self._probe.fingerprint,
            "learning_rate": self._learning_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where a resumed run has left its snapshots; they are taken over at the start of fit."""
        self._restored = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        if stage != "fit":
            return
        self._restored = {}
        self._reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose layers and probe, and fail now rather than after the first epoch if they cannot be watched."""
        if trainer.strategy.restore_checkpoint_after_setup:
            raise MisconfigurationError(
                f"SSCMonitor does not support {type(trainer.strategy).__name__}, which shards the model: no "
                f"process holds whole layers. Use strategy='ddp', or take snapshots of "
                f"checkpoints with lightning_ssc.snapshot()."
            )
        steered = [
            key
            for key in metrics_steering(trainer)
            if key.startswith((f"{self.name}/", f"{writers.linear_root(self.name)}/"))
        ]
        if self.background and steered:
            raise MisconfigurationError(
                f"{steered[0]!r} steers the training, and background=True would bring it late, by a time that differs "
                f"from run to run. Use background=False, or monitor another metric."
            )
        self._probe = self._agreed_probe(trainer, pl_module)
        runner = self._runner(trainer, pl_module)
        self._watched = trace(runner, select_layers(pl_module, self.layers), self._probe.inputs, self.settings.pooling)
        if self._memory is not None:  # what is free may be enough on one rank and not on another
            plan_passes(self._watched, len(self._probe), self._memory)  # raises where it is too small
        store = self.store = self._open_store(trainer)
        if trainer.is_global_zero:
            names = class_names(trainer.datamodule, *self._sources)
            self._card = ProbeCard(self._probe.fingerprint, pictures(self._probe.inputs), names)
        self._from_rank_zero(trainer, lambda: store.save_card(self._card))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the untrained network."""
        self._learning_rate = self._restored.get("learning_rate")
        with self._guard():
            self._from_rank_zero(trainer, lambda: self._log_layout(trainer))
        with self._guard():
            if self._reference_path is not None:
                self._reference = self._load_reference(trainer, pl_module, Path(self._reference_path))
        with self._guard():
            self._recall(trainer)
        with self._guard():
            if trainer.global_step == 0 and self.schedule(0):
                self._take(trainer, pl_module, 0)
            # A checkpoint saved with the last batch of an epoch resumes behind that epoch's end, whose hook is over.
            done = trainer.current_epoch
            at_end = trainer.global_step > 0 and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            if at_end and self.schedule(done) and self._restored and done not in self._steps:
                self._take(trainer, pl_module, done)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the learning rate: after an epoch's last batch schedulers move on to that of the next."""
        self._learning_rate = learning_rate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a snapshot that was solved in the background."""
        if self._begun is not None and trainer.world_size == 1:  # several processes would have to agree every time
            self._collect_if_done(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch that has just finished, if it is on the schedule."""
        epoch = trainer.current_epoch + 1
        if self.schedule(epoch):
            with self._guard():
                self._take(trainer, pl_module, epoch)
        elif self._begun is not None:
            self._collect_if_done(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the final state and compare every earlier snapshot with it."""
        with self._guard():
            self._take(trainer, pl_module, trainer.current_epoch)
            self._collect(trainer, pl_module)
        with self._guard():
            self._from_rank_zero(trainer, lambda: self._log_history(trainer))
        with self._guard():
            if self.projector and self._last is not None:
                self._from_rank_zero(trainer, lambda: self._log_projector(trainer))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Compare what there is with the last snapshot: an interrupted run keeps its curves."""
        try:
            self._end_background(trainer, pl_module, exception)
            if trainer.is_global_zero:
                self._log_history(trainer)
        except Exception:  # the user has to see what went wrong first, not what went wrong after it
            log.warning("SSCMonitor could not compare the snapshots of the interrupted run.", exc_info=True)
        finally:
            self._close()

    def _end_background(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish what is still being solved where there is time for that and all processes are still there."""
        if self._begun is None:
            return
        if trainer.world_size > 1 or isinstance(exception, SIGTERM):
            log.warning("The snapshot of epoch %d was not finished and is left out.", self._begun.epoch)
            return
        log.warning("SSCMonitor finishes the snapshot of epoch %d; Ctrl-C leaves it out.", self._begun.epoch)
        try:
            with interruptible():
                self._collect(trainer, pl_module)
        except KeyboardInterrupt:
            if self._begun is not None:
                log.warning("It is left out.")

    # -- Probe, store and reference

    def _agreed_probe(self, trainer: Trainer, pl_module: LightningModule) -> Probe:
        """The probe, which must come out the same on all ranks."""
        probe: Probe | None = None
        error: Exception | None = None
        try:
            probe = self._make_probe(trainer, pl_module)
        except Exception as caught:
            error = caught
        if len(set(agree(probe and probe.fingerprint, error))) > 1:
            raise MisconfigurationError(
                "The processes draw different probes, as from a stream that shards itself by rank. Give probe= the "
                "same tensors or a map-style data set on all of them."
            )
        assert probe is not None
        return probe

    def _make_probe(self, trainer: Trainer, pl_module: LightningModule) -> Probe:
        source: Any = self._probe_source
        with isolated_random_state():
            for owner in (trainer.datamodule, pl_module):
                if source is None and callable(hook := getattr(owner, "probe_dataloader", None)):
                    source = hook()
            source = validation_loader(trainer) if source is None else source
        if source is not self._probe_source or not isinstance(source, (list, tuple)):
            source = first_loader(source)
        if source is None:
            raise MisconfigurationError(
                "SSCMonitor found no probe: pass probe= (a data set, a loader or tensors), give the data module a "
                "probe_dataloader(), or give the Trainer validation data."
            )
        self._sources = [source, getattr(source, "dataset", None)]
        probe = make_probe(source, self._probe_size)
        if probe.labels is None and self.settings.labels == "classes" and trainer.is_global_zero:
            log.warning("The probe has no class labels (one integer a sample), so modularity is left out.")
        return probe

    def _open_store(self, trainer: Trainer) -> SnapshotStore:
        folder = trainer.log_dir or trainer.default_root_dir  # log_dir talks to all ranks: every rank asks for it
        if self._store is False or trainer.fast_dev_run:
            return MemoryStore()
        root = Path(folder) / self.name if self._store is True else Path(str(self._store))
        # Rank zero decides for all of them: ranks must not go by what each of them sees on disk.
        root, self._steps = self._from_rank_zero(
            trainer, lambda: self._continue_store(root) if "root" in self._restored else (self._free_root(root), {})
        )
        return SnapshotStore(root)

    def _free_root(self, root: Path) -> Path:
        """The folder, or one beside it where it was not asked for by name and holds another run's snapshots."""
        taken = SnapshotStore(root).epochs
        if taken and self._store is not True:
            raise MisconfigurationError(
                f"store={root} already holds the snapshots of another run (epochs {taken}). Name a new folder, or "
                f"move those away."
            )
        return next(
            p for i in count() if not SnapshotStore(p := root.with_name(f"{root.name}-{i}" if i else root.name))
        )

    def _continue_store(self, root: Path) -> tuple[Path, dict[int, int]]:
        """Take over the snapshots of the run that is resumed, and set aside what it had gone on to afterwards."""
        assert self._probe is not None
        before, steps = (
            SnapshotStore(self._restored["root"]),
            dict(zip(self._restored["epochs"], self._restored["steps"], strict=True)),
        )
        if self._restored["probe"] != self._probe.fingerprint:
            raise MisconfigurationError(
                f"The probe differs from the one of the snapshots in {before.root}, so their graphs cannot be "
                f"compared. Resume with the same probe data, probe_size and transforms, or without this callback's "
                f"state."
            )
        if root.resolve() != before.root.resolve():
            root = self._free_root(root)
        store = SnapshotStore(root)
        store.take_over(before, list(steps))
        if later := [epoch for epoch in store.epochs if epoch not in steps]:
            store.set_aside(later)
            log.info("Snapshots of epochs %s, taken after the checkpoint, are in %s.", later, root / "superseded")
        pending = self._restored.get("pending")
        if pending is not None and pending not in store:
            log.warning(
                "The snapshot of epoch %d was still being solved when the run ended. It is taken again if the "
                "checkpoint is that of the end of this epoch.",
                pending,
            )
        if lost := [epoch for epoch in steps if epoch not in store and epoch != pending]:
            log.warning("The snapshots of epochs %s are gone from %s; the run goes on without them.", lost, before.root)
        return root, {epoch: step for epoch, step in steps.items() if epoch in store}

    def _recall(self, trainer: Trainer) -> None:
        """Remember the last snapshot of the run that is resumed: the next one is compared with it."""
        if not self._steps:
            return
        store, last = self.store, max(self._steps)
        assert store is not None
        self._last = self._from_rank_zero(trainer, lambda: store.load(last))
        scalars = writers.snapshot_scalars(self._last, None, self._reference, self.name)
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})

    def _load_reference(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> Snapshot:
        """A stored snapshot, or one taken now of the network with a checkpoint's weights."""
        assert self._probe is not None
        found = self._from_rank_zero(trainer, lambda: _read_reference(path))
        if isinstance(found, dict):
            with _weights(pl_module, found, path):
                reference = self._joined(trainer, self._begin(trainer, pl_module, epoch=0, step=0, background=False))
        else:
            reference = found
        if reference.probe != self._probe.fingerprint:
            raise MisconfigurationError(
                f"reference={path} was taken on another probe, so its graphs cannot be compared. Use the same probe "
                f"data, probe_size and transforms for both runs."
            )
        return reference

    # -- One snapshot

    def _take(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Begin a snapshot after the one before is done, and in the foreground end it, too."""
        with self._guard():  # what is wrong with that one is no reason to leave this one out
            self._collect(trainer, pl_module)
        step = epoch_step(trainer)
        if self._steps.get(epoch) == step:
            return
        begun = self._begin(trainer, pl_module, epoch, step, self.background)
        if self.background:
            try:
                agree(None, begun.error)  # now, not when the next epoch is over
            except Exception:
                if begun.share is not None:  # what failed is another rank's share
                    begun.share.cancel()
                raise
        self._begun = begun
        # The end of fit would wait anyway, and a checkpoint of the last epoch saved before that is one of a run that
        # Lightning does not go on with: nobody could take the epoch again.
        if not self.background or is_last_epoch(trainer, epoch):
            self._collect(trainer, pl_module)

    def _solver(self, trainer: Trainer) -> Solver:
        if self._worker is None:  # Grams wait on the host, wherever they are formed
            free = _free_memory(trainer, torch.device("cpu"))
            self._worker = Beside(free // 4 if self._memory is None else self._memory)
        return self._worker

    def _begin(self, trainer: Trainer, pl_module: LightningModule, epoch: int, step: int, background: bool) -> _Begun:
        """Every rank begins with its share of the layers. What goes wrong is said by :meth:`_joined`, on all ranks."""
        assert self._probe is not None
        share = share_layers(self._watched, trainer.global_rank, trainer.world_size)
        begun = _Begun(epoch, step)
        try:
            with progress(trainer, len(share), f"SSC epoch {epoch}") as advance:
                begun.share = begin_snapshot(
                    self._runner(trainer, pl_module),
                    self._probe,
                    share,
                    self.settings,
                    epoch=epoch,
                    step=step,
                    learning_rate=self._learning_rate,
                    solver=self._solver(trainer) if background else None,
                    progress=advance,
                )
        except Exception as caught:
            begun.error = caught
        return begun

    def _joined(self, trainer: Trainer, begun: _Begun) -> Snapshot:
        """All ranks return all layers, or fail together."""
        mine: Snapshot | None = None
        error = begun.error
        if begun.share is not None:
            try:
                with progress(trainer, len(begun.share.graphs), f"SSC epoch {begun.epoch}") as advance:
                    mine = begun.share.result(advance)
            except Exception as caught:
                error = caught
        shares = agree(mine and mine.layers, error)
        assert mine is not None
        graphs = {label: graph for layers in shares for label, graph in layers.items()}
        return replace(mine, layers={w.label: graphs[w.label] for w in self._watched})

    def _collect_if_done(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._guard():
            if self._begun is not None and all(agree(self._begun.done(), None)):
                self._collect(trainer, pl_module)

    def _collect(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the snapshot that was begun, store and log it."""
        if self._begun is None:
            return
        store, watch = self.store, Stopwatch()
        assert store is not None
        try:
            taken = self._joined(trainer, self._begun)
            with watch("cka"):
                scalars = writers.snapshot_scalars(taken, self._last, self._reference, self.name)
            trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})
            with watch("store"):
                self._from_rank_zero(trainer, lambda: store.save(taken))
        except Exception:
            self._begun = None
            raise
        self._steps[taken.epoch] = taken.step
        self._begun = None  # not before it is stored: whoever is interrupted until then finds it again
        self._last = taken
        self._from_rank_zero(trainer, lambda: self._log(trainer, taken, scalars, watch))
        if self._verbose:
            pl_module.print(summary(taken))

    def _close(self) -> None:
        """Let the thread of the background go; what is still being solved is given up."""
        self._begun = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _log(self, trainer: Trainer, taken: Snapshot, scalars: dict[str, float], watch: Stopwatch) -> None:
        with watch("log"):
            writers.log_snapshot(
                trainer.loggers,
                taken,
                scalars,
                heatmap=self.heatmap,
                embedding=self.embedding,
                neighbours=self.neighbours,
                card=self._card,
                root=self.name,
            )
        seconds = {f"{self.name}/seconds/{stage}": spent for stage, spent in watch.seconds.items()}
        writers.log_scalars(trainer.loggers, seconds, taken.step)
        writers.flush(trainer.loggers)

    def _log_history(self, trainer: Trainer) -> None:
        """Write back CKA of every snapshot to the last one; damaged snapshots are left out, then reported."""
        epochs = sorted(self._steps)
        if self.store is None or epochs == self._compared:
            return
        self._compared = list(epochs)
        damaged: list[SnapshotError] = []
        while epochs:
            try:
                table = dynamics(self.store, epochs)
            except SnapshotError as error:
                if error.epoch not in epochs:
                    raise
                epochs.remove(error.epoch)
                damaged.append(error)
                continue
            writers.log_history(trainer.loggers, table, self.name)
            writers.flush(trainer.loggers)
            break
        if damaged:
            raise SnapshotError("; ".join(map(str, damaged)))

    def _log_layout(self, trainer: Trainer) -> None:
        monitors = self._monitors(trainer)
        if monitors[0] is self:  # TensorBoard keeps the last layout it is given
            with_reference = any(monitor._reference_path is not None for monitor in monitors)
            writers.log_layout(trainer.loggers, [monitor.name for monitor in monitors], reference=with_reference)

    def _log_projector(self, trainer: Trainer) -> None:
        assert self._last is not None
        writers.log_projector(trainer.loggers, self._last, self._card, self.name)
        writers.flush(trainer.loggers)

    # -- Small parts

    def _runner(self, trainer: Trainer, pl_module: LightningModule) -> Runner:
        def forward(module: nn.Module, inputs: Any) -> Any:
            return Runner(module, self._forward, device=device)(trainer.precision_plugin.convert_input(inputs))

        device = trainer.strategy.root_device
        memory = _free_memory(trainer, device) // 2 if self._memory is None else self._memory
        return Runner(pl_module, forward, trainer.precision_plugin.forward_context, device, self._chunk, memory)

    @staticmethod
    def _monitors(trainer: Trainer) -> list[SSCMonitor]:
        return [callback for callback in trainer.callbacks if isinstance(callback, SSCMonitor)]

    @staticmethod
    def _from_rank_zero(trainer: Trainer, action: Callable[[], Any]) -> Any:
        """What rank zero alone does or gets, on all ranks. A failure there is one on all; none waits for another."""
        value: Any = None
        error: Exception | None = None
        if trainer.is_global_zero:
            try:
                value = action()
            except Exception as caught:
                error = caught
        return agree(value, error)[0]

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            log.warning("SSCMonitor goes on after an error: %s: %s", type(error).__name__, error)


def _free_memory(trainer: Trainer, device: torch.device) -> int:
    """What this process may count as its own of what a device has free: the host is shared by its ranks."""
    return free_memory(device) // (1 if device.type == "cuda" else trainer.num_devices)


def summary(taken: Snapshot) -> str:
    """A snapshot in a line: how modularity rises from the first layer to the last, how exact and how long.

    Example:
        >>> from lightning_ssc import snapshot
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> print(summary(snapshot(net, torch.rand(20, 4), layers="Linear")))  # doctest: +ELLIPSIS
        SSC epoch 0: 2 layers, worst gap ..., ... s
    """
    modularities = {name: layer.modularity(taken.labels) for name, layer in taken.layers.items()}
    (first, q1), (last, q2) = next(iter(modularities.items())), list(modularities.items())[-1]
    rise = "" if q1 != q1 else f"modularity {q1:.2f} ({first}) to {q2:.2f} ({last}), "
    worst = max(float(layer.gap.max()) for layer in taken.layers.values())
    return (
        f"SSC epoch {taken.epoch}: {len(taken.layers)} layers, {rise}worst gap {worst:.0e}, "
        f"{taken.seconds.get('total', 0):.1f} s"
    )


def _read_reference(path: Path) -> Snapshot | dict[str, Any]:
    """A stored snapshot, the last one of a folder, or the weights in a checkpoint."""
    if path.is_dir():
        store = SnapshotStore(path)
        if not store.epochs:
            raise MisconfigurationError(
                f"reference={path} holds no snapshots. Name a run's folder of snapshots, one of its files, or a "
                f"checkpoint of this network."
            )
        return store.load(store.epochs[-1])
    for epoch in SnapshotStore(path.parent).epochs:
        if path == SnapshotStore(path.parent).path(epoch):
            return SnapshotStore(path.parent).load(epoch)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))
    except Exception as error:
        raise MisconfigurationError(
            f"reference={path} cannot be read ({error}). Name a run's folder of snapshots, one of its files, or a "
            f"checkpoint that torch.load(weights_only=True) opens."
        ) from error


@contextmanager
def _weights(model: nn.Module, state: dict[str, Any], path: Path) -> Iterator[None]:
    """The model with other weights, and then with its own again."""
    own = copy.deepcopy(model.state_dict())
    try:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise MisconfigurationError(f"reference={path} is a checkpoint of another network: {error}") from error
        yield
    finally:
        model.load_state_dict(own)
