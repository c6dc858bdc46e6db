"""Every recipe through the command line."""

from fnmatch import filter as filter_names
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import recipes
from lightning_ssc import SSCMonitor
from lightning_ssc.capture.presets import Preset
from lightning_ssc.measures import CURVES
from recipes.__main__ import RecipeCLI, main

FOLDER = Path(recipes.__file__).parent
README = (FOLDER / "README.md").read_text()
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if p.parent.name != "overlays")
OVERLAYS = sorted((FOLDER / "overlays").glob("*.yaml"))
STEPS = ["small/densenet.yaml", "small/vgg11.yaml", "small/wide_resnet28_k1.yaml"]  # a family each; ResNets: quickstart


@pytest.fixture(autouse=True)
def bare_process(monkeypatch, tmp_path):
    """The command line sees neither pytest's arguments nor the checkout, and leaves the random state alone."""
    monkeypatch.setattr("sys.argv", ["recipes"])
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


def name(path):
    return str(path.relative_to(FOLDER))


def configs(*paths):
    return [argument for path in paths for argument in ("--config", str(path))]


def monitor_of(cli):
    [monitor] = [callback for callback in cli.trainer.callbacks if isinstance(callback, SSCMonitor)]
    return monitor


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_builds_and_is_in_the_table(path):
    with torch.device("meta"):
        cli = main([*configs(path), "--trainer.accelerator", "cpu"], run=False)
    assert cli.model.num_classes == cli.datamodule.num_classes
    layers, modules = monitor_of(cli).layers, dict(cli.model.named_modules())
    assert layers in get_args(Preset) or all(filter_names(modules, layer) for layer in layers)
    assert max(cli.model.hparams["milestones"], default=0) < cli.trainer.max_epochs
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in cli.model.modules())
    parameters = sum(p.numel() for p in cli.model.parameters())
    [row] = [line for line in README.splitlines() if line.startswith(f"| `{name(path)}` |")]
    assert f"| {convolutions} | {parameters:,} |" in row
    logger = cli.trainer.logger
    assert f"{logger.save_dir}/{logger.name}" == f"runs/{name(path.with_suffix(''))}"


@pytest.mark.parametrize(
    ("gpu", "bf16", "on_cpu", "named", "expected"),
    [
        (False, False, False, [], "32-true"),
        (False, False, True, [], "bf16-mixed"),
        (True, True, False, [], "bf16-mixed"),
        (True, False, True, [], "32-true"),
        (True, True, False, ["--trainer.accelerator", "cpu"], "32-true"),
        (True, False, True, ["--trainer.accelerator", "cpu"], "bf16-mixed"),
        (True, True, True, ["--trainer.precision", "64-true"], "64-true"),
    ],
)
def test_precision_is_by_device_where_none_is_named(gpu, bf16, on_cpu, named, expected, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: bf16)
    monkeypatch.setattr("recipes.__main__.fast_in_bfloat16", lambda: on_cpu)
    monkeypatch.setattr(RecipeCLI, "instantiate_classes", lambda cli: None)  # there is no such device here
    cli = main([*configs(FOLDER / "cifar10/vgg11.yaml"), *named], run=False)
    assert cli.config.trainer.precision == expected
    assert ("Precision: " in capsys.readouterr().out) == ("--trainer.precision" not in named)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
def test_overlay_fits_over_a_recipe(overlay):
    over = yaml.safe_load(overlay.read_text())
    recipe = FOLDER / "cifar10/vgg11.yaml"
    with torch.device("meta"):
        cli = main([*configs(recipe, overlay), "--trainer.accelerator", "cpu", "--data.root", "elsewhere"], run=False)
    assert cli.datamodule.root == "elsewhere"
    seed = over.pop("seed_everything", 0)
    assert cli.config.seed_everything == seed
    for group, settings in over.items():
        built = cli.config[group].get("init_args", cli.config[group])
        for key, value in settings.items():
            expected = tuple(value) if key == "milestones" else value
            assert built[key] == expected or (group, key) == ("trainer", "accelerator"), key
    assert cli.config.model.network == "vgg11"


