import copy
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc import snapshot
from lightning_ssc.capture import Layer, Pooling, Returned, Rows, Runner, WatchedLayer, capture, plan_passes, trace
from lightning_ssc.capture.plan import FeatureSlice
from lightning_ssc.functional import duality_gap
from lightning_ssc.functional.grams import centred_gram
from tests.nets import convnet


def grams(model: nn.Module, layers: Any, x: Any, pooling: Pooling = "flatten", **kwargs: Any) -> dict[str, Tensor]:
    runner = Runner(model, **kwargs)
    how = Rows(pooling)
    watched = trace(runner, layers, x, how)
    return {layer.label: gram.raw_() for layer, gram in capture(runner, watched, x, how)}


def reference(features: Tensor) -> Tensor:
    flat = features.detach().double().flatten(1)
    return flat @ flat.T


@pytest.fixture
def x() -> Tensor:
    return torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_grams_are_those_of_the_activations(x: Tensor) -> None:
    net = convnet()
    found = grams(net, "**", x, chunk=64)
    net.eval()
    out = x
    for name, module in net.named_children():
        out = module(out)
        if name in ("1", "5"):  # an in-place activation is about to overwrite this output
            out = out.clone()
        torch.testing.assert_close(found[name].double(), reference(out), rtol=1e-5, atol=1e-4)
        assert torch.equal(found[name], found[name].T)


