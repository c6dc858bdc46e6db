import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from lightning_ssc.functional import affinity, linear_cka, modularity, self_expression
from lightning_ssc.metrics import AffinityModularity, LinearCKA

SUBSPACES = 3


def data(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy samples of three planes in 12 dimensions, other features of the same samples, and the plane of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % SUBSPACES
    bases = torch.randn(SUBSPACES, 2, 12, generator=generator)
    x = torch.einsum("nk,nkd->nd", torch.randn(n, 2, generator=generator), bases[labels])
    x += 0.05 * torch.randn(x.shape, generator=generator)
    return x, (x @ torch.randn(12, 5, generator=generator)).relu(), labels


def modularity_of(x: torch.Tensor, labels: torch.Tensor, **how: float) -> float:
    return modularity(affinity(self_expression(x, **how).coef), labels)


@pytest.mark.parametrize("batch", [1, 7, 60])
@pytest.mark.parametrize("unbiased", [False, True])
def test_linear_cka_is_that_of_the_whole_set(batch, unbiased):
    x1, x2, _ = data()
    metric = LinearCKA(unbiased=unbiased)
    for part in torch.arange(60).split(batch):
        metric.update(x1[part], x2[part])
    assert metric.compute().item() == pytest.approx(linear_cka(x1, x2, unbiased=unbiased), abs=1e-6)


@pytest.mark.parametrize("batch", [7, 60])
@pytest.mark.parametrize("how", [{}, {"tau": 50.0, "normalize": False}])
def test_modularity_is_that_of_the_whole_set(batch, how):
    x, _, labels = data()
    metric = AffinityModularity(**how)
    for part in torch.arange(60).split(batch):
        metric.update(x[part], labels[part])
    expected = modularity_of(x, labels, **how)
    assert expected > 0.3
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_reset_starts_afresh():
    x1, x2, labels = data()
    cka, modular = LinearCKA(), AffinityModularity()
    cka.update(x1, x1)
    modular.update(x1, torch.zeros_like(labels))
    for metric in (cka, modular):
        metric.compute()
        metric.reset()
    cka.update(x1, x2)
    modular.update(x1, labels)
    assert cka.compute().item() == pytest.approx(linear_cka(x1, x2), abs=1e-6)
    assert modular.compute().item() == pytest.approx(modularity_of(x1, labels), abs=1e-6)


def test_flatten_feature_maps_and_keep_no_graph():
    x1, x2, labels = data()
    x1.requires_grad_()
    cka, modular = LinearCKA(), AffinityModularity()
    cka.update(x1.view(60, 3, 2, 2), x2)
    modular.update(x1.view(60, 3, 2, 2), labels)
    assert cka.compute().item() == pytest.approx(linear_cka(x1, x2), abs=1e-6)
    assert modular.compute().item() == pytest.approx(modularity_of(x1, labels), abs=1e-6)
    assert not any(t.requires_grad for t in cka.x1 + modular.x)


def test_pickle():
    x1, x2, _ = data()
    metric = LinearCKA()
    metric.update(x1, x2)
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def test_degenerate_features_are_nan():
    x, _, labels = data()
    cka, modular = LinearCKA(), AffinityModularity()
    cka.update(x, torch.ones(60, 4))
    modular.update(torch.zeros(60, 4), labels)
    assert math.isnan(cka.compute())
    with pytest.warns(UserWarning, match="empty"):
        assert math.isnan(modular.compute())


def test_plot():
    x1, x2, _ = data()
    metric = LinearCKA()
    metric.update(x1, x2)
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.lines[0].get_ydata()[0] == pytest.approx(metric.compute().item())
    _, axes = AffinityModularity().plot([torch.tensor(0.1), torch.tensor(0.4)])
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.4])


def test_misuse():
    x1, x2, labels = data()
    cka, modular = LinearCKA(), AffinityModularity()
    with pytest.raises(ValueError, match="x2 has 59 inputs, but 60 were given beside it"):
        cka.update(x1, x2[1:])
    with pytest.raises(ValueError, match="labels has 59 inputs, but 60 were given beside it"):
        modular.update(x1, labels[1:])
    with pytest.raises(ValueError, match=r"labels must have shape \(B,\), got \(60, 3\): pass class indices"):
        modular.update(x1, torch.eye(3)[labels])
    with pytest.raises(ValueError, match=r"labels must be integers, got torch\.float32: pass class indices"):
        modular.update(x1, labels.float())
    cka.update(x1, x2)
    with pytest.raises(ValueError, match="x2 has 4 features in this batch, but 5 in the last one"):
        cka.update(x1, x2[:, 1:])
    assert [len(state) for state in (cka.x1, cka.x2, modular.x, modular.labels)] == [1, 1, 0, 0]
    for metric in (LinearCKA(), AffinityModularity()):
        with (
            pytest.warns(UserWarning, match="before the ``update``"),
            pytest.raises(ValueError, match=f"{type(metric).__name__} has seen no inputs: call update"),
        ):
            metric.compute()


class Classifier(pl.LightningModule):
    """Logs both metrics the way a user would."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(12, SUBSPACES)
        self.cka, self.modularity = LinearCKA(), AffinityModularity()

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.cka.update(batch[0], self.layer(batch[0]))
        self.modularity.update(*batch)
        self.log("cka", self.cka)
        self.log("modularity", self.modularity)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_in_a_validation_step(tmp_path):
    x, _, labels = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=25)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        default_root_dir=tmp_path,
    )
    model = Classifier()
    trainer.fit(model, loader, loader)
    assert trainer.callback_metrics["modularity"].item() == pytest.approx(modularity_of(x, labels), abs=1e-6)
    with torch.no_grad():
        assert trainer.callback_metrics["cka"].item() == pytest.approx(linear_cka(x, model.layer(x)), abs=1e-5)


WORKER = """
import sys, torch
import torch.distributed as dist
from lightning_ssc.metrics import AffinityModularity, LinearCKA
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x1, x2, labels = torch.load(f"{folder}/data.pt")
mine = torch.arange(len(labels))[: 41] if rank == 0 else torch.arange(len(labels))[41:]  # uneven, unequal batches
cka, modular = LinearCKA(compute_with_cache=False), AffinityModularity(compute_with_cache=False)
for part in mine.split(9 + rank):
    cka.update(x1[part], x2[part])
    modular.update(x1[part], labels[part])
for _ in range(2):  # the states must come back unharmed after the first synchronisation
    values = cka.compute(), modular.compute()
if rank == 0:  # and the other has no inputs
    cka, modular = LinearCKA(), AffinityModularity()
    cka.update(x1.double(), x2)
    modular.update(x1, labels)
else:
    cka, modular = LinearCKA(), AffinityModularity()
values += cka.compute(), modular.compute()
none, refused = LinearCKA(), 0
try:
    none.compute()
except ValueError as error:
    refused = str(error)
torch.save((*values, refused), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_in_two_processes(tmp_path):
    x1, x2, labels = data()
    torch.save((x1, x2, labels), tmp_path / "data.pt")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for rank in range(2):
        *values, refused = torch.load(tmp_path / f"{rank}.pt")
        for cka, modular in (values[:2], values[2:]):  # both with inputs, and one without
            assert cka.item() == pytest.approx(linear_cka(x1, x2), abs=1e-6)
            assert modular.item() == pytest.approx(modularity_of(x1, labels), abs=1e-6)
        assert refused == "LinearCKA has seen no inputs: call update() before compute()"
