"""SSCMonitor, the callback: Lightning's hooks over a Recorder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_ssc.callback.lightning import (
    SIGTERM,
    Callback,
    LightningModule,
    MisconfigurationError,
    Trainer,
    Training,
    interruptible,
)
from lightning_ssc.callback.triggers import Schedule, as_schedule
from lightning_ssc.capture import (
    Forward,
    LayerPattern,
    Pooling,
    Probe,
    ProbeSource,
    check_sizes,
    class_names,
    first_loader,
    isolated_random_state,
    make_probe,
)
from lightning_ssc.recorder import Recorder
from lightning_ssc.snapshots import MismatchError, Settings, Snapshot, Store
from lightning_ssc.weights import CheckpointError
from lightning_ssc.writers import Images, linear_root

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
        heatmap: The images of SSC-CKA and linear CKA between all layers with every snapshot.
        embedding: An image of the spectral embedding with every snapshot, of every layer or, where there are more, of
            24 spread over the depth.
        neighbours: For how many inputs, the same throughout and one a class as far as that goes, an image of their
            nearest inputs in the last hidden layer comes with every snapshot; 0 for none.
        projector: Every layer's embedding of the final state, with classes and pictures, for TensorBoard's projector
            tab. Each layer takes some megabytes there.
        groups: What modularity is measured over: ``"classes"``, the probe's labels, or ``"communities"``, those that
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
            ``groups="communities"`` is work of Python, which training waits for.
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
        groups: Literal["classes", "communities"] = "classes",
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
        self.settings = Settings(tau, normalize, solver, tol, preset, pooling, linear_cka, groups)
        self.images = Images(heatmap, embedding, neighbours, projector)
        self.schedule = as_schedule(schedule)
        self.background = background
        self.on_error = on_error
        self._probe_source, self._probe_size = probe, probe_size
        self._store, self._reference = store, reference
        self._forward, self._chunk, self._memory, self._verbose = forward, chunk, memory, verbose
        self._restored: dict[str, Any] = {}
        self._recorder: Recorder | None = None
        self._learning_rate: float | None = None

    @property
    def recorder(self) -> Recorder | None:
        """What takes the snapshots of the fit, from its start on."""
        return self._recorder

    @property
    def store(self) -> Store | None:
        """The snapshots of the fit, from its start on."""
        return None if self._recorder is None else self._recorder.store

    # -- Lightning's hooks, in the order in which they run

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint, by the monitor's name."""
        return f"{type(self).__qualname__}{ {'name': self.name} }"

    def state_dict(self) -> dict[str, Any]:
        """Where the snapshots lie and which they are; the graphs themselves stay on disk."""
        if self._recorder is None:
            return dict(self._restored)
        return {**self._recorder.state_dict(), "learning_rate": self._learning_rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where a resumed run has left its snapshots; they are taken over at the start of fit."""
        self._restored = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        if stage == "fit":
            self._restored, self._recorder, self._learning_rate = {}, None, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose layers and probe, and fail now rather than after the first epoch if they cannot be watched."""
        training = Training(trainer, pl_module)
        self._refuse_what_does_not_go_together(training)
        probe, names = self._make_probe(training)
        monitors = training.callbacks(SSCMonitor)
        try:
            self._recorder = Recorder(
                training.runner(self._forward, self._chunk, self._memory),
                probe,
                self.layers,
                settings=self.settings,
                store=self._folder(training),
                fallback=self._store is True,
                loggers=training.loggers,
                images=self.images,
                reference=self._reference,
                background=self.background,
                name=self.name,
                resume=self._restored,
                class_names=names,
                ranks=training.ranks,
                bar=training.bar,
                layout={m.name: m._reference is not None for m in monitors} if monitors[0] is self else {},
            )
        except MismatchError as error:
            raise MisconfigurationError(str(error)) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the untrained network."""
        training = Training(trainer, pl_module)
        self._learning_rate = self._restored.get("learning_rate")
        with self._guard(training) as recorder:
            try:
                recorder.prepare()
            except (MismatchError, CheckpointError) as error:
                raise MisconfigurationError(str(error)) from error
        if training.is_new and self.schedule(0):
            self._take(training, 0)
        # A checkpoint saved with the last batch of an epoch resumes behind that epoch's end, whose hook is over.
        elif training.is_behind_epoch and self._restored and self.schedule(done := training.epochs_done):
            with self._guard(training) as recorder:
                if not recorder.holds(done):
                    self._take(training, done)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the learning rate: after an epoch's last batch schedulers move on to that of the next."""
        self._learning_rate = Training(trainer, pl_module).learning_rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a snapshot that was solved in the background."""
        if self._recorder is not None and self._recorder.pending is not None and not self._recorder.busy:
            training = Training(trainer, pl_module)
            if training.is_alone:  # several processes would have to agree every time
                self._poll(training)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch that has just finished, if it is on the schedule."""
        training = Training(trainer, pl_module)
        if self.schedule(training.epochs_begun):
            self._take(training, training.epoch)
            # The end of fit would wait anyway, and a checkpoint of the last epoch saved before that is one of a run
            # that Lightning does not go on with: nobody could take the epoch again.
            if training.stops_after(training.epochs_begun):
                with self._guard(training) as recorder:
                    self._collect(training, recorder)
        else:
            self._poll(training)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the final state and compare every earlier snapshot with it."""
        training = Training(trainer, pl_module)
        self._take(training, training.final_epoch)
        with self._guard(training) as recorder:
            self._collect(training, recorder)
        with self._guard(training) as recorder:
            recorder.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Compare what there is with the last snapshot: an interrupted run keeps its curves."""
        recorder, training = self._recorder, Training(trainer, pl_module)
        if recorder is None:
            return
        try:
            self._end_background(training, recorder, exception)
            if training.is_zero:
                recorder.log_history()
        except Exception:  # the user has to see what went wrong first, not what went wrong after it
            log.warning("SSCMonitor could not compare the snapshots of the interrupted run.", exc_info=True)
        finally:
            recorder.close()

    def _end_background(self, training: Training, recorder: Recorder, exception: BaseException) -> None:
        """Finish what is still being solved where there is time for that and all processes are still there."""
        if recorder.pending is None:
            return
        if not training.is_alone or isinstance(exception, SIGTERM):
            log.warning("The snapshot of %s was not finished and is left out.", recorder.pending)
            return
        log.warning("SSCMonitor finishes the snapshot of %s; Ctrl-C leaves it out.", recorder.pending)
        try:
            with interruptible():
                self._collect(training, recorder)
        except KeyboardInterrupt:
            if recorder.pending is not None:
                log.warning("It is left out.")

    # -- Parts of them

    def _refuse_what_does_not_go_together(self, training: Training) -> None:
        if training.sharded_by is not None:
            raise MisconfigurationError(
                f"SSCMonitor does not support {training.sharded_by}, which shards the model: no process holds whole "
                f"layers. Use strategy='ddp', or take snapshots of checkpoints with lightning_ssc.snapshot()."
            )
        own = (f"{self.name}/", f"{linear_root(self.name)}/")
        steered = [key for key in training.steered_by if key.startswith(own)]
        if self.background and steered:
            raise MisconfigurationError(
                f"{steered[0]!r} steers the training, and background=True would bring it late, by a time that differs "
                f"from run to run. Use background=False, or monitor another metric."
            )

    def _make_probe(self, training: Training) -> tuple[Probe, tuple[str, ...]]:
        """The probe and the names of its classes; what goes wrong on one rank is said on all."""

        def found() -> tuple[Any, Probe]:
            source: Any = self._probe_source
            with isolated_random_state():
                if source is None:
                    source = training.probe_source()
                elif not isinstance(source, (list, tuple)):
                    source = first_loader(source)
            if source is None:
                raise MisconfigurationError(
                    "SSCMonitor found no probe: pass probe= (a data set, a loader or tensors), give the data module a "
                    "probe_dataloader(), or give the Trainer validation data."
                )
            return source, make_probe(source, self._probe_size)

        source, probe = training.ranks.together(found)
        if probe.labels is None and self.settings.groups == "classes" and training.is_zero:
            log.warning("The probe has no class labels (one integer a sample), so modularity is left out.")
        return probe, class_names(training.datamodule, source, getattr(source, "dataset", None))

    def _folder(self, training: Training) -> Path | None:
        folder = training.folder  # every rank asks for it
        if self._store is False or folder is None:
            return None
        return folder / self.name if self._store is True else Path(str(self._store))

    def _take(self, training: Training, epoch: float) -> None:
        """Take a snapshot after the one before is done, and in the foreground end it, too."""
        with self._guard(training) as recorder:  # what is wrong with that one is no reason to leave this one out
            self._collect(training, recorder)
        with self._guard(training) as recorder:
            before = recorder.steps
            recorder.record(epoch, training.step, self._learning_rate, trigger="epoch", logged=training.logged)
            self._say(training, recorder, before)

    def _poll(self, training: Training) -> None:
        with self._guard(training) as recorder:
            before = recorder.steps
            recorder.poll()
            self._say(training, recorder, before)

    def _collect(self, training: Training, recorder: Recorder) -> None:
        before = recorder.steps
        recorder.collect()
        self._say(training, recorder, before)

    def _say(self, training: Training, recorder: Recorder, before: list[int]) -> None:
        if self._verbose and recorder.last is not None and recorder.steps != before:
            training.print(summary(recorder.last))

    @contextmanager
    def _guard(self, training: Training) -> Iterator[Recorder]:
        assert self._recorder is not None
        try:
            yield self._recorder
        except Exception as error:
            if self.on_error == "raise":
                raise
            log.warning("SSCMonitor goes on after an error: %s: %s", type(error).__name__, error)
        finally:
            training.publish(self._recorder.scalars)


def summary(taken: Snapshot) -> str:
    """A snapshot in a line: how modularity rises from the first layer to the last, how exact and how long.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> print(summary(snapshot(net, torch.rand(20, 4), layers="Linear")))  # doctest: +ELLIPSIS
        SSC epoch 0: 2 layers, worst gap ..., ... s
    """
    modularities = {name: layer.values.get("modularity", float("nan")) for name, layer in taken.layers.items()}
    (first, q1), (last, q2) = next(iter(modularities.items())), list(modularities.items())[-1]
    rise = "" if q1 != q1 else f"modularity {q1:.2f} ({first}) to {q2:.2f} ({last}), "
    worst = max(float(layer.gap.max()) for layer in taken.layers.values())
    return (
        f"SSC {taken.moment}: {len(taken.layers)} layers, {rise}{_settled(taken)}worst gap {worst:.0e}, "
        f"{taken.seconds.get('total', 0):.1f} s"
    )


def _settled(taken: Snapshot) -> str:
    """Which layers have been what they are for longest, and how many have been so for some time."""
    since = {name: layer.values.get("settled", float(taken.step)) for name, layer in taken.layers.items()}
    settled = [name for name, step in since.items() if step < taken.step]
    if not settled:
        return ""
    first = min(settled, key=lambda name: since[name])
    return f"{len(settled)} settled ({first} since step {since[first]:.0f}), "