def test_a_large_offset_costs_no_precision() -> None:
    spread = torch.randn(50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (spread + 1e3).float()
    net = nn.Sequential(nn.Identity())
    _, gram = next(capture(Runner(net), trace(Runner(net), "0", x), x))
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(gram.centred.double(), centred @ centred.T, rtol=1e-4, atol=1e-3)
    uncentred = x @ x.T
    late = uncentred - uncentred.mean(0) - uncentred.mean(1, keepdim=True) + uncentred.mean()
    assert not torch.allclose(late.double(), centred @ centred.T, rtol=1e-4, atol=1e-3)  # the offset is large enough
    torch.testing.assert_close(gram.raw_().double(), reference(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("samples", [1, 256, 257, 1536, 1537, 3203])  # at the edges of blocks and of halves
def test_grams_of_any_number_of_samples_are_whole_and_symmetric(samples: int) -> None:
    x = torch.randn(samples, 7, generator=torch.Generator().manual_seed(2))
    found = centred_gram(x.clone()).centred
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(found.double(), centred @ centred.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["no mean", "a long mean"])
def test_grams_of_unit_length(offset: float) -> None:
    x = torch.randn(60, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + offset
    x[7] = 0
    x[8:12] = x[12]  # alike, where rounding may lead beyond 1
    x = x.float()
    unit = torch.nn.functional.normalize(x.double())
    found = centred_gram(x.clone()).unit_()
    torch.testing.assert_close(found.double(), unit @ unit.T, rtol=0, atol=1e-6)
    assert found.abs().max() == 1
    assert torch.equal(found.diagonal(), (torch.arange(60) != 7).to(found.dtype))


def test_grams_of_slices_add_up() -> None:
    x = 3 + torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    tiny = 1e-20 * x[:, 20:]  # takes the whole to double precision
    for parts in (x.split(11, dim=1), (x[:, :20], tiny), (tiny, x[:, :20])):
        gram = None
        for part in parts:
            gram = centred_gram(part.clone(), onto=gram)
        assert gram is not None
        whole = torch.cat(parts, 1)
        torch.testing.assert_close(gram.raw_().double(), reference(whole), rtol=1e-5, atol=0)
        assert gram.idle == centred_gram(whole.clone()).idle


def test_layers_come_in_order_of_execution() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    net = Crossed()
    assert [w.label for w in trace(Runner(net), "Linear", torch.rand(3, 4))] == ["first", "last"]
    with pytest.raises(ValueError, match="never run in a forward pass over the probe: unused"):
        trace(Runner(net), ["first", "unused"], torch.rand(3, 4))


def test_unused_layers_of_a_pattern_are_reported_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    with caplog.at_level(logging.WARNING, "lightning_ssc"):
        watched = trace(Runner(net, lambda m, x: m["b"](x)), "Linear", torch.rand(3, 4))
    assert [w.label for w in watched] == ["b"]
    assert "Not watched, because they never run in a forward pass over the probe: a." in caplog.text
    with pytest.raises(ValueError, match="None of the chosen layers runs"):
        trace(Runner(net, lambda m, x: x), "Linear", torch.rand(3, 4))


def test_every_call_of_a_module_is_a_layer_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.fc(self.act(self.fc(x))))

    net, x = Twice(), torch.randn(9, 4)
    found = grams(net, ["fc", "act"], x, chunk=4)
    assert list(found) == ["fc.call1", "act.call1", "fc.call2", "act.call2"]
    first = net.fc(x)
    torch.testing.assert_close(found["fc.call1"].double(), reference(first), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["fc.call2"].double(), reference(net.fc(first.relu())), rtol=1e-5, atol=1e-6)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Data:
    name: str
    logits: Tensor


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "part", "scale"),
    [
        (lambda x: (x, 2 * x), None, 2),  # not the input that is handed through
        (lambda x: (x, 2 * x), "1", 2),
        (lambda x: {"a": x, "b": {"c": 3 * x}}, "b.c", 3),
        (lambda x: Pair(x, 2 * x), "right", 2),
        (lambda x: Data("x", 5 * x), None, 5),
        (lambda x: Data("x", 5 * x), "logits", 5),
        (lambda x: [torch.zeros(()), (None, 7 * x)], None, 7),
    ],
)
def test_outputs_in_parts(make: Any, part: str | None, scale: int) -> None:
    net, x = nn.Sequential(OrderedDict(m=Returns(make))), torch.rand(5, 3)
    found = grams(net, "m" if part is None else f"m:{part}", x, forward=lambda m, x: m.m(x))
    (gram,) = found.values()
    torch.testing.assert_close(gram.double(), scale**2 * reference(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "pattern", "message"),
    [
        (lambda x: (x, 2 * x), "m:2", r"has no part '2'; it is tuple with parts 0, 1\. Name one"),
        (lambda x: {"a": "text"}, "m:a", r"Part 'a' of layer 'm' is str\. Name a part that is a tensor"),
        (lambda x: {"a": "text"}, "m", r"puts out dict without a tensor of 5 rows. Name the part .* 'm:logits'"),
        (lambda x: x[:3], "m", r"puts out shape \(3, 3\) for 5 samples.*batch_first"),
    ],
)
def test_outputs_that_cannot_be_used(make: Any, pattern: str, message: str) -> None:
    net = nn.Sequential(OrderedDict(m=Returns(make)))
    with pytest.raises(ValueError, match=message):
        trace(Runner(net), pattern, torch.rand(5, 3))


@pytest.mark.parametrize(
    ("pooling", "shape", "pooled"),
    [
        ("mean", (5, 3, 4, 4), lambda x: x.mean((2, 3))),
        ("mean", (5, 7, 3), lambda x: x.mean(1)),
        ("cls", (5, 7, 3), lambda x: x[:, 0]),
        ("mean", (5, 3), lambda x: x),
        ("flatten", (5, 3, 4, 4), lambda x: x.flatten(1)),
    ],
)
def test_pooling(pooling: Any, shape: tuple[int, ...], pooled: Any) -> None:
    net, x = nn.Sequential(nn.Identity()), torch.rand(shape)
    found = grams(net, "0", x, pooling=pooling)
    torch.testing.assert_close(found["0"].double(), reference(pooled(x)), rtol=1e-5, atol=1e-6)


def test_no_class_token_in_images() -> None:
    with pytest.raises(ValueError, match="has no class token"):
        grams(nn.Sequential(nn.Identity()), "0", torch.rand(5, 3, 4, 4), pooling="cls")


def test_inputs_of_several_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(a + b)

    net, a, b = Two(), torch.rand(7, 3), torch.rand(7, 3)
    by_position, by_name = grams(net, "fc", (a, b), chunk=3), grams(net, "fc", {"b": b, "a": a})
    torch.testing.assert_close(by_position, by_name)
    torch.testing.assert_close(by_name["fc"].double(), reference(net.fc(a + b)), rtol=1e-5, atol=1e-6)


def test_a_small_budget_gives_the_same_in_more_passes(x: Tensor) -> None:
    net, forwards, ends = convnet(), [], []
    net[0].register_forward_hook(lambda *_: forwards.append(1))
    net.register_forward_hook(lambda *_: ends.append(1))
    whole = grams(net, "**", x, memory=1 << 30)
    one = len(forwards)
    tight = grams(net, "**", x, memory=2 * 300 * 300 * 4 + 300 * 4 * 100)  # a hundred features at a time
    assert one == 3 + 2  # three that are traced, then 300 samples in chunks of 256
    assert (
        len(forwards) - one == 3 + 2 * 19
    )  # four layers of 384 features in 4 slices each, then 72, 72, and 72 + 8 + 8 + 3
    assert len(ends) == 3 + 2 + 3 + 2  # all passes but the last end with the layers they want
    assert list(whole) == list(tight)
    for name, gram in whole.items():
        torch.testing.assert_close(tight[name], gram, rtol=1e-5, atol=1e-4)


def test_outputs_and_buffers_are_as_from_one_pass(x: Tensor) -> None:
    """A pass that ends early leaves no trace either, and what the network returns comes from one that does not."""
    net = convnet().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    outputs: dict[int, Returned] = {}
    watched = trace(Runner(net), "**", x)
    runner = Runner(net, memory=2 * 300 * 300 * 4 + 300 * 4 * 100)
    tight = [gram for _, gram in capture(runner, watched, x, outputs=outputs)]
    assert len(tight) == len(watched)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.cat([output.rows for output in outputs.values()]), copy.deepcopy(net).eval()(x)
        )
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_that_catches_exceptions_does_not_see_the_end_of_a_pass(x: Tensor) -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.caught = convnet(), 0

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)
            except Exception:
                self.caught += 1
                raise

    net = Careful()
    grams(net, "**", x, memory=2 * 300 * 300 * 4 + 300 * 4 * 100)
    assert net.caught == 0


