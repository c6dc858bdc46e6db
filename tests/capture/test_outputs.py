"""Which tensor of an output is watched, and which of its rows are whose: held against what plain hooks see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_ssc import Snapshot, snapshot
from lightning_ssc.capture import Rows, Runner, capture, make_probe, trace
from lightning_ssc.functional import duality_gap

N = 20
X = torch.randn(N, 6, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([6, 2, 5, 1, 3] * 4)
REAL = torch.arange(6) < LENGTHS[:, None]


def gram(net: nn.Module, inputs: Any, layer: str, chunk: int = 8, **how: Any) -> Tensor:
    """What is captured of a layer, as a Gram."""
    runner = Runner(net, chunk=chunk, forward=how.pop("forward", None))
    watched = trace(runner, [layer], inputs, Rows(**how))
    ((_, found),) = capture(runner, watched, inputs, Rows(**how))
    return found.raw_().double()


def assert_rows(found: Tensor, rows: Tensor) -> None:
    rows = rows.detach().reshape(len(rows), -1).double()
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-4, atol=1e-4)


class Returns(nn.Module):
    """Puts out what a function makes of its input, and passes on the input."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.m, self.make = nn.Identity(), make
        self.m.register_forward_hook(lambda module, args, output: self.make(*args))

    def forward(self, x: Tensor) -> Tensor:
        self.m(x)
        return x.flatten(1)


class Output(NamedTuple):
    scores: Tensor
    ids: Tensor


@dataclass
class ModelOutput:
    loss: Tensor
    attentions: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: (x, 2 * x), 2 * X),  # not the input
        (lambda x: (x.transpose(1, 2), 2 * x), 2 * X),  # not a view of the input
        (lambda x: x.sum((1, 2)), X.sum((1, 2))),
        (lambda x: (x.argmax(1), 3 * x), 3 * X),  # not the indices
        (lambda x: Output(2 * x, x.argmax(1)), 2 * X),
        (lambda x: {"hidden": 2 * x, "last_hidden_state": 3 * x}, 3 * X),
        (lambda x: ModelOutput(x.sum(), x.sum(2), 4 * x), 4 * X),
        (lambda x: [None, ({"a": "text"}, (x.mean(), 5 * x))], 5 * X),
        (lambda x: (x.bool(), x.transpose(0, 1) * 2), 2 * X),  # batch second, yet of floating point
        (lambda x: (2 * x).to_sparse(), 2 * X),
        (lambda x: (2 * x.flatten(1)).to_sparse_csr(), 2 * X),
        (lambda x: torch.quantize_per_tensor(x.round(), 1.0, 0, torch.qint8), X.round()),
        (lambda x: (2 * x).bfloat16(), (2 * X).bfloat16()),
        (lambda x: (2 * x).half(), (2 * X).half()),
        (lambda x: (x > 0), (X > 0).float()),
        (lambda x: torch.fft.rfft(x), torch.view_as_real(torch.fft.rfft(X))),
        (lambda x: torch.nested.as_nested_tensor(list(2 * x)), 2 * X),
    ],
    ids=[
        "handed through", "a view handed through", "one number a sample",
        "indices first", "named tuple", "last hidden state", "logits", "nested", "batch second",
        "sparse", "csr", "quantised", "bfloat16", "half", "truth values", "complex", "nested tensor",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state", "ignore:The PyTorch API of nested")
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor")
def test_the_activation_of_an_output(make: Callable[..., Any], expected: Tensor) -> None:
    assert_rows(gram(Returns(make), X, "m"), expected)


def test_a_guess_is_said(caplog: pytest.LogCaptureFixture) -> None:
    gram(Returns(lambda x: (2 * x, 3 * x)), X, "m")
    assert "Layer m puts out tuple with parts 0, 1, of which part 0 is watched. Name another one as in 'm:0'." in (
        caplog.text
    )
    caplog.clear()
    gram(Returns(lambda x: (x, 3 * x)), X, "m")
    gram(Returns(lambda x: {"logits": 2 * x, "other": x + 1}), X, "m")
    assert not caplog.text


@pytest.mark.parametrize("chunk", [1, 6, 7, 19, 20])  # one at a time; as many as T; with one left over; all
@pytest.mark.parametrize("time", [3, 6, 7, 20])
def test_the_sample_may_be_second(time: int, chunk: int) -> None:
    x = torch.randn(N, time, 2)
    assert_rows(gram(Returns(lambda x: 2 * x.transpose(0, 1)), x, "m", chunk), 2 * x)


def test_encoders_that_take_time_first() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = gram(net, X, "layers.1", forward=lambda m, x: m(x.transpose(0, 1)))
    assert_rows(found, net(X.transpose(0, 1)).transpose(0, 1))


class Recurrent(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed, self.rnn = packed, nn.LSTM(4, 3, num_layers=2, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(x)[1][0][-1]


def test_recurrent_networks_in_the_order_of_the_samples() -> None:
    """A packed sequence holds them sorted by length, and states of all layers have the sample second."""
    net = Recurrent(packed=True)
    expected = torch.stack(
        [nn.functional.pad(net.rnn(x[:n][None])[0][0], (0, 0, 0, 6 - n)) for x, n in zip(X, LENGTHS, strict=True)]
    )
    for layer in ("rnn", "rnn:0"):
        assert_rows(gram(net, (X, LENGTHS), layer, 5), expected)
    states = torch.stack([net.rnn(x[:n][None])[1][0][:, 0] for x, n in zip(X, LENGTHS, strict=True)])
    assert_rows(gram(net, (X, LENGTHS), "rnn:1.0", 5), states)
    last = expected[torch.arange(N), LENGTHS - 1]
    assert_rows(gram(net, (X, LENGTHS), "rnn", 5, pooling="last"), last)
    assert_rows(gram(net, (X, LENGTHS), "rnn", 5, pooling="mean"), expected.sum(1) / LENGTHS[:, None])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Any = None, **named: Any) -> Tensor:
        return self.fc(x).flatten(1)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": X, "attention_mask": REAL.long()},
        {"x": X, "key_padding_mask": ~REAL},
        {"x": X, "mask": REAL},
        {"x": X, "mask": ~REAL},
        {"x": X, "lengths": LENGTHS},
        (X, REAL),
        (X, ~REAL),
    ],
    ids=["attention", "padding", "tokens", "no tokens", "lengths", "tuple", "tuple of padding"],
)
def test_pooling_heeds_what_is_real(inputs: Any) -> None:
    net = Masked()
    out = net.fc(X)
    assert_rows(gram(net, inputs, "fc", pooling="mean"), (out * REAL[..., None]).sum(1) / LENGTHS[:, None])
    assert_rows(gram(net, inputs, "fc", pooling="last"), out[torch.arange(N), LENGTHS - 1])


