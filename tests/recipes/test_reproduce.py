"""The paper in one command, at the scale of a batch an epoch: killed in the middle, taken up, written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_ssc import SnapshotStore
from recipes import reproduce
from recipes.__main__ import main
from recipes.module import Classifier
from recipes.readme import README
from recipes.reproduce import INPUTS, Images, Job, left

TINY = {
    "data": {"init_args": {"batch_size": 100}},  # all of the made ones
    "model": {"network": "cifar_resnet", "network_args": {"depth": 8, "width": 4}, "milestones": [1]},
    "ssc": {"layers": "conv", "probe_size": 20, "schedule": 1, "heatmap": False, "embedding": False, "neighbours": 0},
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "precision": "32-true"},
}


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


class InThisProcess:
    """What Popen does, without a process: a recipe that raises has exit status 1."""

    def __init__(self, command, pass_fds):
        assert command[1:3] == ["-m", "recipes"]
        self.commands.append(command[3:])

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return None

    def wait(self):
        try:
            with torch.random.fork_rng():
                main(self.commands[-1])
        except RuntimeError:
            return 1
        return 0


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own
def test_killed_taken_up_and_written_down(tiny, tmp_path, cifar_root, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recipes"])
    monkeypatch.setattr("recipes.__main__.write_figures", lambda *args: None)
    monkeypatch.setattr(reproduce.subprocess, "Popen", InThisProcess)
    monkeypatch.setattr(InThisProcess, "commands", [], raising=False)
    readme = tmp_path / "README.md"
    shutil.copy(README, readme)

    def run():
        reproduce.reproduce(Images(str(cifar_root)), [INPUTS], [tiny], tmp_path / "runs", readme)

    def killed(module):
        if module.current_epoch == 1:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", killed)
        with pytest.raises(SystemExit, match=rf"these recipes failed, see above: {INPUTS}"):
            run()
    assert "Not run yet." in readme.read_text()
    assert f"| {INPUTS} | 0 of 2 epochs | not known yet |" in capsys.readouterr().out

    run()
    job = Job(INPUTS, [tiny], tmp_path / "runs")
    assert f"| {INPUTS} | epoch 1 of 2 | 0." in capsys.readouterr().out
    assert "epoch=0-step=1.ckpt" in " ".join(InThisProcess.commands[1])
    assert SnapshotStore(job.folder / "version_1/ssc").epochs == [0, 1, 2]
    [row] = [line for line in readme.read_text().splitlines() if line.startswith(f"| `{INPUTS}.yaml` |")]
    ours, _, machine = (cell.strip() for cell in row.strip("|").split("|")[-3:])
    assert ours == f"{job.outcome['accuracy']:.1%} (seed 0, {tmp_path.name}/tiny.yaml)".replace("%", " %")
    assert machine == reproduce.machine()
    assert f"| {INPUTS} |" in readme.read_text()  # of table 1
    for figure in ("figure8", "figure9"):
        assert f"![{figure} of the paper](figures/{figure}.png)" in readme.read_text()
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size

    written = readme.read_text()
    run()
    assert len(InThisProcess.commands) == 2, "what is done is not done again"
    assert readme.read_text() == written

    tiny.write_text(yaml.safe_dump(TINY | {"ssc": TINY["ssc"] | {"probe_size": 30}}))
    with pytest.raises(ValueError, match=r"was made with ssc\.probe_size = 20 and is to be made with 30: move it away"):
        run()


def test_settings_are_compared_without_the_defaults_that_were_saved_with_them():
    made = [{"class_path": "lightning_ssc.at", "init_args": {"epochs": [], "steps": [20]}}, 1]
    wanted = [{"class_path": "lightning_ssc.at", "init_args": {"steps": [20]}}, 1]
    assert reproduce.agrees(made, wanted)
    assert not reproduce.agrees(wanted, made)
    assert not reproduce.agrees(made, wanted[:1])
    assert not reproduce.agrees(made, [wanted[0], 2])


def test_what_is_left_goes_by_the_work_of_a_network(tmp_path, monkeypatch):
    jobs = [Job(f"cifar10/{name}", [], tmp_path) for name in ("vgg11", "resnet36", "resnet36_data50", "resnet18")]
    assert "not known yet" in left(jobs)
    timed, whole, half, done = jobs
    (done.folder / "version_0").mkdir(parents=True)
    (done.folder / "version_0/outcome.json").write_text(json.dumps({"accuracy": 0.96}))
    monkeypatch.setattr(Job, "checkpoint", lambda job: (10 if job is timed else 0, None))
    monkeypatch.setattr(Job, "seconds", lambda job: 3600.0 if job is timed else 0.0)
    lines = {line.split("|")[1].strip(): line for line in left(jobs).splitlines()}
    assert "| epoch 10 of 100 | 9.0 h |" in lines["cifar10/vgg11"]
    hours = [float(lines[job.recipe].split("|")[-2].split()[0]) for job in (whole, half)]
    assert hours[0] == pytest.approx(10 * whole.work() / timed.work(), rel=0.01)
    assert hours[1] == pytest.approx(hours[0] / 2, rel=0.01)
    assert "| done, 96.0% right |" in lines["cifar10/resnet18"]


def test_a_run_has_one_process_at_a_time(tmp_path):
    one, other = (Job("cifar10/vgg11", [], tmp_path) for _ in range(2))
    with one.alone() as first:
        assert first is not None
        with other.alone() as second:
            assert second is None
    with other.alone() as later:
        assert later is not None


def test_a_checkpoint_that_was_being_written_is_left_out(tmp_path):
    job = Job("cifar10/vgg11", [], tmp_path)
    folder = job.folder / "version_0/checkpoints"
    folder.mkdir(parents=True)
    torch.save({}, folder / "epoch=3-step=40.ckpt")
    whole = (folder / "epoch=3-step=40.ckpt").read_bytes()
    (folder / "epoch=4-step=50.ckpt").write_bytes(whole[:-40])
    assert job.checkpoint() == (4, folder / "epoch=3-step=40.ckpt")


def test_a_pattern_of_no_recipe_is_named():
    with pytest.raises(SystemExit, match=r"no recipe is called cifar10/alexnet; there are those in .*cifar10"):
        reproduce.reproduce(only=["cifar10/alexnet"])


def test_every_figure_is_of_recipes_that_there_are():
    named = {*reproduce.DYNAMICS.values(), *reproduce.EPOCHS.values(), INPUTS, *reproduce.TABLE1}
    named.update(recipe for recipes in reproduce.HEATMAPS.values() for recipe in recipes)
    assert all((Path(reproduce.__file__).parent / f"{recipe}.yaml").is_file() for recipe in named)
