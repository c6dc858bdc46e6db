import itertools
from pathlib import Path

import numpy as np
import pytest

from lightning_ssc.analysis import chessboard, compare, find_blocks, similarity
from lightning_ssc.snapshots import SnapshotError, SnapshotStore
from tests.analysis.test_dynamics import cka_by_definition
from tests.runs import made_run, random_coef, taken


def random_kernel(n: int, seed: int) -> np.ndarray:
    """Cosines of vectors that wander: a kernel as CKA is one."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n, 6)) * rng.choice([0.2, 2.0], (n, 1), p=[0.7, 0.3])
    x = rng.normal(size=6) + steps.cumsum(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.mark.parametrize("seed", range(8))
def test_the_blocks_are_the_best_of_all_segmentations(seed: int) -> None:
    kernel = random_kernel(9, seed)
    found = find_blocks(kernel)
    off_diagonal = kernel[~np.eye(9, dtype=bool)]
    assert found.threshold == pytest.approx(off_diagonal.mean())

    def cost(starts: tuple[int, ...]) -> float:
        total = 0.0
        for a, b in zip(starts, [*starts[1:], 9], strict=True):
            mean = kernel[a:b, a:b].mean()  # |mean of unit vectors|^2
            total += (b - a) * (1 - mean) + (1 - off_diagonal.mean())
        return total

    everything = [(0, *cut) for k in range(9) for cut in itertools.combinations(range(1, 9), k)]
    assert cost(tuple(found.starts)) == pytest.approx(min(cost(starts) for starts in everything))


def test_blocks_of_unequal_size_and_their_means() -> None:
    table = np.full((7, 7), 0.2)
    table[:4, :4] = 0.9
    table[4:6, 4:6] = 0.7
    np.fill_diagonal(table, 1)
    blocks = find_blocks(table)
    assert blocks.starts == [0, 4, 6]
    assert blocks.within.tolist() == pytest.approx([0.9, 0.7, np.nan], nan_ok=True)
    assert blocks.between[0].tolist() == pytest.approx([np.nan, 0.2, 0.2], nan_ok=True)
    assert blocks.contrast == pytest.approx(0.8 - 0.2)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_layers_all_equally_alike_are_one_block(value: float) -> None:
    table = np.full((6, 6), value)
    np.fill_diagonal(table, 1)
    assert find_blocks(table).starts == [0]


def test_the_threshold_decides_what_belongs_together() -> None:
    table = np.full((5, 5), 0.6)
    np.fill_diagonal(table, 1)
    assert find_blocks(table, threshold=0.5).starts == [0]
    assert find_blocks(table, threshold=0.7).starts == [0, 1, 2, 3, 4]


def test_a_layer_without_a_graph_does_not_spoil_the_blocks() -> None:
    table = np.kron(np.eye(2), np.full((4, 4), 0.8)) + 0.1
    np.fill_diagonal(table, 1)
    table[2] = table[:, 2] = np.nan
    blocks = find_blocks(table)
    assert 4 in blocks.starts
    assert np.nanmax(blocks.within) == pytest.approx(0.9)
    assert not np.isnan(blocks.contrast)


def test_one_layer_is_one_block() -> None:
    blocks = find_blocks([[1.0]])
    assert blocks.starts == [0]
    assert np.isnan(blocks.contrast)
    assert np.isnan(blocks.chessboard)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.array([[1.0, 0.2], [0.9, 1.0]]), np.ones(3), np.ones((0, 0))])
def test_blocks_need_a_symmetric_matrix(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="symmetric"):
        find_blocks(bad)


def test_a_threshold_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        find_blocks(np.eye(3), threshold=1.0)


def test_chessboard_written_out() -> None:
    table = random_kernel(11, 3)
    starts = [0, 2, 7]
    scores = [
        table[i, j] - (table[i, j - 1] + table[i, j + 1]) / 2
        for a, b in ((0, 2), (2, 7), (7, 11))
        for i in range(a, b)
        for j in range(i + 1, b - 1)
        if (j - i) % 2 == 0
    ]
    assert chessboard(table, starts) == pytest.approx(np.mean(scores))


def test_skip_connections_leave_a_chess_board_and_smooth_change_does_not() -> None:
    layer = np.arange(12)
    distance = abs(layer[:, None] - layer)
    alternating = np.where(distance % 2 == 0, 0.9, 0.4)
    np.fill_diagonal(alternating, 1)
    assert find_blocks(alternating).chessboard == pytest.approx(0.5)
    assert chessboard(1 - distance / 12) == pytest.approx(0)
    assert abs(chessboard(0.9**distance)) < 0.01


def test_similarity_is_cka_of_every_pair() -> None:
    one = {"a": random_coef(14, 0), "b": random_coef(14, 1)}
    other = {"x": random_coef(14, 2), "y": random_coef(14, 3), "z": random_coef(14, 4)}
    table = similarity(taken(one, linear=True), taken(other, linear=True))
    assert (table.rows, table.columns) == (["a", "b"], ["x", "y", "z"])
    for i, first in enumerate(one.values()):
        for j, second in enumerate(other.values()):
            assert table.ssc[i, j] == pytest.approx(cka_by_definition(first, second), abs=1e-6)
            # The linear Grams of these made layers are coef coef^T.
            h = np.eye(14) - 1 / 14
            k, m = (h @ (c @ c.T) @ h for c in (first, second))
            expected = (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)
            assert table.linear[i, j] == pytest.approx(expected, abs=5e-3)
    assert np.isnan(similarity(taken(one, linear=True), taken(other, linear=False)).linear).tolist() == [[True] * 3] * 2


def test_a_network_with_itself_is_symmetric_with_ones() -> None:
    snapshot = taken({"a": random_coef(14, 0), "b": random_coef(14, 1)}, linear=True)
    for table in (similarity(snapshot).ssc, similarity(snapshot).linear):
        assert np.diag(table).tolist() == pytest.approx([1, 1], abs=5e-3)
        assert table[0, 1] == pytest.approx(table[1, 0])


def test_an_empty_graph_is_nan_and_nothing_else() -> None:
    table = similarity(taken({"a": random_coef(9, 0), "dead": np.zeros((9, 9))}))
    assert np.isnan(table.ssc[1]).all()
    assert table.ssc[0, 0] == pytest.approx(1)


def test_other_probes_are_refused() -> None:
    with pytest.raises(SnapshotError, match="different probes"):
        similarity(taken({"a": random_coef(9, 0)}), taken({"a": random_coef(9, 0)}, probe="another"))


def test_comparing_two_runs(tmp_path: Path) -> None:
    one = made_run(tmp_path / "one", layers=("a", "b"))
    other = made_run(tmp_path / "other", layers=("b", "c", "d"), seed=1000, epochs=(0, 4))
    comparison = compare(one, other)
    assert comparison.similarity.ssc.shape == (2, 3)
    expected = similarity(one.load(2), other.load(4)).ssc
    assert np.array_equal(comparison.similarity.ssc, expected)
    closest = comparison.closest()
    assert [row for row, _, _ in closest] == ["a", "b"]
    assert [value for _, _, value in closest] == expected.max(1).tolist()
    # Layer b is in both: its curve to the other network's ends where the heatmap has it.
    assert comparison.one.cka_to_reference[-1, 1] == pytest.approx(expected[1, 0])
    assert compare(one, other, epochs=(0, None)).similarity.ssc[0, 0] != expected[0, 0]


def test_runs_of_different_probes_are_named(tmp_path: Path) -> None:
    one, other = made_run(tmp_path / "one"), made_run(tmp_path / "other", probe="another")
    with pytest.raises(SnapshotError, match=r"one and .*other are of different probes"):
        compare(one, other)


def test_a_layer_without_a_graph_is_closest_to_none(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.save(taken({"a": random_coef(9, 0), "dead": np.zeros((9, 9))}))
    assert [(row, column) for row, column, _ in compare(store, store).closest()] == [("a", "a")]


def test_the_similarity_to_other_blocks_leaves_out_what_is_unknown(tmp_path: Path) -> None:
    table = np.kron(np.eye(3), np.full((3, 3), 0.8)) + 0.1
    np.fill_diagonal(table, 1)
    table[6:, :3] = table[:3, 6:] = np.nan
    blocks = find_blocks(table)
    blocks.to_csv(tmp_path / "blocks.csv", list("abcdefghi"))
    lines = [line.split(",") for line in (tmp_path / "blocks.csv").read_text().splitlines()]
    assert [float(line[lines[0].index("similarity_to_others")]) for line in lines[1:]] == pytest.approx([0.1] * 3)


def test_csv_files(tmp_path: Path) -> None:
    table = similarity(taken({"a": random_coef(9, 0), "b": random_coef(9, 1)}))
    table.to_csv(tmp_path / "similarity.csv")
    assert len((tmp_path / "similarity.csv").read_text().splitlines()) == 5
    find_blocks(table.ssc).to_csv(tmp_path / "blocks.csv", table.rows)
    assert (tmp_path / "blocks.csv").read_text().startswith("block,first_layer,last_layer")
