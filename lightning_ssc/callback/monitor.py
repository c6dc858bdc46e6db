"""SSCMonitor, the callback: Lightning's hooks over a Recorder."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os.path import abspath
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from lightning_ssc import writers
from lightning_ssc.ahead import compile_ahead
from lightning_ssc.callback.agenda import Agenda, LearningRate
from lightning_ssc.callback.checks import refuse_what_does_not_go_together, say_what_is_lacking
from lightning_ssc.callback.lightning import (
    SIGTERM,
    Callback,
    LightningModule,
    MisconfigurationError,
    Trainer,
    Training,
    interruptible,
)
from lightning_ssc.callback.triggers import Occasion, Schedule, as_triggers
from lightning_ssc.capture import (
    Forward,
    LayerPattern,
    Pooling,
    Probe,
    ProbeSource,
    check_sizes,
    class_names,
    first_loader,
    make_probe,
)
from lightning_ssc.pipeline import NO_LABELS
from lightning_ssc.recorder import Recorder
from lightning_ssc.snapshots import MismatchError, OnMismatch, Settings, Store
from lightning_ssc.weights import CheckpointError
from lightning_ssc.writers import Images, linear_root

log = logging.getLogger(__name__)

_PROBE_NAME = re.compile(r"\w[\w.-]*(?<!_average)")  # part of tags and of a folder's name


class _Series(NamedTuple):
    """One series of snapshots: of a probe, in the training or the averaged weights."""

    suffix: str  # of the monitor's name, in tags and of its folder
    probe: str  # its name among several
    average: bool


class SSCMonitor(Callback):
    """Watch the subspaces of a network's layers form while it trains.

    At chosen moments a fixed probe set is run through the network; every watched layer's activations become a sparse
    affinity graph over the probe inputs (Sparse Subspace Clustering), and how the graphs form, settle and relate goes
    to the Trainer's loggers (tags: see :mod:`lightning_ssc.writers`) and to a :class:`~lightning_ssc.SnapshotStore`.
    Training is the same, bit for bit, as without the callback.

    Scalars are also in ``trainer.callback_metrics``, so ``ModelCheckpoint(monitor="ssc/modularity/layer4.1")`` works.

    Args:
        layers: A preset (``"blocks"``, ``"conv"``, ``"stages"``), names, globs or module types, see
            :func:`lightning_ssc.capture.layers.select_layers`.
        probe: A data set, a loader (its data set is used) or ``(inputs, labels)``. By default the data module's (or the
            module's) ``probe_dataloader()``, else the validation data as ``val_dataloader()`` gives them.
        probes: Several of these by name instead of one, such as ``{"test": None, "shifted": shifted_test_set}``;
            ``None`` is the default of ``probe``. Each is a series of its own, taken at the same moments of the same
            weights, under ``<name>_<name of the probe>`` in tags and folders. To compare with live, ``reference`` then
            has to be a checkpoint, which is run on each of them.
        probe_size: How many samples to draw, balanced over classes. Tensors handed over are taken whole.
        schedule: When snapshots are taken (:mod:`lightning_ssc.callback.triggers`). ``"auto"``: the untrained network,
            every epoch's end and, in a run of few epochs, steps inside them; ten moments are taken whatever they take,
            others where snapshots stay within 2 % of the run's time (``auto(budget=0.02)``). A number means every n
            epochs, a list these epochs, of which 0 is the untrained network. Or one or several of ``every(epochs=5)``,
            ``every(steps=500)``, ``every(minutes=10)``, ``at(steps=[...])``, ``log_spaced(steps=True)``,
            ``on_validation()`` and ``on_lr_drop()``; or a function of the epoch. The final state is always taken: it
            is what the others are compared with.
        tau: Weight of the fit in self-expression; the paper advises 10 to 100.
        normalize: Scale samples to unit length first.
        solver: ``"active_set"``, exact, or ``"admm"``, Algorithm 1 of the paper.
        tol: Relative duality gap asked of every sample.
        preset: ``"paper"`` for the published setting (raw samples, ADMM, tau = mu = 10, 100 iterations).
        pooling: ``"flatten"`` keeps every activation, ``"mean"`` averages over space or over the real tokens (by the
            mask or the lengths in the batch), ``"cls"`` takes the class token, ``"last"`` the last real one; or a
            function of the activations ``(N, ...)`` that returns ``(N, d)`` (in YAML its import path).
        linear_cka: Linear CKA beside SSC-CKA.
        heatmap: The images of SSC-CKA and linear CKA between all layers with every snapshot.
        embedding: An image of the spectral embedding with every snapshot, of every layer or, where there are more, of
            24 spread over the depth.
        neighbours: For how many inputs, the same throughout and one a class as far as that goes, an image of their
            nearest inputs in the last hidden layer comes with every snapshot; 0 for none. (The tab Subspaces shows
            both of every input and layer without.)
        projector: Every layer's embedding of the final state, with classes and pictures, for TensorBoard's projector
            tab. Each layer takes some megabytes there.
        groups: What modularity is measured over: ``"classes"``, the probe's labels, or ``"communities"``, those that
            Louvain's method finds in each graph, for data without classes.
        reference: What to compare with live: a stored snapshot (``.npz``), a folder of them (its last is taken), or a
            checkpoint of the same network (``FILE:NAME`` of one that holds several, as in ``"last.ckpt:ema"``).
        store: Whether snapshots are kept on disk, in ``<log_dir>/<name>``; or the folder.
        background: Solve in a thread beside training, which then waits only for the probe's forward pass, the Grams and
            the writing of results. Results are the same. They are logged, under the step they belong to, at the first
            batch after they are there (over several processes, at the end of an epoch). A snapshot that is due while
            the one before is still being solved waits for it, and so does the end of fit. An exception or Ctrl-C waits
            for it, too; a second Ctrl-C gives it up. It is lost if the process is killed or has to end (SIGTERM). A
            layer that is being solved then still goes on to its end, and the process with it. On a GPU layers are
            solved there beside training, which has to leave memory for some N x N matrices. Finding
            ``groups="communities"`` is work of Python, which training waits for.
        on_mismatch: What to do where a run is resumed with another probe, other settings or other layers, so that its
            snapshots cannot be compared with those that there are: ``"raise"``, or ``"new"`` to begin a folder of its
            own.
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
        weights: Which are watched where one of Lightning's callbacks averages weights (``WeightAveraging``,
            ``EMAWeightAveraging``, ``StochasticWeightAveraging``): those that are ``"training"``, their ``"average"``,
            or ``"both"``, each as a series of its own, the average's under ``<name>_average``; before the average
            begins that is the training weights, or nothing. Of SWA, it is with the batch norm statistics of the
            training weights until the callback measures its own. The last snapshot is always of the network that fit
            leaves behind.
        alpha: ``tau`` in units of each layer's own threshold, at which its last input gets its first neighbour
            (Elhamifar and Vidal's alpha); overrides ``tau``.
        pad: What sequences of other lengths are filled up with to the longest of the probe, so that every sample has as
            many features. By default a layer whose number of features changes is refused.
        batch_dim: Which dimension of what layers put out is the sample, 1 where time comes first. By default it is
            found by running other numbers of samples.

    Raises:
        ValueError: An argument is out of range; at the start of fit, a layer is unknown or never runs.
        MisconfigurationException: There is no probe, the Trainer's strategy shards the model, or training is steered
            by a metric of a monitor in the background.

    Example:
        >>> monitor = SSCMonitor(layers="blocks", schedule=5)
        >>> monitor.state_key
        "SSCMonitor{'name': 'ssc'}"
        >>> import torch
        >>> inputs, labels = torch.rand(30, 4), torch.arange(30) % 3
        >>> monitor = SSCMonitor(probes={"test": (inputs, labels), "shifted": (inputs + 1, labels)})
    """

    def __init__(
        self,
        layers: str | type[nn.Module] | Sequence[LayerPattern] = "blocks",
        probe: ProbeSource | None = None,
        probe_size: int = 1000,
        schedule: Schedule = "auto",
        tau: float = 10.0,
        normalize: bool = True,
        solver: Literal["active_set", "admm"] = "active_set",
        tol: float = 1e-5,
        preset: Literal["paper"] | None = None,
        pooling: Pooling = "flatten",
        linear_cka: bool = True,
        heatmap: bool = True,
        embedding: bool = False,
        neighbours: int = 0,
        projector: bool = False,
        groups: Literal["classes", "communities"] = "classes",
        reference: str | Path | None = None,
        store: bool | str | Path = True,
        background: bool = False,
        on_mismatch: OnMismatch = "raise",
        name: str = "ssc",
        on_error: Literal["raise", "warn"] = "raise",
        forward: Forward | None = None,
        chunk: int = 256,
        memory: int | None = None,
        verbose: bool = False,
        weights: Literal["training", "average", "both"] = "training",
        alpha: float | None = None,
        probes: Mapping[str, ProbeSource | None] | None = None,
        pad: float | None = None,
        batch_dim: int | None = None,
    ) -> None:
        super().__init__()
        if probe_size < 3:
            raise ValueError(f"probe_size must be at least 3, got {probe_size}; 500 to 2000 make readable curves.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
        if on_mismatch not in ("raise", "new"):
            raise ValueError(f"on_mismatch must be 'raise' or 'new', got {on_mismatch!r}.")
        if weights not in ("training", "average", "both"):
            raise ValueError(f"weights must be 'training', 'average' or 'both', got {weights!r}.")
        check_sizes(chunk, memory)
        if probes is not None:
            _check_names(probes, probe)
        self.layers = layers
        self.name = name
        self.settings = Settings(
            tau, normalize, solver, tol, preset, pooling, linear_cka, groups, alpha, pad, batch_dim
        )
        self.images = Images(heatmap, embedding, neighbours, projector)
        self.schedule = as_triggers(schedule)
        self.background = background
        self.on_error = on_error
        self.on_mismatch = on_mismatch
        self.weights = weights
        self._probe_sources = {"": probe} if probes is None else dict(probes)
        self._probe_size = probe_size
        self._store, self._reference = store, reference
        self._forward, self._chunk, self._memory, self._verbose = forward, chunk, memory, verbose
        self._clock: Callable[[], float] = time.monotonic
        self._forget()

    def _forget(self) -> None:
        """Forget an earlier fit."""
        self._restored: dict[str, Any] = {}
        self._recorders: list[Recorder] = []  # one a series
        self._take_back: Callable[[], None] | None = None
        self._learning_rate = LearningRate()
        self._agenda = Agenda(self.schedule, self._clock)
        self._has_ended = False

    @property
    def recorder(self) -> Recorder | None:
        """What takes the snapshots of the fit, from its start on."""
        return self._recorders[0] if self._recorders else None

    @property
    def store(self) -> Store | None:
        """The snapshots of the fit, from its start on."""
        return self._recorders[0].store if self._recorders else None

    @property
    def store_of_average(self) -> Store | None:
        """With ``weights="both"``, those of the averaged weights."""
        found = (recorder.store for recorder, series in self._running() if series.average and self.weights == "both")
        return next(found, None)

    @property
    def recorders(self) -> list[Recorder]:
        """What takes the snapshots of every series, from the start of fit on."""
        return list(self._recorders)

    @property
    def step(self) -> int:
        """Training steps that are done in the fit."""
        return self._agenda.step

    @property
    def stores(self) -> dict[str, Store]:
        """The snapshots of every series, by the first part of its tags: with several probes, one a probe."""
        return {recorder.name: recorder.store for recorder in self._recorders}

    @property
    def _series(self) -> list[_Series]:
        averages = {"training": {"": False}, "average": {"": True}, "both": {"": False, "_average": True}}
        return [
            _Series((f"_{probe}" if probe else "") + suffix, probe, average)
            for probe in self._probe_sources
            for suffix, average in averages[self.weights].items()
        ]

    @property
    def _names(self) -> list[str]:
        """First parts of the tags, one a series."""
        return [self.name + series.suffix for series in self._series]

    def _running(self) -> Iterator[tuple[Recorder, _Series]]:
        return zip(self._recorders, self._series, strict=False)  # none before the start of fit

    # -- Lightning's hooks, in the order in which they run

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint, by the monitor's name."""
        return f"{type(self).__qualname__}{ {'name': self.name} }"

    def state_dict(self) -> dict[str, Any]:
        """Where the snapshots lie and which they are; the graphs themselves stay on disk."""
        if not self._recorders:
            return dict(self._restored)
        first, *others = self._recorders
        series = [{**recorder.state_dict(), "name": recorder.name} for recorder in others]
        return {**first.state_dict(), **self._agenda.state_dict(), "ended": self._has_ended, "series": series}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where a resumed run has left its snapshots; they are taken over at the start of fit."""
        self._restored = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit, and get the solver ready while data and training start."""
        if stage == "fit":
            self._forget()
            compile_ahead(self.settings, Training(trainer, pl_module).device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what does not go together."""
        training = Training(trainer, pl_module)
        refuse_what_does_not_go_together(
            training,
            self,
            weights=self.weights,
            background=self.background,
            schedule=self.schedule,
            steered=self._steered(training),
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose layers and probe, and take the untrained network; what cannot be watched fails now, not later."""
        training = Training(trainer, pl_module)
        self._begin(training)
        for recorder in self._recorders:
            with self._guard(training, recorder):
                try:
                    recorder.prepare()
                except (MismatchError, CheckpointError) as error:
                    raise MisconfigurationError(str(error)) from error
        if replaced := self._replaced(training):
            for recorder in replaced:
                recorder.withdraw_last()
            self._take(training, "start")
        elif training.is_new:
            self._consider(training, "start")
        # A checkpoint saved with the last batch of an epoch resumes behind that epoch's end, whose hook is over.
        elif training.is_behind_epoch and self._restored:
            recorder = self._recorders[0]
            with self._guard(training, recorder):
                if not recorder.holds(training.epochs_done):
                    self._consider(training, "start")

    def _replaced(self, training: Training) -> list[Recorder]:
        """Those in which the final state, of other weights, took the place of the step's snapshot after the checkpoint.

        That is all the probes', or none.
        """

        def has_ended(recorder: Recorder) -> bool:  # on rank zero
            return recorder.last is not None and (recorder.last.moment.trigger, recorder.last.step) == (
                "end",
                self._agenda.step,
            )

        ended = training.ranks.broadcast([has_ended(recorder) for recorder in self._recorders])
        if not ended[0] or self._restored.get("ended", True):
            return []
        return [recorder for recorder, has in zip(self._recorders, ended, strict=True) if has]

    def _begin(self, training: Training) -> None:
        steered = self._steered(training)
        self._agenda = Agenda.of_fit(self.schedule, self._clock, training, self._restored, bool(steered))
        if training.is_zero:
            say_what_is_lacking(self.schedule, self._agenda.run, training.checkpoints(steered))
        probes = {name: self._make_probe(training, source) for name, source in self._probe_sources.items()}
        monitors, folder = training.callbacks(SSCMonitor), self._folder(training)
        layout = {name: m._reference is not None for m in monitors for name in m._names}
        states = {state.get("name", f"{self.name}_average"): state for state in self._restored.get("series", ())}
        for number, series in enumerate(self._series):
            name, (probe, names) = self.name + series.suffix, probes[series.probe]
            state = states.get(name, {}) if number else self._restored
            try:
                recorder = Recorder(
                    training.runner(self._forward, self._chunk, self._memory),
                    probe,
                    self.layers,
                    settings=self.settings,
                    store=None if folder is None else folder.with_name(folder.name + series.suffix),
                    fallback=self._store is True,
                    loggers=training.loggers,
                    images=self.images,
                    reference=self._reference,
                    background=self.background,
                    name=name,
                    resume=training.found_again(state),
                    on_mismatch=self.on_mismatch,
                    class_names=names,
                    ranks=training.ranks,
                    bar=training.bar,
                    layout=layout if monitors[0] is self and number == 0 else {},
                )
            except MismatchError as error:
                raise MisconfigurationError(str(error)) from error
            self._recorders.append(recorder)
        self._learning_rate = LearningRate(training.parameters_of(layer.layer.name for layer in recorder.watched))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the learning rate of the step to come: after it, schedulers move on."""
        training = Training(trainer, pl_module)
        rate = self._learning_rate.now(training)
        if self._agenda.sees_drop(training, rate):
            self._consider(training, "drop")
        self._agenda.learning_rate = rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot of the step, if one is due, or log one that was solved in the background."""
        training = Training(trainer, pl_module)
        if self._agenda.advance(training) and self._consider(training, "step"):
            return
        if training.is_alone and any(recorder.has_news for recorder in self._recorders):  # ranks would have to agree
            self._poll(training)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a snapshot after a validation, if it is on the schedule."""
        training = Training(trainer, pl_module)
        if training.is_fitting:
            self._consider(training, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the epoch that has just finished, if it is on the schedule."""
        training = Training(trainer, pl_module)
        is_last = training.stops_after(training.epochs_begun)
        if not self._consider(training, "epoch", is_last):
            self._poll(training)
        # The end of fit would wait anyway, and a checkpoint of the last epoch saved before that is one of a run that
        # Lightning does not go on with: nobody could take the epoch again.
        if is_last:
            self._collect(training)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the final state, once there is one, and compare every earlier snapshot with it."""
        training = Training(trainer, pl_module)
        self._take_back = training.afterwards(lambda: self._finish(training))

    def _finish(self, training: Training) -> None:
        self._take_back, self._has_ended = None, True
        self._take(training, "end")
        self._collect(training)
        for recorder in self._recorders:
            with self._guard(training, recorder):
                recorder.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take what an interrupted run has come to, and compare what there is with the last snapshot."""
        training = Training(trainer, pl_module)
        if self._take_back is not None:
            self._take_back()
        try:
            self._end_early(training, exception)
            for recorder in self._recorders:
                if training.is_zero:
                    recorder.log_history()
        except Exception:  # the user has to see what went wrong first, not what went wrong after it
            log.warning("SSCMonitor could not compare the snapshots of the interrupted run.", exc_info=True)
        finally:
            for recorder in self._recorders:
                recorder.close()

    def _end_early(self, training: Training, exception: BaseException) -> None:
        """Finish what is being solved, and after Ctrl-C take what there is, if there is time and no process is gone."""
        pending = [(recorder, recorder.pending) for recorder in self._recorders if recorder.pending is not None]
        if not training.is_alone or isinstance(exception, SIGTERM):
            for _, moment in pending:
                log.warning("The snapshot of %s was not finished and is left out.", moment)
            return
        announced: list[tuple[Recorder, int]] = []
        try:
            with interruptible():
                for recorder, moment in pending:
                    log.warning("SSCMonitor finishes the snapshot of %s; Ctrl-C leaves it out.", moment)
                    announced.append((recorder, moment.step))
                    with self._guard(training, recorder):
                        recorder.collect()
                if isinstance(exception, KeyboardInterrupt) and self._lacks_what_there_is(training):
                    log.warning(
                        "SSCMonitor takes the final snapshot, of step %d; Ctrl-C leaves it out.", self._agenda.step
                    )
                    announced.append((self._recorders[0], self._agenda.step))
                    self._take(training, "interrupt")
                    self._collect(training)
        except KeyboardInterrupt:
            if any(step not in recorder.steps for recorder, step in announced):
                log.warning("It is left out.")

    def _lacks_what_there_is(self, training: Training) -> bool:
        """Whether the last step has no snapshot, and the module no averaged weights in the place of its own."""
        self._agenda.advance(training)  # in the middle of a batch
        is_swapped = training.is_validating and bool(training.averages_before)
        return bool(self._recorders) and self._agenda.step not in self._recorders[0].steps and not is_swapped

    # -- Parts of them

    def _steered(self, training: Training) -> list[str]:
        """Metrics of this monitor that something in the training goes by."""
        own = tuple(f"{root}/" for name in self._names for root in (name, linear_root(name)))
        return [key for key in training.steered_by if key.startswith(own)]

    def _make_probe(self, training: Training, given: ProbeSource | None) -> tuple[Probe, tuple[str, ...]]:
        """A probe and the names of its classes; what goes wrong on one rank is said on all."""

        def found() -> tuple[Any, Probe]:
            source: Any = given
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
            log.warning(NO_LABELS)
        return probe, class_names(training.datamodule, source, getattr(source, "dataset", None)) or probe.names

    def _folder(self, training: Training) -> Path | None:
        folder = training.folder  # every rank asks for it
        if self._store is False or folder is None:
            return None
        return folder / self.name if self._store is True else Path(abspath(self._store))  # "." has no name

    def _consider(self, training: Training, occasion: Occasion, is_last: bool = False) -> bool:
        """Take a snapshot if one is due; returns whether one was."""
        always = is_last and self.weights == "both"  # fit may leave the average behind: this is the others' last
        if due := self._agenda.is_due(training, occasion, is_last=is_last, always=always):
            self._take(training, occasion)
        return due

    def _take(self, training: Training, occasion: Occasion | Literal["end", "interrupt"]) -> None:
        """Take a snapshot after the one before is done, and in the foreground end it, too."""
        with self._agenda.taking():
            for recorder, average in self._watched(training, is_end=occasion == "end"):
                with self._guard(training, recorder):  # what is wrong with that one does not cost this one
                    recorder.collect()
                with (
                    self._guard(training, recorder),
                    training.averaged() if average else nullcontext(True) as is_there,
                ):
                    if is_there or self.weights == "average":
                        self._record(training, recorder, occasion)

    def _watched(self, training: Training, is_end: bool) -> list[tuple[Recorder, bool]]:
        """The series that go on now, each with whether it takes the averaged weights; at the end, what there is."""
        found = [(recorder, series.average) for recorder, series in self._running()]
        if self.weights == "both":
            return [pair for pair in found if pair[1]] if is_end and training.is_average else found
        return [(recorder, average and not is_end) for recorder, average in found]

    def _record(self, training: Training, recorder: Recorder, occasion: str) -> None:
        recorder.record(
            training.epoch(running=occasion not in ("start", "end")),
            self._agenda.step,
            self._agenda.learning_rate,
            trigger=occasion,
            logged=training.logged(in_batch=occasion in ("step", "validation")),
        )

    def _poll(self, training: Training) -> None:
        with self._agenda.finishing():
            for recorder in self._recorders:
                with self._guard(training, recorder):
                    recorder.poll()

    def _collect(self, training: Training) -> None:
        for recorder in self._recorders:
            with self._guard(training, recorder):
                recorder.collect()

    @contextmanager
    def _guard(self, training: Training, recorder: Recorder) -> Iterator[None]:
        """Errors go where the user wants them, and what a recorder has to tell to other callbacks."""
        before = recorder.steps
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            log.warning("SSCMonitor goes on after an error: %s: %s", type(error).__name__, error)
        finally:
            training.publish(recorder.scalars)
            if self._verbose and recorder.last is not None and recorder.steps != before:
                training.print(writers.summary(recorder.last))


def _check_names(probes: Mapping[str, Any], probe: Any) -> None:
    """Refuse names of probes that tags and folders cannot have, and probes of both kinds."""
    if probe is not None:
        raise ValueError("probe= and probes= do not go together: give probes= all of them.")
    if not probes:
        raise ValueError("probes= names no probe: give it some, or leave it out for the validation data.")
    for name in probes:
        if not isinstance(name, str) or not _PROBE_NAME.fullmatch(name):
            raise ValueError(
                f"probes= has the name {name!r}; it may have letters, digits, '_', '-' and '.', and not end in "
                f"'_average', which stands for averaged weights."
            )
