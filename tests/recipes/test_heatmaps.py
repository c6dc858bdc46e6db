"""The statistics of heatmaps on made-up matrices whose answer is known."""

import numpy as np
import pytest

from recipes.heatmaps import board, cut_into, statistics


def resnet_layers(blocks, shortcuts=False):
    """Names of the convolutions of a ResNet of three stages, in order."""
    names = ["stem.0"]
    for stage in (1, 2, 3):
        for i in range(blocks):
            names += [f"layer{stage}.{i}.conv1", f"layer{stage}.{i}.conv2"]
            if shortcuts and stage > 1 and i == 0:
                names.append(f"layer{stage}.{i}.downsample.0")
    return names


def by_kind(layers, alike, apart):
    """Similarity ``alike`` between convolutions that read the stream and ``apart`` to and between the others."""
    reads = np.array([name.endswith(("conv1", "downsample.0")) for name in layers])
    matrix = np.where(reads[:, None] & reads, alike, apart)
    np.fill_diagonal(matrix, 1.0)
    return matrix


@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_board_is_seen_with_and_without_shortcut_convolutions(shortcuts):
    layers = resnet_layers(4, shortcuts)
    found = statistics(by_kind(layers, 0.8, 0.3), layers)
    assert found["board: convolutions that read the residual stream"] == pytest.approx(0.5)
    assert found["board: the others"] == pytest.approx(0, abs=1e-12)
    assert found["board"] == pytest.approx(0.5)
    assert ("board, shortcut convolutions left in" in found) == shortcuts
    if shortcuts:
        assert 0 < found["board, shortcut convolutions left in"] < 0.5  # one extra layer shifts the squares behind it


def test_what_cancels_in_one_mean_is_seen_by_class():
    """The others are as unlike one another as the stream's are alike: the mean over both is 0."""
    layers = resnet_layers(4)
    reads = np.array([name.endswith("conv1") for name in layers])
    matrix = np.where(reads[:, None] & reads, 0.7, np.where(~reads[:, None] & ~reads, 0.3, 0.5))
    found = board(matrix, layers)
    assert (found.stream, found.others, found.contrast) == pytest.approx((0.2, -0.2, 0.4))


def test_no_board_where_similarity_falls_evenly_or_is_the_same():
    layers = resnet_layers(4)
    place = np.arange(len(layers))
    even = 1 - abs(place[:, None] - place) / len(place)
    for matrix in (even, np.ones_like(even)):
        assert board(matrix, layers) == pytest.approx((0, 0), abs=1e-12)


def test_pairs_of_different_stages_are_left_out():
    layers = resnet_layers(3)
    matrix = by_kind(layers, 0.8, 0.3)
    stage = np.array([name.split(".")[0] for name in layers])
    elsewhere = np.where(stage[:, None] == stage, matrix, np.nan)
    assert board(elsewhere, layers) == pytest.approx(board(matrix, layers))


def blocks(*sizes, within=0.9, between=0.1):
    place = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(place[:, None] == place, within, between)
    np.fill_diagonal(matrix, 1.0)
    return matrix


@pytest.mark.parametrize("sizes", [(3, 9), (6, 4), (2, 5, 7), (4, 4, 4)])
def test_a_cut_finds_the_blocks_that_are_there(sizes):
    found = cut_into(blocks(*sizes), len(sizes))
    assert found.starts == tuple(np.cumsum([0, *sizes])[:-1])
    assert found.contrast == pytest.approx(0.8)
    assert found.largest == pytest.approx(max(sizes) / sum(sizes))


def test_a_cut_is_the_best_of_all():
    """Against all cuts, one after the other, by the definition."""
    rng = np.random.default_rng(0)
    matrix = rng.random((9, 9))
    matrix = (matrix + matrix.T) / 2

    def contrast(first, second):
        run = np.repeat([0, 1, 2], [first, second - first, 9 - second])
        same, other = run[:, None] == run, ~np.eye(9, dtype=bool)
        return matrix[same & other].mean() - matrix[~same].mean()

    cuts = {(0, a, b): contrast(a, b) for a in range(2, 6) for b in range(a + 2, 8)}
    best = max(cuts, key=cuts.get)
    found = cut_into(matrix, 3)
    assert found.starts == best
    assert (found.contrast, found.largest) == pytest.approx((cuts[best], max(np.diff([*best, 9])) / 9))


def test_a_cut_of_layers_all_equally_alike_sets_nothing_apart():
    assert cut_into(blocks(8, within=0.4), 2).contrast == pytest.approx(0)


def test_too_few_layers_are_refused():
    with pytest.raises(ValueError, match="5 layers do not fall into 3 runs of 2 or more"):
        cut_into(np.eye(5), 3)