def test_a_pass_that_ends_early_leaves_attributes_as_they_were(x: Tensor) -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.inside, self.calls = convnet(), False, 0

        def forward(self, x: Tensor) -> Tensor:
            assert not self.inside
            self.inside, self.fresh = True, True
            out: Tensor = self.inner(x)
            self.inside = False
            del self.fresh
            return out

    net = Guarded()
    names = set(vars(net))
    grams(net, "**", x, memory=2 * 300 * 300 * 4 + 300 * 4 * 100)
    assert not net.inside
    assert set(vars(net)) == names


def test_plans() -> None:
    room = 100 * 4 * 10  # ten samples, a hundred features
    grams_of_ten = 2 * 10 * 10 * 4

    def plan(features: list[int]) -> list[list[FeatureSlice]]:
        layers = [WatchedLayer(Layer(str(i)), 0, str(i), count) for i, count in enumerate(features)]
        return plan_passes(layers, 10, grams_of_ten + room)

    assert plan([40, 60]) == [[FeatureSlice(0, 0, 40), FeatureSlice(1, 0, 60)]]  # an exact fit
    assert plan([40, 61]) == [[FeatureSlice(0, 0, 40)], [FeatureSlice(1, 0, 61)]]
    assert plan([201]) == [[FeatureSlice(0, 0, 100)], [FeatureSlice(0, 100, 200)], [FeatureSlice(0, 200, 201)]]
    assert plan([150, 50]) == [[FeatureSlice(0, 0, 100)], [FeatureSlice(0, 100, 150), FeatureSlice(1, 0, 50)]]
    assert plan([40, 150]) == [[FeatureSlice(0, 0, 40), FeatureSlice(1, 0, 60)], [FeatureSlice(1, 60, 150)]]
    assert plan([100, 150]) == [[FeatureSlice(0, 0, 100)], [FeatureSlice(1, 0, 100)], [FeatureSlice(1, 100, 150)]]
    double = WatchedLayer(Layer("a"), 0, "a", 100, torch.float64)
    assert len(plan_passes([double], 10, 2 * grams_of_ten + room)) == 2  # twice the bytes a feature
    with pytest.raises(ValueError, match=r"budget of 0\.0 MB does not hold .* 1000 samples; it takes at least 8\.0 MB"):
        plan_passes([WatchedLayer(Layer("a"), 0, "a", 10)], 1000, 1000)


