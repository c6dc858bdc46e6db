"""A probe that several processes run together: each a share of the inputs, each the Grams of its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_ssc.capture import Layer, WatchedLayer, plan_shared, share_layers
from lightning_ssc.capture.samples import chunks
from lightning_ssc.capture.spread import rows_a_turn, turns
from tests import processes


def layer(name: str, features: int, dtype: torch.dtype = torch.float32) -> WatchedLayer:
    return WatchedLayer(Layer(name), 0, name, features, dtype)


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    """Also where the network's forward talks to the other process, which would wait for ever if turns differed."""
    assert processes.distributed(processes.spread, 2, tmp_path) == [0, 0]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    for name in ("one pass", "several"):
        mine, theirs = (set(t[f"layers {name}"]) for t in told)
        assert mine.isdisjoint(theirs)
        features = told[0][f"features {name}"]
        assert mine | theirs == features.keys()
        assert max(t[f"apart {name}"] for t in told) < 1e-6
        rows = [{int(start): count for start, count in t[f"rows {name}"].items()} for t in told]
        covered = [sample for start, count in (rows[0] | rows[1]).items() for sample in range(start, start + count)]
        assert sorted(covered) == list(range(31))
        # Each feature of a sample that the owner has not run itself is sent once, and nothing else.
        for rank, owned in ((0, theirs), (1, mine)):
            run, sample = sum(rows[rank].values()), sum(features[label] for label in owned)
            # Its share of the samples may be another by one in passes of smaller chunks.
            assert (run - 1) * sample <= told[rank][f"bytes {name}"] <= (run + 1) * sample
    for rank in (0, 1):
        assert told[rank]["failed forward"].startswith("SSC failed on rank 1: NotRunError: ")
        assert "(OSError: [Errno 5] Input/output error)" in told[rank]["failed forward"]
        assert told[rank]["failed solve"] == "SSC failed on rank 1: ValueError: no solution"
        for where in ("room", "buffers", "gram", "look"):
            assert told[rank][f"failed {where}"] == "SSC failed on rank 1: MemoryError: no room"
        assert told[rank]["steps"] == ([0] if rank == 0 else [])  # a failure leaves all of them able to go on


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_sample_is_run_once_in_turns_that_all_take(ranks: int) -> None:
    for samples in (1, 4, 31):
        taken = list(turns(chunks(torch.zeros(samples, 2), 3), ranks))
        rows = [r for turn in taken for r in range(ranks) if turn.count(r) for r in [turn.of(r)]]
        assert [i for part in rows for i in range(part.start, part.stop)] == list(range(samples))
        assert all(turn.of(rank).stop > turn.of(rank).start for turn in taken for rank in range(ranks))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("features", [[50, 30, 250], [8], [7, 9, 11, 600, 2, 5]])
def test_passes_of_all_processes_are_within_each_ones_budget(features: list[int], ranks: int) -> None:
    layers, samples = [layer(str(i), width) for i, width in enumerate(features)], 20
    grams = 2 * samples * samples * 4
    owners = [next(r for r in range(ranks) if one in share_layers(layers, r, ranks)) for one in layers]
    for space in (4000, 20_000, 10**6):
        passes = plan_shared(layers, samples, grams + space, ranks, staged=ranks > 1)
        for number, one in enumerate(layers):
            slices = [part for group in passes for part in group if part.layer == number]
            assert [p.start for p in slices] == [0, *(p.stop for p in slices[:-1])]
            assert slices[-1].stop == one.features
        for group in passes:
            width = [sum(p.stop - p.start for p in group if owners[p.layer] == rank) for rank in range(ranks)]
            assert samples * 4 * max(width) <= space
            if ranks > 1:
                rows = rows_a_turn(group, layers, owners, ranks, samples, space)
                assert rows >= 1
                assert all(4 * (samples * own + rows * (sum(width) - own)) <= space for own in width)
