"""The whole paper in one command: ``python -m recipes.reproduce --data.root ROOT``.

It runs every recipe of recipes/cifar10 and recipes/cifar100, each in a process of its own, and after each writes its
row of recipes/README.md and the figures whose runs are complete. It may be killed at any time: the next call skips what
is done and takes up what was begun at its last checkpoint. Called twice, on two GPUs say, the two share the work.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode

from lightning_ssc.analysis import dynamics, inputs, similarity
from lightning_ssc.plots import evenly
from recipes import drawing, models
from recipes.converged import Images
from recipes.readme import README, with_block, with_row
from recipes.runs import Runs, versions
from recipes.tables import markdown

FOLDER = Path(__file__).parent
OUTCOME = "outcome.json"  # in a version's folder: the run came to its end
DYNAMICS = {"figure1": "cifar10/densenet121", "figure2": "cifar100/densenet121"}
HEATMAPS = {
    "figure3": ("cifar10/vgg11", "cifar10/vgg16", "cifar10/vgg24", "cifar10/vgg29"),
    "figure4": ("cifar10/resnet36", "cifar10/resnet53", "cifar10/resnet104"),
    "figure5": ("cifar10/wide_resnet64_k2", "cifar10/wide_resnet64_k6", "cifar10/wide_resnet64_k10"),
    "figure7": ("cifar10/resnet36_data5", "cifar10/resnet36_data50", "cifar10/resnet36"),
}
EPOCHS = {"figure6": "cifar10/wide_resnet28_k2"}
INPUTS = "cifar10/resnet36_inputs"  # figures 8 and 9
TABLE1 = (INPUTS, "cifar10/resnet18_inputs", "cifar10/resnet53_inputs")
_CHECKPOINT = re.compile(r"epoch=(\d+)-step=\d+\.ckpt")
_COMPARED = ("max_epochs", "limit_train_batches")  # settings of the trainer that make another run


class Job:
    """One recipe, with the overlays that are laid over it, and what there is of its run.

    Args:
        recipe: Such as ``cifar10/vgg11``.
        overlays: Configurations laid over it.
        runs: Folder of all runs.
    """

    def __init__(self, recipe: str, overlays: Sequence[Path], runs: Path) -> None:
        self.recipe, self.overlays = recipe, list(overlays)
        self.configs = [FOLDER / f"{recipe}.yaml", *overlays]
        self.settings: dict[str, Any] = {}
        for path in self.configs:
            _lay_over(self.settings, yaml.safe_load(path.read_text()))
        self.epochs = int(self.settings["trainer"]["max_epochs"])
        self.runs, self.folder = runs, runs / recipe

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What came out of the run, or None where it has not come to its end."""
        found = versions(self.folder)
        path = found[-1] / OUTCOME if found else None
        return json.loads(path.read_text()) if path is not None and path.exists() else None

    def checkpoint(self) -> tuple[int, Path | None]:
        """Finished epochs and the latest whole checkpoint; 0 and None where there is none."""
        every = [path for version in versions(self.folder) for path in version.glob("checkpoints/*.ckpt")]
        whole = [(int(found[1]) + 1, path) for path in every
                 if (found := _CHECKPOINT.fullmatch(path.name)) and zipfile.is_zipfile(path)]  # fmt: skip
        return max(whole, default=(0, None), key=lambda pair: pair[0])

    def check(self) -> None:
        """Refuse a run that was made with other settings.

        Raises:
            ValueError: It was; the message names the setting.
        """
        for version in versions(self.folder):
            if not (saved := version / "config.yaml").exists():
                continue
            made = yaml.safe_load(saved.read_text())
            for name, wanted in _leaves({group: self.settings.get(group, {}) for group in ("data", "model", "ssc")}):
                _compare(version, name, _get(made, name), wanted)
            for key in _COMPARED:
                _compare(version, f"trainer.{key}", made["trainer"].get(key), self.settings["trainer"].get(key))

    def seconds(self) -> float:
        """Time that its epochs took, as far as they are done, lost ones too."""
        return sum(_last_event(version)[1] for version in versions(self.folder))

    def work(self) -> float:
        """Multiplications and additions for an image, times the share of the images in an epoch."""
        data = self.settings["data"].get("init_args", {})
        with torch.device("meta"):
            model = self.settings["model"]
            network = getattr(models, model["network"])(**model.get("network_args", {})).eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, 32, 32))
        return float(counter.get_total_flops() * data.get("fraction", 1.0))

    def arguments(self, root: str) -> list[str]:
        """Arguments of ``python -m recipes``."""
        _, checkpoint = self.checkpoint()
        return [
            "fit",
            *(part for path in self.configs for part in ("--config", str(path))),
            *("--data.root", root, "--trainer.logger.init_args.save_dir", str(self.runs)),
            *(("--ckpt_path", str(checkpoint)) if checkpoint is not None else ()),
        ]

    @contextmanager
    def alone(self) -> Iterator[int | None]:
        """A lock on the run, or None where another process has it.

        The child inherits it: it is held as long as either lives.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def finish(self) -> None:
        """Write down what came out."""
        version = versions(self.folder)[-1]
        accuracy, _ = _last_event(version)
        outcome = {"accuracy": accuracy, "seconds": self.seconds(), "machine": machine()}
        outcome["overlays"] = [f"{path.parent.name}/{path.name}" for path in self.overlays]
        (version / OUTCOME).write_text(json.dumps(outcome))


def _lay_over(settings: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), dict):
            _lay_over(settings[name], value)
        else:
            settings[name] = value


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        elif name != "root":
            yield f"{above}{name}", value


def _get(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def agrees(made: Any, wanted: Any) -> bool:
    """Whether a setting as it was saved, with the defaults of its classes filled in, is the one that a recipe names."""
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        return all(name in made and agrees(made[name], value) for name, value in wanted.items())
    if isinstance(made, list) and isinstance(wanted, list):
        return len(made) == len(wanted) and all(map(agrees, made, wanted))
    return bool(made == wanted)


def _compare(version: Path, name: str, made: Any, wanted: Any) -> None:
    if not agrees(made, wanted):
        raise ValueError(
            f"the run in {version} was made with {name} = {made} and is to be made with {wanted}: move it away, or "
            "name another folder with --runs"
        )


def _last_event(version: Path) -> tuple[float, float]:
    """Accuracy after the last epoch, and the seconds from the first event to then; NaN and 0 where there is none."""
    events = EventAccumulator(str(version), size_guidance={"scalars": 0, "images": 1}).Reload()
    if "val/accuracy" not in events.Tags()["scalars"]:
        return float("nan"), 0.0
    last = events.Scalars("val/accuracy")[-1]
    return last.value, last.wall_time - events.FirstEventTimestamp()


def machine() -> str:
    """What this machine is called in a table."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def left(jobs: Sequence[Job]) -> str:
    """What is done, what is left and how long that takes: by the work of networks, once an epoch of any was timed."""
    done = {job.recipe: job.checkpoint()[0] for job in jobs}
    work = {job.recipe: job.work() for job in jobs}
    worked = sum(work[job.recipe] * done[job.recipe] for job in jobs)
    rate = sum(job.seconds() for job in jobs) / worked if worked else None
    lines, total = [], 0.0
    for job in jobs:
        if job.outcome is not None:
            lines.append([job.recipe, f"done, {job.outcome['accuracy']:.1%} right", ""])
            continue
        state = f"epoch {done[job.recipe]} of {job.epochs}" if done[job.recipe] else f"0 of {job.epochs} epochs"
        seconds = None if rate is None else rate * work[job.recipe] * (job.epochs - done[job.recipe])
        total += seconds or 0.0
        lines.append([job.recipe, state, "not known yet" if seconds is None else _time(seconds)])
    if rate is not None:
        lines.append(["all", "", _time(total)])
    return markdown(["recipe", "state", "left"], lines)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def draw(jobs: Sequence[Job], runs: Path, figures: Path) -> list[str]:
    """Draw the figures whose runs are complete, and return lines of Markdown: table 1 and the figures."""
    finished = {job.recipe for job in jobs if job.outcome is not None}
    of = Runs(runs, "recipes")
    figures.mkdir(parents=True, exist_ok=True)
    drawn = []
    for figure, recipe in DYNAMICS.items():
        if recipe in finished:
            drawing.curves(figures / f"{figure}.png", dynamics(of.store(recipe)))
            drawn.append(figure)
    for figure, recipes in HEATMAPS.items():
        if finished.issuperset(recipes):
            drawing.heatmaps(figures / f"{figure}.png", [(recipe, *of.heatmap(recipe)) for recipe in recipes])
            drawn.append(figure)
    for figure, recipe in EPOCHS.items():
        if recipe in finished:
            store = of.store(recipe)
            found = {store.epochs[i]: similarity(store.load(store.epochs[i]), linear=False)
                     for i in evenly(len(store.epochs), 4)}  # fmt: skip
            panels = [(f"epoch {epoch}", table.ssc, table.rows) for epoch, table in found.items()]
            drawing.heatmaps(figures / f"{figure}.png", panels)
            drawn.append(figure)
    if INPUTS in finished:
        store = of.store(INPUTS)
        taken, card = store.load(step=store.steps[-1]), store.load_card()
        names, pictures = (card.class_names, card.images) if card is not None else ((), None)
        layers = list(taken.layers)
        drawing.embeddings(figures / "figure8.png", taken, layers, names)
        drawing.confidently_wrong_input(figures / "figure9.png", taken, layers[-1], pictures, names)
        drawn += [name for name in ("figure8", "figure9") if (figures / f"{name}.png").exists()]
    text = [f"![{name} of the paper]({figures.name}/{name}.png)" for name in sorted(drawn)]
    rows = [inputs(of.store(recipe).load(step=of.store(recipe).steps[-1])) for recipe in TABLE1 if recipe in finished]
    if rows:
        cells = [
            [recipe, *(f"{value:.1%}" for value in (row.ssc_accuracy, row.network_accuracy, row.agreement))]
            for recipe, row in zip((recipe for recipe in TABLE1 if recipe in finished), rows, strict=True)
        ]
        text.insert(0, markdown(["table 1", "SSC label", "network", "alike"], cells) + "\n")
    return text


