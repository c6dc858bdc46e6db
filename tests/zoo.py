"""Public networks, unmodified and with random weights: what the presets watch, that gaps are true and nothing changes.

Run by hand: ``python tests/zoo.py [--only NAME ...] [--library NAME ...] [--table] [--fits]``. What is not installed
(``pip install ".[zoo]"``) is skipped. Of every network three snapshots are taken, one a preset, of a few small inputs;
then its weights, buffers and modes must be what they were, bit for bit, every layer's gap must hold for what plain
hooks see, in float64, and the layers must be those written down here, where they are. ``tests/test_zoo.py`` runs those
that the tests' own requirements have.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, too

from lightning_ssc import snapshot
from tests.zoo_fits import FITS, check_fit
from tests.zoo_networks import N, Network, networks

PRESETS = ("blocks", "stages", "conv")
TRUE_GAP = 1e-4  # asked for is 1e-5 of what was captured in single precision


@dataclass(frozen=True)
class Outcome:
    """What became of a network: the layers of each preset, the worst true gap, and what is wrong."""

    layers: dict[str, list[str]]
    gap: float
    faults: list[str]


def expand(pattern: str) -> list[str]:
    """Names from a text in which ``{0..3}`` stands for numbers and ``{a,b}`` for alternatives.

    Example:
        >>> expand("conv1 layer{1..2}.{0,1} fc")
        ['conv1', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'fc']
    """
    names = []
    for word in pattern.split():
        parts = re.split(r"\{([^}]*)\}", word)
        choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    return [str(i) for i in range(int(first), int(last) + 1)] if dots else text.split(",")


# -- Checks


def check(network: Network) -> Outcome:
    """Take a snapshot with every preset, and hold it against what plain hooks see."""
    torch.manual_seed(0)
    net, inputs = network.make(), network.inputs()
    before = _state(net)
    layers, graphs, faults, gap = {}, {}, [], 0.0
    for preset in PRESETS:
        try:
            taken = snapshot(net, inputs, layers=preset, forward=network.forward, linear_cka=False)
        except ValueError as error:
            layers[preset] = []
            if not (
                preset == "conv" and "finds nothing" in str(error) and not _runs_convolutions(network, net, inputs)
            ):
                faults.append(f"{preset}: {error}")
            continue
        layers[preset], graphs[preset] = list(taken.layers), taken.layers
    after = _state(net)
    if before.keys() != after.keys() or not all(_same(before[key], after[key]) for key in before):
        faults.append(
            f"changed: {[key for key in before if key not in after or not _same(before[key], after[key])][:5]}"
        )
    for preset, found in graphs.items():  # only now: a plain forward pass may leave its traces
        seen = hooked_outputs(network, net, inputs, list(found))
        for name, graph in found.items():
            worst = true_gap(seen[name], graph.coef)
            gap = max(gap, worst)
            if not worst <= TRUE_GAP:
                faults.append(f"{preset}: the gap of {name} is {worst:.1e} for {float(graph.gap.max()):.1e}")
    for preset, expected in (("blocks", network.blocks), ("stages", network.stages)):
        if expected and layers[preset] != expand(expected):
            faults.append(f"{preset} are {' '.join(layers[preset])}")
    return Outcome(layers, gap, faults)


def _state(net: nn.Module) -> dict[str, Any]:
    tensors = itertools.chain(net.named_parameters(), net.named_buffers())
    kept: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in tensors}
    return kept | {f"{name} is training": module.training for name, module in net.named_modules()}


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) or bool((a.isnan() & b.isnan()).any()) if isinstance(a, Tensor) else a == b


def _run(network: Network, net: nn.Module, inputs: Any) -> None:
    """One forward pass in evaluation mode, after which modes are what they were."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    with torch.no_grad():
        if network.forward is not None:
            network.forward(net, inputs)
        else:
            net(**inputs) if isinstance(inputs, dict) else net(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    for module, mode in modes.items():
        module.training = mode


def _runs_convolutions(network: Network, net: nn.Module, inputs: Any) -> bool:
    """Whether a convolution runs as a module; some networks use but its weights."""
    convolutions = [m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    ran: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in convolutions]
    _run(network, net, inputs)
    for hook in hooks:
        hook.remove()
    return bool(ran)


def hooked_outputs(network: Network, net: nn.Module, inputs: Any, labels: list[str]) -> dict[str, Any]:
    """What layers put out in evaluation mode over all inputs at once, as rows in float64, from hooks of our own."""
    modules = dict(net.named_modules())
    calls: dict[str, list[Any]] = {label.partition(".call")[0]: [] for label in labels}
    hooks = [
        modules[name].register_forward_hook(lambda m, args, output, kept=kept: kept.append(_rows(output, args)))
        for name, kept in calls.items()
    ]
    _run(network, net, inputs)
    for hook in hooks:
        hook.remove()
    places = [(label, *label.partition(".call")[::2]) for label in labels]
    return {label: calls[name][int(call or 1) - 1] for label, name, call in places}


def _rows(output: Any, given: tuple[Any, ...] = ()) -> Tensor | None:
    if isinstance(output, Tensor):
        axis = next((axis for axis, size in enumerate(output.shape[:2]) if size == N), None)  # speech has time first
        if axis is None:
            return None
        output = torch.view_as_real(output) if output.is_complex() else output
        return output.detach().movedim(axis, 0).double().reshape(N, -1).clone()
    values = output.values() if hasattr(output, "values") else output if isinstance(output, (list, tuple)) else ()
    made = [value for value in values if not any(value is other for other in given)]  # not an input handed through
    return next((found for value in made if (found := _rows(value)) is not None), None)


def true_gap(x: Tensor, coef: Tensor, tau: float = 10.0) -> float:
    """The largest relative duality gap of rows of ``coef`` for samples ``x`` of unit length, from the definition."""
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)
    c = coef.to_dense().double()
    residual = x - c @ x
    primal = c.abs().sum(1) + tau / 2 * residual.square().sum(1)
    inner = (tau * residual @ x.T).fill_diagonal_(0)
    theta = (1 / inner.abs().amax(1).clamp_min(1e-300)).clamp_max(1)[:, None] * tau * residual
    dual = (theta * x).sum(1) - theta.square().sum(1) / (2 * tau)
    return float(((primal - dual) / primal.clamp_min(1e-300)).max())