def test_sequences_padded_on_the_left() -> None:
    net, left = Masked(), REAL.flip(1)
    for mask in (left, ~left):
        found = gram(net, (X, mask), "fc", pooling="mean")
        assert_rows(found, (net.fc(X) * left[..., None]).sum(1) / LENGTHS[:, None])
        assert_rows(gram(net, (X, mask), "fc", pooling="last"), net.fc(X)[:, -1])


def test_pooling_by_a_function() -> None:
    net = Masked()
    taken = snapshot(net, X, layers=["fc"], pooling=middle)
    assert (taken.layers["fc"].features, taken.settings["pooling"]) == (3, "middle")
    assert worst(taken, "fc", net.fc(X)[:, 3]) < 2e-5
    with pytest.raises(ValueError, match=r"The function pooling= makes \(7, 6, 3\) .* must return \(N, d\)"):
        snapshot(net, X, layers=["fc"], pooling=lambda x: x)


def middle(x: Tensor) -> Tensor:
    return x[:, 3]


def worst(taken: Snapshot, layer: str, rows: Tensor, tau: float = 10.0) -> float:
    rows = rows.detach().double().reshape(len(rows), -1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return float(duality_gap(rows @ rows.T, taken.layers[layer].coef, tau)[1].max())


def test_a_width_that_changes_is_refused_by_name() -> None:
    class Trims(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.fc(x[:, : int(lengths.max())]).mean(1)

    net, lengths = Trims(), torch.tensor([6] * 8 + [2] * 12)
    with pytest.raises(ValueError, match=r"Layer 'fc' puts out 6 features a sample for samples 8 to 15 and 18 for"):
        snapshot(net, (X, lengths), layers=["fc"], chunk=8)
    assert snapshot(net, (X, lengths), layers=["fc"], chunk=8, pooling="mean").layers["fc"].features == 3


class Ragged(nn.Module):
    """Cuts sequences to the longest of the chunk, with padding behind the tokens or in front of them."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.fc, self.left = nn.Linear(4, 3), left

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        longest = int(attention_mask.sum(1).max())
        return self.fc(x[:, -longest:] if self.left else x[:, :longest]).sum(1)


@pytest.mark.parametrize("chunk", [3, 8, 20])
@pytest.mark.parametrize("left", [False, True])
def test_sequences_are_filled_up_to_the_longest_of_the_probe(left: bool, chunk: int) -> None:
    """Whatever runs beside them, and on whichever side the padding is, of which nothing matters."""
    net, mask = Ragged(left), (REAL.flip(1) if left else REAL).long()
    x = X.where(mask[..., None] > 0, 7.0)
    alone = [net.fc(one[real]) for one, real in zip(x, mask.bool(), strict=True)]
    expected = torch.stack([nn.functional.pad(rows, (0, 0, 0, 6 - len(rows)), value=-2.0) for rows in alone])
    batch = {"x": x, "attention_mask": mask}
    assert_rows(gram(net, batch, "fc", chunk, pad=-2.0), expected)
    real = mask[..., None] > 0
    assert_rows(gram(net, batch, "fc", chunk, pooling="mean"), (net.fc(x) * real).sum(1) / real.sum(1))
    assert_rows(gram(net, batch, "fc", chunk, pooling=lambda x: x.flatten(1), pad=-2.0), expected)


@pytest.mark.parametrize("memory", [None, 2 * 4 * N * N + 4 * N * 40])  # the latter takes features in slices
def test_images_of_other_sizes_are_filled_up(memory: int | None) -> None:
    """Of a loader whose batches cannot be joined; what a row is does not depend on its batch."""
    images = [torch.rand(3, 4 + i % 3, 5, generator=torch.Generator().manual_seed(i)) for i in range(N)]
    batches = [(image[None].repeat(2, 1, 1, 1) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), [i % 2] * 2)
               for i, image in enumerate(images[:10])]  # fmt: skip
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    probe = make_probe(DataLoader(batches, batch_size=None), 20)  # type: ignore[arg-type]
    runner, how = Runner(net, memory=memory), Rows(pad=0.0)
    watched = trace(runner, ["0"], probe.batches, how)
    ((layer, found),) = capture(runner, watched, probe.batches, how)
    rows = [net[0](batch[0]) for batch in batches]
    expected = torch.cat([nn.functional.pad(row, (0, 0, 0, 6 - row.shape[2])) for row in rows])
    assert layer.shape == (4, 6, 5)
    assert_rows(found.raw_().double(), expected)
    with pytest.raises(ValueError, match=r"Layer '0' puts out 100 features a sample .* fill them up with pad=0\.0"):
        list(capture(runner, trace(runner, ["0"], probe.batches), probe.batches))


class FixedToSeven(nn.Module):
    """Time first, and written for as many samples as a trial run has."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(4, 3), nn.Linear(3, 2)
        self.h = nn.Parameter(torch.randn(1, 7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.transpose(0, 1), self.h)[0][-1])


def test_the_dimension_of_the_samples_may_be_told() -> None:
    """Where the network runs on one number of samples alone, and there are as many tokens as samples."""
    net, x = FixedToSeven(), torch.randn(7, 7, 4)
    assert_rows(gram(net, x, "rnn", 7, batch_dim=1), net.rnn(x.transpose(0, 1), net.h)[0].transpose(0, 1))
    assert_rows(gram(net, x, "fc", 7, batch_dim=1), net(x))  # has its samples first all the same
    taken = snapshot(net, x, layers=["rnn"], batch_dim=1, pad=0.5)
    assert (taken.settings["batch_dim"], taken.settings["pad"]) == (1, 0.5)
    attention = torch.stack([x[:, :, 0] @ x[:, :, 0].T] * 7)  # (N, N, N): each dimension follows the samples
    net = Returns(lambda x: 2 * attention[: len(x), : len(x), : len(x)])
    assert_rows(gram(net, x, "m", 7, batch_dim=2), 2 * attention.movedim(2, 0))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4)])