def write_results(jobs: Sequence[Job], runs: Path, readme: Path) -> None:
    """Fill the rows of the runs that are complete, draw their figures, and show them."""
    text = readme.read_text()
    for job in jobs:
        if (outcome := job.outcome) is not None:
            how = ", ".join(["seed 0", *outcome["overlays"]])
            ours = f"{outcome['accuracy']:.1%} ({how})".replace("%", " %")
            text = with_row(text, f"`{job.recipe}.yaml`", [ours, f"{outcome['seconds']:.0f}", outcome["machine"]])
    shown = draw(jobs, runs, readme.parent / "figures")
    readme.write_text(with_block(text, "reproduced", "\n".join(shown) if shown else "Not run yet."))


def reproduce(
    data: Images = Images(),  # noqa: B008  (a value)
    only: Sequence[str] = ("cifar10/*", "cifar100/*"),
    overlays: Sequence[Path] = (),
    runs: Path = Path("runs"),
    readme: Path = README,
) -> None:
    """Run the paper's recipes and write what came out into the README beside them.

    Args:
        data: Where CIFAR-10 and CIFAR-100 are.
        only: Which recipes, as patterns of their names.
        overlays: Configurations to lay over each, such as recipes/overlays/cpu.yaml; rows say so.
        runs: Folder of the runs.
        readme: Whose rows are filled; pictures go to the folder figures beside it.
    """
    names = [path.relative_to(FOLDER).with_suffix("").as_posix() for which in only
             for path in sorted(FOLDER.glob(f"{which}.yaml"))]  # fmt: skip
    if not names:
        raise SystemExit(f"no recipe is called {' or '.join(only)}; there are those in {FOLDER}/cifar10 and cifar100")
    jobs = [Job(name, overlays, runs) for name in names]
    for job in jobs:
        job.check()
    print(left(jobs), flush=True)
    failed = []
    for job in jobs:
        if job.outcome is not None:
            continue
        with job.alone() as lock:
            if lock is None:
                print(f"{job.recipe} is being run by another process", flush=True)
                continue
            command = [sys.executable, "-m", "recipes", *job.arguments(data.root)]
            print(" ".join(command), flush=True)
            with subprocess.Popen(command, pass_fds=[lock]) as child:
                if child.wait():
                    failed.append(job.recipe)
                    continue
            job.finish()
        write_results(jobs, runs, readme)
        print(left(jobs), flush=True)
    write_results(jobs, runs, readme)
    if failed:
        raise SystemExit(f"these recipes failed, see above: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    auto_cli(reproduce, as_positional=False)