# -- The table of .site/pages/layers.md

TABLE = {
    "ResNet-18": "torchvision/resnet18", "VGG-11": "torchvision/vgg11", "DenseNet-121": "torchvision/densenet121",
    "GoogLeNet": "torchvision/googlenet", "MobileNetV2": "torchvision/mobilenet_v2",
    "EfficientNet-B0": "torchvision/efficientnet_b0", "RegNetY-200MF": "timm/regnety_002",
    "ConvNeXt": "timm/convnext_atto", "Swin-T": "timm/swin_tiny_patch4_window7_224",
    "ViT-Ti": "timm/vit_tiny_patch16_224", "MLP-Mixer": "timm/mixer_s32_224", "MobileViT": "timm/mobilevit_xxs",
    "BERT": "transformers/bert", "BERT with LoRA": "peft/bert Lora", "GPT-2": "transformers/gpt2",
    "LLaMA": "transformers/llama", "T5": "transformers/t5", "Mamba": "transformers/mamba",
    "U-Net (ResNet-18)": "segmentation_models_pytorch/Unet", "U-Net of a diffusion": "diffusers/UNet2DModel",
}  # fmt: skip


def table(outcomes: dict[str, Outcome]) -> str:
    """What the presets watch in well-known networks, as Markdown."""
    lines = ["| network | `blocks` | `stages` | `conv` |", "|---|---|---|---|"]
    for title, name in TABLE.items():
        found = outcomes.get(name)
        if found is not None and not found.faults:
            blocks, stages, conv = (found.layers[preset] for preset in PRESETS)
            lines.append(f"| {title} | {cell(blocks)} | {cell(stages)} | {len(conv) or 'none'} |")
    return "\n".join(lines)


def cell(names: list[str]) -> str:
    """Layers as the table shows them."""
    return " ".join(f"`{part}`" for part in shortened(names))