def test_layers_that_mix_samples(norm: nn.BatchNorm1d, caplog: pytest.LogCaptureFixture) -> None:
    """Their graphs must not depend on chunk=; those that do not mix are not suspected."""
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 64)).eval()
    x = X[:, 0].sort(0).values
    taken = snapshot(net, x, layers="Linear", chunk=5)
    mixes = norm.running_mean is None
    assert ("What 2 puts out for a sample depends on which others are in the chunk" in caplog.text) == mixes
    assert ("All 20 samples are run in one chunk" in caplog.text) == mixes
    assert worst(taken, "2", net(x)) < 2e-5
    caplog.clear()
    snapshot(net, x, layers="Linear", chunk=5, memory=2 * N * N * 4 + 4 * N)
    assert ("may not fit into memory, so graphs depend on chunk=5" in caplog.text) == mixes


def test_noise_is_not_taken_for_mixing(caplog: pytest.LogCaptureFixture) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(len(x), 3)

    snapshot(nn.Sequential(Noisy(4, 3)), X[:, 0], layers=["0"])
    assert not caplog.text


@pytest.mark.parametrize(
    ("labels", "make", "predicts"),
    [
        (3, lambda x: x @ torch.ones(24, 3), True),
        (3, lambda x: {"logits": x @ torch.ones(24, 3), "hidden": x}, True),
        (3, lambda x: x, False),  # an embedding of 24 numbers
        (3, lambda x: x[:, :2], False),  # too few
        (8, lambda x: x[:, :10], True),  # two classes are not in the probe
        (2, lambda x: x[:, :20], False),
        (2, lambda x: {"logits": x[:, :20]}, True),  # of many classes
        (2, lambda x: x[:, :20] + 9 * (torch.arange(20) == torch.arange(len(x))[:, None] % 2), True),  # are right
        (2, lambda x: x[:, :20] + 9 * (torch.arange(20) == 0), False),  # are right by half, whatever the input
    ],
)
def test_predictions_come_of_logits_alone(labels: int, make: Callable[..., Any], predicts: bool) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 24))
    run = lambda m, x: make(m(x))  # noqa: E731
    taken = snapshot(net, X, torch.arange(N) % labels, layers=["1"], forward=run)
    assert (taken.predictions is not None) == predicts


@pytest.mark.parametrize("holder", ["itself", "config", "hparams", "metric"])
def test_how_many_classes_there_are_may_be_told_by_the_network(holder: str) -> None:
    class Wide(pl.LightningModule):
        def __init__(self, classes: int = 24) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 24)
            if holder == "hparams":
                self.save_hyperparameters({"num_classes": classes})
            elif holder == "metric":
                self.accuracy = MulticlassAccuracy(classes)
            elif holder == "config":
                self.config = SimpleNamespace(num_labels=classes)
            else:
                self.num_classes = classes

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    x, net = X.flatten(1), Wide()
    taken = snapshot(net, x, torch.arange(N) % 3, layers=["fc"])
    assert taken.predictions is not None
    assert torch.equal(taken.predictions, net.eval()(x).argmax(1))
    assert snapshot(Wide(10), x, torch.arange(N) % 3, layers=["fc"]).predictions is None  # another number of them


def test_features_near_the_least_of_single_precision() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False))
    x = 1e-22 * X[:, 0]
    taken = snapshot(net, x, layers=["0"])
    assert worst(taken, "0", net(x)) < 2e-5
    assert taken.layers["0"].coef.values().numel() > N


@pytest.mark.parametrize("how", [{"tau": 1000.0}, {"alpha": 50.0}])
def test_large_tau_keeps_what_it_claims(how: dict[str, float]) -> None:
    """A Gram in single precision would be off by more than the gap that is reported."""
    net = nn.Sequential(nn.Linear(4, 30))
    taken = snapshot(net, X[:, 0], layers=["0"], **how)  # type: ignore[arg-type]
    rows = nn.functional.normalize(net(X[:, 0]).detach().double(), dim=1)
    reach = (rows @ rows.T).fill_diagonal_(0).abs().amax(1)
    tau = how.get("tau", how.get("alpha", 0) / float(reach.min()))
    assert worst(taken, "0", net(X[:, 0]), tau) < 1.01 * taken.layers["0"].gap.max() + 1e-9
    assert taken.settings["alpha"] == how.get("alpha")


def test_a_long_mean_keeps_the_spread() -> None:
    """Activations that are nearly the same for all inputs, as of a fresh deep network."""
    net = nn.Sequential(nn.Linear(4, 64))
    x = 1 + 1e-3 * X[:, 0]
    taken = snapshot(net, x, layers=["0"])
    assert worst(taken, "0", net(x)) < 2e-5


def test_isolated_inputs_are_told_with_the_alpha_that_would_do(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.eye(N, 24) + 0.02 * torch.rand(N, 24, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0]
    net = nn.Sequential(nn.Identity())
    taken = snapshot(net, rows, layers=["0"])
    assert "Layer '0': tau = 10 leaves 18 of 20 samples without neighbours" in caplog.text
    assert "alpha = 2 would do" in caplog.text
    enough = snapshot(net, rows, layers=["0"], alpha=2.0)
    lonely = [int((s.layers["0"].affinity.crow_indices().diff() == 0).sum()) for s in (taken, enough)]
    assert lonely == [18, 0]