def test_quickstart_takes_a_step():
    cli = main(["fit", *configs(FOLDER / "quickstart.yaml"), "--trainer.fast_dev_run", "1", "--ssc.probe_size", "30"])
    assert cli.trainer.global_step == 1
    assert not list(Path.cwd().iterdir()), "a fast_dev_run writes no files"


@pytest.mark.parametrize("path", STEPS)
def test_recipe_takes_a_step_at_the_scale_of_a_cpu(path, cifar_root):
    small = ["--data.batch_size", "8", "--data.root", str(cifar_root), "--ssc.probe_size", "20"]
    cli = main(["fit", *configs(FOLDER / path, FOLDER / "overlays/cpu.yaml"), *small, "--trainer.fast_dev_run", "1"])
    assert cli.trainer.global_step == 1


def test_a_stream_of_one_epoch_has_ten_moments_in_tensorboard():
    small = [
        *("--model.network_args.depth", "8", "--data.fraction", "0.05", "--data.copies", "1", "--data.batch_size", "8"),
        *("--ssc.probe_size", "30", "--ssc.heatmap", "false", "--ssc.layers", "stages"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]
    cli = main(["fit", *configs(FOLDER / "stream.yaml"), *small])
    store = monitor_of(cli).store
    assert len(store) >= 11
    assert store.steps[0] == 0
    assert store.steps[-1] == cli.trainer.global_step
    events = EventAccumulator(cli.trainer.log_dir).Reload()
    [tag] = [t for t in events.Tags()["scalars"] if t.startswith("ssc/modularity/") and t.endswith("classifier")]
    assert len(events.Scalars(tag)) == len(store)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own
def test_run_that_is_taken_up_ends_with_table_figures_and_command(capsys, monkeypatch):
    short = [
        *("fit", *configs(FOLDER / "quickstart.yaml"), "--model.network_args.depth", "8", "--model.milestones", "[1]"),
        *("--data.fraction", "0.05", "--data.copies", "1", "--ssc.probe_size", "50"),
        *("--ssc.heatmap", "false", "--ssc.embedding", "false", "--ssc.neighbours", "0"),  # images for TensorBoard
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("recipes.__main__.write_figures", lambda *args: None)  # those of the first part are not looked at
        main([*short, "--trainer.max_epochs", "1"])
    [checkpoint] = Path("runs/quickstart/version_0/checkpoints").glob("*.ckpt")
    capsys.readouterr()
    cli = main([*short, "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint)])
    run = Path("runs/quickstart/version_1")
    assert monitor_of(cli).store.epochs == [0, 1, 2]
    figures = {path.stem for path in (run / "figures").iterdir()}
    curves = {record.name for record in CURVES if record.over != "reference"}
    assert figures == curves | {f"heatmap_epoch_{e:03d}" for e in (0, 1, 2)}
    printed = capsys.readouterr().out
    for layer in ("stem", "layer1.0", "layer2.0", "layer3.0", "classifier"):
        assert f"│ {layer} " in printed
    assert f"tensorboard --logdir {run}" in printed
    assert f"Figures: {run / 'figures'}" in printed
    assert (run / "config.yaml").exists()


def test_number_of_classes_comes_from_the_data(tmp_path):
    for part in ("train", "test"):
        for name in ("ant", "bee", "cow"):
            (tmp_path / part / name).mkdir(parents=True)
    cli = main(
        [*configs(FOLDER / "cifar10/vgg11.yaml"), "--data", "ImageFolder", "--data.root", str(tmp_path)], run=False
    )
    assert cli.model.num_classes == 3
    assert cli.model.network.classifier.out_features == 3


def test_every_overlay_is_in_the_table():
    for path in OVERLAYS:
        assert f"| `{name(path)}` |" in README, path
