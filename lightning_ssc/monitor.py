"""SSCMonitor, the callback: when, on what, and where the results go. It holds no mathematics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_ssc import plots, writers
from lightning_ssc._lightning import (
    Callback,
    LightningModule,
    MisconfigurationError,
    Trainer,
    epoch_step,
    gather,
    validation_loader,
)
from lightning_ssc.analysis.dynamics import dynamics, linear_cka, ssc_cka
from lightning_ssc.capture import Forward, Pooling, WatchedLayer, run, trace
from lightning_ssc.functional import pairwise_cka, spectral_embedding
from lightning_ssc.layers import LayerPattern, select_layers
from lightning_ssc.pipeline import Settings, Stopwatch, take_snapshot
from lightning_ssc.probe import Probe, ProbeSource, class_names, isolated_random_state, make_probe, pictures
from lightning_ssc.schedule import Schedule, as_schedule
from lightning_ssc.store import MemoryStore, ProbeCard, Snapshot, SnapshotStore

log = logging.getLogger(__name__)


class SSCMonitor(Callback):
    """Watch the subspaces of a network's layers form while it trains.

    At chosen epochs a fixed probe set is run through the network; every watched layer's activations become a sparse
    affinity graph over the probe inputs (Sparse Subspace Clustering), and how the graphs form, settle and relate goes
    to the Trainer's loggers (tags: see :mod:`lightning_ssc.writers`) and to a :class:`~lightning_ssc.SnapshotStore`.
    Training is the same, bit for bit, as without the callback.

    Scalars are also in ``trainer.callback_metrics``, so ``ModelCheckpoint(monitor="ssc/modularity/layer4.1")`` works.

    Args:
        layers: A preset (``"blocks"``, ``"conv"``, ``"stages"``), names, globs or module types, see
            :func:`lightning_ssc.layers.select_layers`.
        probe: A data set, a loader (its data set is used) or ``(inputs, labels)``. By default the data module's (or the
            module's) ``probe_dataloader()``, else the validation data as ``val_dataloader()`` gives them.
        probe_size: How many samples to draw, balanced over classes. Tensors handed over are taken whole.
        schedule: Every n epochs, a list of finished epochs, or a function of the epoch
            (:mod:`lightning_ssc.schedule`). Epoch 0 is the untrained network. The final state is always taken: it is
            what the others are compared with.
        tau: Weight of the fit in self-expression; the paper advises 10 to 100.
        normalize: Scale samples to unit length first.
        solver: ``"active_set"``, exact, or ``"admm"``, Algorithm 1 of the paper.
        tol: Relative duality gap asked of every sample.
        preset: ``"paper"`` for the published setting (raw samples, ADMM, tau = mu = 10, 100 iterations).
        pooling: ``"flatten"`` keeps every activation, ``"mean"`` averages over space or tokens, ``"cls"`` takes the
            class token.
        linear_cka: Linear CKA beside SSC-CKA.
        heatmap: The image of SSC-CKA between all layers with every snapshot.
        embedding: An image of every layer's spectral embedding with every snapshot.
        reference: What to compare with live: a stored snapshot (``.npz``), a folder of them (its last is taken), or a
            checkpoint of the same network.
        store: Whether snapshots are kept on disk, in ``<log_dir>/ssc``; or the folder.
        on_error: ``"raise"``, or ``"warn"`` to report a snapshot that failed and go on training.
        forward: ``forward(module, inputs)`` runs the network, where ``module(inputs)`` would not do.
        chunk: Samples a forward pass of the probe.
        memory: Bytes that activations may take during a snapshot; by default half of what the device has free.

    Raises:
        ValueError: An argument is out of range; at the start of fit, a layer is unknown or never runs.
        MisconfigurationException: There is no probe, or the Trainer's strategy shards the model.

    Example:
        >>> monitor = SSCMonitor(layers="blocks", schedule=5)
        >>> monitor.state_key
        "SSCMonitor{'layers': 'blocks'}"
    """

    def __init__(
        self,
        layers: str | Sequence[LayerPattern] = "blocks",
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
        reference: str | Path | None = None,
        store: bool | str | Path = True,
        on_error: Literal["raise", "warn"] = "raise",
        forward: Forward | None = None,
        chunk: int = 256,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        if probe_size < 3:
            raise ValueError(f"probe_size must be at least 3, got {probe_size}; 500 to 2000 make readable curves.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
        self.layers = layers
        self.settings = Settings(tau, normalize, solver, tol, preset, pooling, linear_cka)
        self.schedule = as_schedule(schedule)
        self.heatmap, self.embedding, self.on_error = heatmap, embedding, on_error
        self.store: SnapshotStore | None = None
        self._probe_source, self._probe_size = probe, probe_size
        self._store, self._reference_path, self._forward = store, reference, forward
        self._chunk, self._memory = chunk, memory
        self._restored: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self._epochs: list[int] = []
        self._probe: Probe | None = None
        self._watched: list[WatchedLayer] = []
        self._sources: list[Any] = []
        self._last: Snapshot | None = None
        self._reference: Snapshot | None = None

    # -- Lightning's hooks, in the order in which they run

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint: two monitors of different layers do not collide."""
        return self._generate_state_key(layers=self.layers)

    def state_dict(self) -> dict[str, Any]:
        """Where the snapshots lie and which they are; the graphs themselves stay on disk."""
        if self.store is None or self._probe is None:
            return dict(self._restored)
        return {"root": str(self.store.root), "epochs": list(self._epochs), "probe": self._probe.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where a resumed run has left its snapshots; they are taken over at the start of fit."""
        self._restored = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        if stage != "fit":
            return
        self._reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose layers and probe, and fail now rather than after the first epoch if they cannot be watched."""
        if trainer.strategy.restore_checkpoint_after_setup:
            raise MisconfigurationError(
                f"SSCMonitor does not support {type(trainer.strategy).__name__}, which shards the model: no "
                f"process holds whole layers. Use strategy='ddp', or take snapshots of checkpoints with lightning_ssc.snapshot()."
            )
        self._probe = self._make_probe(trainer, pl_module)
        self._watched = trace(
            pl_module,
            select_layers(pl_module, self.layers),
            self._probe.inputs,
            pooling=self.settings.pooling,
            forward=self._run(trainer),
            context=trainer.precision_plugin.forward_context,
            device=trainer.strategy.root_device,
        )
        self.store = self._open_store(trainer)
        if trainer.is_global_zero:
            names = class_names(trainer.datamodule, *self._sources)
            self.store.save_card(ProbeCard(self._probe.fingerprint, pictures(self._probe.inputs), names))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the untrained network."""
        writers.log_layout(self._loggers(trainer))
        with self._guard():
            if self._reference_path is not None:
                self._reference = self._load_reference(trainer, pl_module, Path(self._reference_path))
            if trainer.global_step == 0 and self.schedule(0):
                self._take(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch that has just finished, if it is on the schedule."""
        epoch = trainer.current_epoch + 1
        if self.schedule(epoch):
            with self._guard():
                self._take(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the final state and compare every earlier snapshot with it."""
        with self._guard():
            self._take(trainer, pl_module, trainer.current_epoch)
            self._log_history(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Compare what there is with the last snapshot: an interrupted run keeps its curves."""
        try:
            self._log_history(trainer)
        except Exception:  # the user has to see what went wrong first, not what went wrong after it
            log.warning("SSCMonitor could not compare the snapshots of the interrupted run.", exc_info=True)

    # -- Probe, store and reference

    def _make_probe(self, trainer: Trainer, pl_module: LightningModule) -> Probe:
        source: Any = self._probe_source
        with isolated_random_state():
            for owner in (trainer.datamodule, pl_module):
                if source is None and callable(hook := getattr(owner, "probe_dataloader", None)):
                    source = hook()
            source = validation_loader(trainer) if source is None else source
        if source is None:
            raise MisconfigurationError(
                "SSCMonitor found no probe: pass probe= (a data set, a loader or tensors), give the data module a "
                "probe_dataloader(), or give the Trainer validation data."
            )
        self._sources = [source, getattr(source, "dataset", None)]
        probe = make_probe(source, self._probe_size)
        if probe.labels is None:
            log.warning("The probe has no class labels (one integer a sample), so modularity is left out.")
        return probe

    def _open_store(self, trainer: Trainer) -> SnapshotStore:
        folder = trainer.log_dir or trainer.default_root_dir  # log_dir talks to all ranks: every rank asks for it
        if self._store is False or trainer.fast_dev_run:
            return MemoryStore()
        root = Path(folder) / "ssc" if self._store is True else Path(str(self._store))
        before = SnapshotStore(self._restored["root"]) if "root" in self._restored else None
        if before is None:
            taken = SnapshotStore(root).epochs
            if taken and self._store is not True:
                raise MisconfigurationError(
                    f"store={root} already holds the snapshots of another run (epochs {taken}). Name a new folder, or "
                    f"move those away."
                )
            if taken:
                root = next(p for i in count(1) if not SnapshotStore(p := root.with_name(f"ssc-{i}")).epochs)
            return SnapshotStore(root)
        assert self._probe is not None
        if self._restored["probe"] != self._probe.fingerprint:
            raise MisconfigurationError(
                f"The probe differs from the one of the snapshots in {before.root}, so their graphs cannot be "
                f"compared. Resume with the same probe data, probe_size and transforms, or without this callback's state."
            )
        store = SnapshotStore(root)
        if trainer.is_global_zero:
            store.take_over(before, self._restored["epochs"])
        trainer.strategy.barrier("lightning_ssc.take_over")
        self._epochs = [epoch for epoch in self._restored["epochs"] if epoch in store]
        return store

    def _load_reference(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> Snapshot:
        assert self._probe is not None
        if path.is_dir():
            epochs = SnapshotStore(path).epochs
            if not epochs:
                raise MisconfigurationError(f"reference={path} holds no snapshots.")
            path = SnapshotStore(path).path(epochs[-1])
        if path.suffix == ".npz":
            reference = SnapshotStore(path.parent).load(int(path.stem.rpartition("_")[2]))
        else:
            state = torch.load(path, map_location=trainer.strategy.root_device, weights_only=True)
            with _weights(pl_module, state.get("state_dict", state)):
                reference = self._compute(trainer, pl_module, epoch=0, step=0)
        if reference.probe != self._probe.fingerprint:
            raise MisconfigurationError(
                f"reference={path} was taken on another probe, so its graphs cannot be compared."
            )
        return reference

    # -- One snapshot

    def _take(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        assert self.store is not None
        if epoch in self._epochs and epoch in self.store:
            return
        taken = self._compute(trainer, pl_module, epoch, epoch_step(trainer))
        watch = Stopwatch()
        with watch("log"):
            scalars = self._scalars(taken)
            trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})
            if trainer.is_global_zero:
                self.store.save(taken)
                self._log(trainer, taken, scalars)
        self._epochs.append(epoch)
        self._last = taken
        if trainer.is_global_zero:
            seconds = {**taken.seconds, **watch.seconds}
            writers.log_scalars(trainer.loggers, {f"ssc/seconds/{k}": v for k, v in seconds.items()}, taken.step)
            writers.flush(trainer.loggers)

    def _compute(self, trainer: Trainer, pl_module: LightningModule, epoch: int, step: int) -> Snapshot:
        """Every rank solves its share of the layers; all ranks return all of them, or fail together."""
        assert self._probe is not None
        error: Exception | None = None
        mine: Snapshot | None = None
        try:
            mine = take_snapshot(
                pl_module,
                self._probe,
                self._watched[trainer.global_rank :: trainer.world_size],
                self.settings,
                epoch=epoch,
                step=step,
                previous=self._last,
                forward=self._run(trainer),
                context=trainer.precision_plugin.forward_context,
                chunk=self._chunk,
                device=trainer.strategy.root_device,
                memory=self._memory,
            )
        except Exception as caught:
            error = caught
        if trainer.world_size == 1:
            if mine is None:
                assert error is not None
                raise error
            return mine
        shares = gather((mine, None if error is None else f"{type(error).__name__}: {error}"))
        if failed := [f"rank {rank}: {why}" for rank, (_, why) in enumerate(shares) if why is not None]:
            raise RuntimeError("The snapshot failed on " + "; ".join(failed)) from error
        graphs = {label: graph for share, _ in shares for label, graph in share.layers.items()}
        first: Snapshot = shares[0][0]
        return replace(first, layers={w.label: graphs[w.label] for w in self._watched})

    def _scalars(self, taken: Snapshot) -> dict[str, float]:
        scalars: dict[str, float] = {}
        for name, layer in taken.layers.items():
            if taken.labels is not None:
                scalars[f"ssc/modularity/{name}"] = layer.modularity(taken.labels)
            scalars[f"ssc/gap/{name}"] = float(layer.gap.max())
            scalars[f"ssc/nnz_per_input/{name}"] = layer.neighbours
            for other, of in ((self._last, "cka_to_previous"), (self._reference, "cka_to_reference")):
                if other is not None and name in other.layers:
                    scalars[f"ssc/{of}/{name}"] = ssc_cka(layer, other.layers[name])
                    if self.settings.linear_cka:
                        scalars[f"linear_cka/{of}/{name}"] = linear_cka(layer, other.layers[name])
        return scalars

    def _log(self, trainer: Trainer, taken: Snapshot, scalars: dict[str, float]) -> None:
        writers.log_scalars(trainer.loggers, scalars, taken.step)
        names = list(taken.layers)
        if self.heatmap and len(names) > 1:
            matrix = pairwise_cka([layer.affinity for layer in taken.layers.values()])
            figure = plots.heatmap(matrix, names, title=f"SSC-CKA between layers, epoch {taken.epoch}")
            writers.log_figure(trainer.loggers, "ssc/pairwise_cka", figure, taken.step)
        if self.embedding:
            for name, layer in taken.layers.items():
                points = spectral_embedding(layer.affinity)
                figure = plots.embedding(points, taken.labels, title=f"{name}, epoch {taken.epoch}")
                writers.log_figure(trainer.loggers, f"ssc/embedding/{name}", figure, taken.step)

    def _log_history(self, trainer: Trainer) -> None:
        """Write back CKA of every snapshot to the last one, at the steps of the snapshots, and the curves as images."""
        if not trainer.is_global_zero or self.store is None or not self._epochs:
            return
        table = dynamics(self.store, sorted(self._epochs))
        for t, step in enumerate(table.steps):
            scalars = {f"ssc/cka_to_final/{name}": table.cka_to_final[t, i] for i, name in enumerate(table.layers)}
            if self.settings.linear_cka:
                linear = table.linear_cka_to_final[t]
                scalars |= {f"linear_cka/cka_to_final/{name}": linear[i] for i, name in enumerate(table.layers)}
            writers.log_scalars(trainer.loggers, {tag: float(value) for tag, value in scalars.items()}, int(step))
        for family, figure in plots.dynamics_figures(table).items():
            writers.log_figure(trainer.loggers, f"ssc/curves/{family}", figure, int(table.steps[-1]))
        writers.flush(trainer.loggers)

    # -- Small parts

    def _run(self, trainer: Trainer) -> Forward:
        def forward(module: nn.Module, inputs: Any) -> Any:
            return run(module, trainer.precision_plugin.convert_input(inputs), self._forward)

        return forward

    def _loggers(self, trainer: Trainer) -> list[Any]:
        return list(trainer.loggers) if trainer.is_global_zero else []

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            log.warning("SSCMonitor goes on after an error: %s: %s", type(error).__name__, error)


@contextmanager
def _weights(model: nn.Module, state: dict[str, Any]) -> Iterator[None]:
    """The model with other weights, and then with its own again."""
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(state)
        yield
    finally:
        model.load_state_dict(own)