def shortened(names: list[str]) -> list[str]:
    """Names that differ in one number, next to one another, as one.

    Example:
        >>> shortened(["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"])
        ['conv1', 'layer{1..2}.{0..1}', 'fc']
    """
    runs: list[list[Any]] = [[re.split(r"(\d+)", name), {}] for name in names]
    for place in range(max((len(parts) // 2 for parts, _ in runs), default=0) - 1, -1, -1):
        joined: list[list[Any]] = []
        for parts, ranges in runs:
            i = 2 * place + 1
            if joined and i < len(parts) and len(joined[-1][0]) == len(parts):
                other, known = joined[-1]
                alike = all(a == b for k, (a, b) in enumerate(zip(other, parts, strict=True)) if k != i)
                first, last = known.get(i, (int(other[i]), int(other[i])))
                same = {k: v for k, v in known.items() if k != i} == ranges
                if alike and same and last + 1 == int(parts[i]):
                    known[i] = (first, last + 1)
                    continue
            joined.append([parts, dict(ranges)])
        runs = joined
    return [
        "".join(f"{{{ranges[i][0]}..{ranges[i][1]}}}" if i in ranges else part for i, part in enumerate(parts))
        for parts, ranges in runs
    ]


# -- As a script


def _fits(only: list[str] | None) -> int:
    known = {f"{network.package}/{network.name}": network for network in networks()}
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    faulty = []
    for title, name in FITS.items():
        if (only and title not in only) or find_spec(known[name].package) is None:
            continue
        start = time.perf_counter()
        try:
            faults = check_fit(known[name])
        except Exception as error:
            faults = [f"{type(error).__name__}: {str(error)[:500]}"]
        verdict = "FAULT" if faults else "ok"
        print(f"{verdict:5} {title} ({name}) {time.perf_counter() - start:.1f} s {' '.join(faults)}", flush=True)
        faulty += [title] if faults else []
    print(f"fits with faults: {', '.join(faulty) or 'none'}")
    return bool(faulty)


def main() -> int:
    """Check the networks asked for; the exit status is 1 where one of them is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks by name")
    parser.add_argument("--library", nargs="+", metavar="NAME", help="networks of some libraries")
    parser.add_argument("--table", action="store_true", help="print the table of .site/pages/layers.md")
    parser.add_argument("--fits", action="store_true", help="train twelve of them with SSCMonitor() and without")
    parser.add_argument("--verbose", action="store_true", help="print the layers")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.fits:
        return _fits(args.only)
    chosen = [
        network
        for network in networks()
        if (not args.only or network.name in args.only)
        and (not args.library or network.package in args.library)
        and (not args.table or f"{network.package}/{network.name}" in TABLE.values())
    ]
    outcomes = {}
    faulty, skipped, written = [], set(), 0
    for network in chosen:
        if find_spec(network.package) is None:
            skipped.add(network.package)
            continue
        start = time.perf_counter()
        try:
            outcome = check(network)
        except Exception as error:  # a network that cannot be made or run is a line, too
            outcome = Outcome({}, float("nan"), [f"{type(error).__name__}: {str(error)[:500]}"])
        outcomes[f"{network.package}/{network.name}"] = outcome
        counts = " ".join(f"{preset} {len(names)}" for preset, names in outcome.layers.items())
        known = " expected" if network.blocks and not outcome.faults else ""
        seconds = time.perf_counter() - start
        verdict = "FAULT" if outcome.faults else "ok"
        print(
            f"{verdict:5} {network.package}/{network.name}: {counts} gap {outcome.gap:.0e}{known} {seconds:.1f} s",
            flush=True,
        )
        for fault in outcome.faults:
            print(f"      {' '.join(fault.split())}", flush=True)
        if args.verbose:
            for preset, names in outcome.layers.items():
                print(f"      {preset}: {' '.join(names)}", flush=True)
        faulty += [network.name] if outcome.faults else []
        written += bool(network.blocks)
    ran = len([network for network in chosen if network.package not in skipped])
    print(
        f"{ran} networks, {written} with layers written down, {len(faulty)} with faults: {', '.join(faulty) or 'none'}"
    )
    if args.table:
        print(table(outcomes))
    if skipped:
        print(f"Not installed: {', '.join(sorted(skipped))}")
    return bool(faulty)


if __name__ == "__main__":
    sys.exit(main())