def test_the_plan_is_told(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lightning_ssc"):
        grams(convnet(), "conv", x, memory=2 * 300 * 300 * 4 + 300 * 4 * 300)
    assert "2 passes" in caplog.text
    assert "memory=1.1 MB" in caplog.text


@pytest.mark.parametrize("sizes", [{"memory": 3.5e9}, {"memory": 0}, {"chunk": 0}, {"chunk": 1.5}])
def test_sizes_that_are_none(x: Tensor, sizes: dict[str, Any]) -> None:
    (name, value), net = *sizes.items(), convnet()
    with pytest.raises(ValueError, match=rf"{name} must be a positive whole number of .*; got {value!r}\."):
        snapshot(net, x, **sizes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bad: float) -> None:
    x = torch.rand(10, 4)
    x[3, 2] = x[5, 0] = bad
    net = nn.Sequential(OrderedDict(inner=nn.Identity()))
    with pytest.raises(ValueError, match=r"'inner' puts out NaN or infinity for 2 of 10 samples, first for sample 3"):
        grams(net, "inner", x)


def test_hooks_and_settings_are_gone_also_after_an_error(x: Tensor) -> None:
    net = convnet()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        grams(net, "conv", x)
        with pytest.raises(RuntimeError):
            grams(net, "conv", torch.rand(4, 2, 8, 8))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert not any(module._forward_hooks for module in net.modules())
    assert net.training
    assert torch.is_grad_enabled()


def test_an_abandoned_capture_leaves_nothing(x: Tensor) -> None:
    net = convnet()
    running = capture(Runner(net), trace(Runner(net), "conv", x), x)
    next(running)
    assert net.training  # a Gram is handed over outside the forward pass
    assert torch.is_grad_enabled()
    running.close()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_compiled_networks(how: str, x: Tensor) -> None:
    plain = convnet().eval()
    expected = grams(plain, "conv", x)
    net: nn.Module = plain
    if how == "whole":
        net = torch.compile(plain, backend="eager")  # type: ignore[assignment]
    elif how == "part":
        net = nn.Sequential(OrderedDict(net=torch.compile(plain, backend="eager")))  # type: ignore[arg-type]
    else:
        plain.compile(backend="eager")
    with torch.no_grad():
        net(x)  # compiled as the probe runs it, before it is watched: hooks added now never fire in compiled code
    found = grams(net, "conv", x, chunk=len(x))
    assert [name.removeprefix("net.") for name in found] == list(expected)
    for gram, other in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(gram, other)


def test_channels_last_and_half_precision(x: Tensor) -> None:
    net = convnet().to(memory_format=torch.channels_last)
    expected = grams(net, "conv", x)
    found = grams(net, "conv", x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    half = grams(net, "conv", x, context=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    for name, gram in half.items():
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram, expected[name], rtol=0.1, atol=0.1 * float(expected[name].diagonal().max()))


def test_features_keep_their_places_where_the_memory_format_changes_between_chunks() -> None:
    class Changes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.contiguous(memory_format=torch.channels_last if len(x) > 5 else torch.contiguous_format)

    x = torch.rand(8 + 8 + 4, 3, 5, 5)
    net = nn.Sequential(Changes())
    (layer,) = trace(Runner(net), ["0"], x)
    assert layer.channels_last
    (whole,) = (gram.raw_() for _, gram in capture(Runner(net, chunk=8), [layer], x))
    torch.testing.assert_close(whole.double(), reference(x), rtol=1e-5, atol=1e-5)
    in_slices = 2 * 20 * 20 * 4 + 20 * 4 * 10
    (sliced,) = (gram.raw_() for _, gram in capture(Runner(net, chunk=8, memory=in_slices), [layer], x))
    torch.testing.assert_close(sliced.double(), reference(x), rtol=1e-5, atol=1e-5)


def test_samples_near_zero_beside_a_large_mean_are_told_from_zero_and_solved() -> None:
    """As in an eval-mode network early in training: most activations huge and alike, some next to nothing."""
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + 1e3 * torch.randn(40, 64, generator=generator)
    x[[3, 17]] = 0
    x[25] *= 1e-5
    net = nn.Sequential(nn.Identity())
    ((_, gram),) = capture(Runner(net), trace(Runner(net), ["0"], x), x)
    raw = gram.raw_()
    assert not raw[[3, 17]].any()
    assert not raw[:, [3, 17]].any()
    torch.testing.assert_close(raw.double(), reference(x), rtol=1e-4, atol=0)
    taken = snapshot(net, x, layers=["0"]).layers["0"]
    assert taken.converged
    coef = taken.coef.to_dense()
    assert not coef[[3, 17]].any()
    unit = nn.functional.normalize(x.double(), dim=1)
    assert float(duality_gap(unit @ unit.T, coef, 10.0)[1].max()) < 2e-5


@pytest.mark.parametrize("features", [12, 200])
def test_a_long_mean_is_taken_in_double_precision(features: int) -> None:
    """In single precision what is left is the Gram of no samples, on which the solver may go round in circles."""
    x = 1 + 1e-2 * torch.randn(60, features, generator=torch.Generator().manual_seed(0)).relu()
    net, n = nn.Sequential(nn.Identity()), 60
    watched = trace(Runner(net), ["0"], x)
    for memory in (None, 2 * 4 * n * n + 4 * n * (features // 3)):  # whole and in slices
        ((_, gram),) = capture(Runner(net, memory=memory), watched, x)
        torch.testing.assert_close(gram.raw_(), reference(x), rtol=1e-13, atol=0)
        assert gram.idle == (0, 0)


def test_large_finite_activations_are_not_taken_for_infinite() -> None:
    x = torch.full((10, 4), 1e38)
    x[:5] *= -1
    x[:, 1:] = 1e38  # its sum is infinite in float32, its mean is not
    net = nn.Sequential(nn.Identity())
    watched = trace(Runner(net), ["0"], x * 1e-38)
    ((_, gram),) = capture(Runner(net), watched, x)
    assert gram.centred.shape == (10, 10)
    with pytest.raises(ValueError, match=r"Layer '0': gram holds NaN or infinity"):  # their squares are infinite
        snapshot(net, x, layers="0")


def test_float64_networks_keep_their_precision() -> None:
    x = 1e9 + torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Identity())
    _, gram = next(capture(Runner(net), trace(Runner(net), "0", x), x))
    centred = x - x.mean(0)
    torch.testing.assert_close(gram.centred, centred @ centred.T, rtol=1e-6, atol=1e-6)


def test_a_layer_that_does_not_always_run_is_named() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if x.mean() > 0 else self.a(x)

    net, x = Sometimes(), torch.ones(20, 3)
    x[10:] = -1
    with pytest.raises(ValueError, match=r"Layer 'b' ran for the first samples .* not for samples 10 to 19"):
        grams(net, "Linear", x, chunk=10)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has no fp32_precision")
def test_either_way_of_setting_the_precision_is_restored(x: Tensor) -> None:
    backends: Any = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        grams(convnet(), "conv", x)
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting
