import contextlib
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_ssc.capture import (
    balanced,
    class_names,
    isolated_random_state,
    make_probe,
    pictures,
    rows,
    split_batch,
    without_trace,
)
from tests.nets import data


class Items(Dataset[Any]):
    """A data set without readable targets whose items draw on every global random state."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return torch.rand(3) + noise, 0 if i < 150 else 1 + i % 2


def states() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist()


def test_a_data_set_is_balanced_and_repeats() -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    dataset = TensorDataset(torch.rand(84, 2), y)
    probe = make_probe(dataset, 24, seed=3)
    assert probe.labels is not None
    assert torch.bincount(probe.labels).tolist() == [10, 10, 4]
    assert probe.indices is not None
    assert torch.equal(dataset.tensors[0][probe.indices], probe.inputs)
    assert torch.equal(probe.indices, probe.indices.sort().values)
    assert make_probe(dataset, 24, seed=3).fingerprint == probe.fingerprint
    assert make_probe(dataset, 24, seed=4).fingerprint != probe.fingerprint


def test_drawing_leaves_random_states_alone_and_is_repeatable() -> None:
    before = states()
    first, again = make_probe(Items(), 30), make_probe(DataLoader(Items(), 7, shuffle=True), 30)
    assert states() == before
    assert first.fingerprint == again.fingerprint
    assert first.labels is not None
    assert torch.bincount(first.labels).tolist() == [10, 10, 10]


def test_subsets_and_loaders_are_read_without_their_sampler() -> None:
    dataset = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    probe = make_probe(DataLoader(Subset(dataset, range(10, 30)), batch_size=3, shuffle=True), 100)
    assert probe.inputs.squeeze(1).tolist() == list(range(10, 30))


def test_streams_are_balanced_within_what_was_read() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter((torch.full((2,), float(i)), i % 10 == 0) for i in range(1000))

    for source in (Stream(), DataLoader(Stream(), batch_size=8)):
        probe = make_probe(source, 20)  # reads 80, of which 8 are of class one
        assert probe.labels is not None
        assert torch.bincount(probe.labels).tolist() == [12, 8]


def test_tensors_are_taken_as_they_are() -> None:
    x, y = torch.rand(2000, 3), torch.arange(2000) % 7
    probe = make_probe((x, y), 10)
    assert len(probe) == 2000
    assert torch.equal(probe.inputs, x)
    assert probe.indices is None


@pytest.mark.parametrize(
    ("batch", "inputs", "labels"),
    [
        ((1.0, [2, 3]), 1.0, [2, 3]),
        ((1.0, 2.0, [4, 5]), (1.0, 2.0), [4, 5]),
        ((1.0,), 1.0, None),
        ((1.0, torch.rand(3, 4)), 1.0, None),  # several labels at once
        ((1.0, torch.rand(3)), 1.0, None),  # a regression
        ((1.0, torch.tensor([[1], [2]])), 1.0, [1, 2]),
    ],
)
def test_batches(batch: Any, inputs: Any, labels: Any) -> None:
    got_inputs, got_labels = split_batch(batch)
    assert got_inputs == inputs
    assert (None if got_labels is None else got_labels.tolist()) == labels


def test_wrong_probes() -> None:
    with pytest.raises(ValueError, match="2 samples; a graph over inputs needs at least 3"):
        make_probe((torch.rand(2, 3), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"5 inputs and 4 labels\. Give one"):
        make_probe((torch.rand(5, 3), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(ValueError, match=r"sizes \[4, 5\]"):
        make_probe((torch.rand(4, 3), torch.rand(5, 3), torch.arange(4)))


def test_balanced_takes_all_when_there_are_no_more() -> None:
    assert balanced(torch.tensor([1, 0, 1]), 10).tolist() == [0, 1, 2]


def test_isolation_also_when_it_raises() -> None:
    before = states()
    with contextlib.suppress(KeyError), isolated_random_state():
        assert Items()[0]
        raise KeyError
    assert states() == before


class Awkward(nn.Module):
    """Frozen batch norm that must stay so, a buffer that every forward changes, and a train() with side effects."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.norm, self.drop = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))
        self.switched = 0

    def train(self, mode: bool = True) -> "Awkward":
        super().train(mode)
        self.switched += 1
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.drop(self.norm(self.frozen(x)))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    net = Awkward().train()
    net.drop.eval()
    flags = {name: module.training for name, module in net.named_modules()}
    assert len(set(flags.values())) == 2
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    switched, random_states = net.switched, states()
    try:
        with without_trace(net):
            out = net(torch.rand(5, 3) * 10)
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in net.modules())
            torch.rand(1)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert not out.requires_grad
    assert torch.is_grad_enabled()
    assert {name: module.training for name, module in net.named_modules()} == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert (net.switched, states()) == (switched, random_states)


def test_pictures_span_the_range_of_each_channel() -> None:
    x = torch.rand(6, 3, 100, 50) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] - 4
    shown = pictures(x)
    assert shown is not None
    assert shown.shape == (6, 64, 32, 3)
    assert shown.dtype == np.uint8
    grey = pictures(torch.linspace(-1, 1, 4 * 16).reshape(4, 1, 4, 4))
    assert grey is not None
    assert (grey.min(), grey.max()) == (0, 255)
    assert pictures({"x": x}) is None


class Tokenizer:
    def batch_decode(self, tokens: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join("padabc"[t + 2] for t in row if t or not skip_special_tokens) for row in tokens]


def test_rows_of_what_is_no_picture() -> None:
    class Owner:
        tokenizer = Tokenizer()
        feature_names = np.array(["age", "size"])

    tokens = torch.tensor([[1, 2, 0], [3, 1, 2], [1, 1, 0]])
    assert rows(tokens) == ("1 2 0", "3 1 2", "1 1 0")
    words = ("a b", "c a b", "a a")
    assert rows({"attention_mask": tokens > 0, "input_ids": tokens}, None, Owner()) == words
    batches = [({"input_ids": part}, torch.arange(len(part))) for part in tokens.split(2)]
    assert rows(make_probe(DataLoader(batches, batch_size=None)).inputs, Owner()) == words
    Owner.tokenizer.batch_decode = None  # type: ignore[method-assign,assignment]
    assert rows(tokens, Owner()) == rows(tokens)
    numbers = torch.tensor([[0.25, 1e6], [-3.0, float("nan")]])
    assert rows((numbers, tokens), Owner()) == ("age 0.25, size 1e+06", "age -3, size nan")
    assert rows(numbers, most=6) == ("0.25, ", "-3, na")
    assert rows(torch.rand(4, 3, 8, 8), Owner()) == rows(torch.rand(4, 5, 6)) == rows("text") == ()


def test_class_names_come_from_the_first_that_has_them() -> None:
    class Named:
        classes = ("a", "b")

    assert class_names(object(), None, Named()) == ("a", "b")
    assert class_names(object()) == ()


def test_targets_of_many_kinds() -> None:
    class Named(Dataset[Any]):
        def __init__(self, targets: Any) -> None:
            self.targets = targets

        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.rand(3), i % 2

    for targets, expected in (
        (["cat", "dog"] * 3, [0, 1] * 3),
        (np.array(["b", "a"] * 3), [1, 0] * 3),
        ([{"boxes": 1}] * 6, None),
        ([[1], [1, 2], [1], [1], [1], [1]], None),
        ([None] * 6, None),
    ):
        probe = make_probe(Named(targets), 4)
        assert probe.labels is not None  # from the items
        found = split_batch((torch.rand(6, 3), targets))[1]
        assert (None if found is None else found.tolist()) == expected


def test_loaders_of_many_kinds() -> None:
    batches = [(torch.full((5, 2), float(i)), torch.arange(5)) for i in range(4)]
    for source in (DataLoader(batches, batch_size=None), iter(batches)):  # type: ignore[arg-type]
        probe = make_probe(source, 10)  # type: ignore[arg-type]
        assert probe.labels is not None
        assert torch.bincount(probe.labels).tolist() == [2] * 5
    with pytest.raises(ValueError, match="The probe's data set is empty"):
        make_probe(TensorDataset(torch.rand(0, 3), torch.arange(0)))


def test_buffers_that_a_forward_replaces_come_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    net = Counts()
    buffer = net.calls
    with without_trace(net):
        net(torch.rand(3))
    assert net.calls is buffer
    assert float(buffer) == 0


def test_pictures_of_strips() -> None:
    shown = pictures(torch.rand(4, 1, 1, 1000))
    assert shown is not None
    assert shown.shape == (4, 1, 64, 3)


def test_a_probe_larger_than_the_set_is_all_of_it_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    assert len(make_probe(data(30), 31)) == 30
    assert (
        "The probe is all of the 30 samples that there are, fewer than the 31 asked for. Lower probe_size, or name a "
        "larger data set for the probe."
    ) in caplog.text
    caplog.clear()
    assert len(make_probe(data(30), 30)) == len(make_probe(data(30).tensors, 31)) == 30  # tensors are taken whole
    assert not caplog.text


@pytest.mark.parametrize("classes", [1, 3, 700])
def test_balanced_takes_the_first_of_every_class_then_the_second(classes: int) -> None:
    labels = torch.randint(classes, (2000,), generator=torch.Generator().manual_seed(classes)) - classes // 2
    seen: Counter[int] = Counter()
    turns = []
    for position, label in enumerate(labels.tolist()):
        turns.append((seen[label], position))
        seen[label] += 1
    for size in (0, 1, classes, 1111, 2000):
        assert balanced(labels, size).tolist() == sorted(position for _, position in sorted(turns)[:size])
