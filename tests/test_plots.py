from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_ssc import plots
from lightning_ssc.analysis import Dynamics, inputs, neighbours
from lightning_ssc.measures import CURVES, measure
from lightning_ssc.snapshots import Moment
from tests.runs import HOSTILE, random_coef, taken

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
IMAGES = np.random.default_rng(0).integers(0, 255, (10, 6, 6, 3), dtype=np.uint8)


@pytest.fixture
def axes() -> Axes:
    return Figure().add_subplot()


def curves_of(layers: list[str]) -> Dynamics:
    curve = np.linspace(0, 1, 4 * len(layers)).reshape(4, len(layers))
    unknown = np.full_like(curve, np.nan)
    present = dict.fromkeys(("modularity", "cka_to_final", "linear_cka_to_final"), curve)
    rate = np.array([np.nan, 0.1, 0.1, 0.02])
    moments = [Moment(step, epoch) for step, epoch in enumerate((0, 1, 5, 9))]
    return Dynamics(layers, moments, rate, {record.name: unknown for record in CURVES} | present)


def drawn(figure: Figure) -> np.ndarray:
    return plots.to_image(figure)


def test_a_heatmap_shows_the_matrix_with_names_on_both_axes(axes: Axes) -> None:
    matrix = np.array([[0.1, 0.2, np.nan], [0.4, 0.5, 0.6]])
    figure = plots.heatmap(matrix, ["a.x", "a.y"], ["b.u", "b.v", "b.w"], networks=("ResNet", "VGG"), ax=axes)
    assert figure is axes.figure
    image = axes.images[0]
    assert np.array_equal(image.get_array().filled(np.nan), matrix, equal_nan=True)
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)  # the same colours in every heatmap
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x", "y"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["u", "v", "w"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("ResNet", "VGG")


def test_blocks_are_outlined(axes: Axes) -> None:
    plots.heatmap(np.eye(5), list("abcde"), blocks=[0, 2], ax=axes)
    squares = [(p.get_x(), p.get_width()) for p in axes.patches if isinstance(p, Rectangle)]
    assert squares == [(-0.5, 2), (1.5, 3)]


def test_a_hundred_layers_get_fewer_names_than_layers(axes: Axes) -> None:
    plots.heatmap(np.eye(104), [f"conv{i}" for i in range(104)], ax=axes)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert len(labels) <= 40
    assert labels[1] == "conv3"


def test_curves_draw_every_layer_and_leave_gaps(axes: Axes) -> None:
    plots.curves([[0.1, np.nan], [0.2, 0.4]], [0, 3], ["net.a", "net._b"], ax=axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "_b"]
    assert axes.lines[0].get_xdata().tolist() == [0, 3]
    assert np.array_equal(axes.lines[1].get_ydata(), [np.nan, 0.4], equal_nan=True)
    assert axes.get_ylim()[0] == 0


def test_the_curves_of_a_run_are_those_that_have_values() -> None:
    figures = plots.dynamics_figures(curves_of(["net.a", "net.b"]))
    assert set(figures) == {"modularity", "cka_to_final", "linear_cka_to_final"}
    (drop,) = (p for p in figures["modularity"].axes[0].patches if isinstance(p, Rectangle))
    assert (drop.get_x(), drop.get_width()) == (5, 4)


def test_figure_one_on_axes_of_ones_own() -> None:
    panels, families = Figure().subplots(1, 3), ("modularity", "cka_to_final", "linear_cka_to_final")
    for panel, family in zip(panels, families, strict=True):
        plots.dynamics_curves(curves_of(["a", "b"]), family, ax=panel)
    assert [panel.get_title() for panel in panels] == [measure(family).title for family in families]


def test_an_embedding_has_a_colour_and_a_shape_for_every_class(axes: Axes) -> None:
    points = np.random.default_rng(0).normal(size=(10, 2))
    plots.embedding(points, LABELS, ["cat", "dog", "bird"], legend=True, ax=axes)
    groups = axes.collections
    assert [len(g.get_offsets()) for g in groups] == [4, 3, 3]
    assert len({to_hex(g.get_facecolor()[0]) for g in groups}) == 3
    assert len({g.get_paths()[0].vertices.tobytes() for g in groups}) == 3
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["cat", "dog", "bird"]


def test_embeddings_are_of_layers_spread_from_first_to_last() -> None:
    points = {f"net.l{i}": np.random.default_rng(i).normal(size=(10, 2)) for i in range(20)}
    figure = plots.embeddings(points, LABELS, most=6)
    assert [axes.get_title() for axes in figure.axes] == ["l0", "l4", "l8", "l11", "l15", "l19"]
    assert len(plots.embeddings({"one": points["net.l0"]}).axes) == 1


def test_neighbours_show_the_right_pictures(axes: Axes) -> None:
    nearest = np.full((10, 3), -1)
    nearest[4] = [7, 2, -1]
    plots.neighbours([4], nearest, IMAGES, LABELS, ["cat", "dog", "bird"], ax=axes)
    assert [np.array_equal(image.get_array(), IMAGES[i]) for image, i in zip(axes.images, (4, 7, 2), strict=True)] == [
        True
    ] * 3
    assert [t.get_text() for t in axes.texts] == ["dog", "dog", "bird"]


def test_without_images_inputs_are_numbers(axes: Axes) -> None:
    plots.neighbours([0], [[1, 2], [0, -1], [0, -1]], ax=axes)
    assert [t.get_text() for t in axes.texts] == ["#0", "#1", "#2"]


def test_bars_are_the_shares(axes: Axes) -> None:
    plots.class_shares([0.1, np.nan, 0.6, 0.3], ["a", "b", "c", "d"], label=3, prediction=3, ax=axes)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.1, 0, 0.6, 0.3])
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == "d (its class, network)"


def test_of_a_hundred_classes_the_largest_are_drawn(axes: Axes) -> None:
    shares = np.zeros(100)
    shares[[3, 70]] = 0.4, 0.6
    plots.class_shares(shares, most=2, ax=axes)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["class 3", "class 70"]


@pytest.mark.parametrize("images", [IMAGES, None])
def test_an_explanation_says_what_the_network_said(images: np.ndarray | None) -> None:
    snapshot = taken({"a": random_coef(10, 0)}, LABELS, [1] * 10, [0.97] * 10)
    table = inputs(snapshot)
    figure = plots.explanation(table, 0, neighbours(snapshot.layers["a"])[0], images, ["cat", "dog", "bird"])
    assert figure.axes[0].get_title() == "input 0: cat, classified as dog with a score of 0.97"
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx(table.shares[0].tolist())
    assert drawn(figure).std() > 0


def test_class_colours_are_the_same_whatever_classes_are_present() -> None:
    assert len({to_hex(c) for c in plots.class_colours(np.arange(10))}) == 10
    assert len({to_hex(c) for c in plots.class_colours(np.arange(100))}) == 100


def test_a_class_has_its_colour_and_shape_whichever_others_are_there(axes: Axes) -> None:
    for numbers in ([0, 2], [1, 40, 99], [11]):
        assert plots.class_colours(numbers).tolist() == plots.class_colours(np.arange(100))[numbers].tolist()
    plots.embedding(np.ones((3, 2)), [0, 2, 2], ax=axes)
    all_there = Figure().add_subplot()
    plots.embedding(np.ones((3, 2)), [0, 1, 2], ax=all_there)
    for group, same in zip(axes.collections, all_there.collections[::2], strict=True):
        assert group.get_facecolor()[0].tolist() == same.get_facecolor()[0].tolist()
        assert group.get_paths()[0].vertices.tolist() == same.get_paths()[0].vertices.tolist()


def test_control_characters_leave_an_svg_whole(tmp_path: Path) -> None:
    plots.save({"one": plots.heatmap(np.eye(2), ["a\nb", "c\x01d"])}, tmp_path)
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")


def test_the_deepest_layer_is_visible_on_white() -> None:
    red, green, blue = plots.layer_colours(40)[-1, :3]
    assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75


def test_names_are_never_read_as_formulas() -> None:
    names = [f"net.{HOSTILE}", "net.$x^2$", "net._hidden"]
    for figure in (
        plots.heatmap(np.eye(3), names, title=HOSTILE, networks=(HOSTILE, HOSTILE)),
        plots.curves(np.ones((2, 3)), [0, 1], names, title=HOSTILE),
        plots.embedding(np.ones((3, 2)), [0, 1, 2], names, title=HOSTILE, legend=True),
        plots.embeddings({name: np.ones((3, 2)) for name in names}, [0, 1, 2], names),
        plots.neighbours([0], [[1], [0], [0]], IMAGES[:3], [0, 1, 2], names, title=HOSTILE),
        plots.class_shares([0.2, 0.3, 0.5], names, label=0),
    ):
        assert drawn(figure).std() > 0


def test_figures_are_saved_as_png_and_svg(tmp_path: Path) -> None:
    paths = plots.save({"one": plots.heatmap(np.eye(2), ["a", "b"])}, tmp_path)
    assert [path.name for path in paths] == ["one.png", "one.svg"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in paths[1].read_bytes()[:1000]


def test_images_of_many_embeddings_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 3
    points = {f"layer{i}": generator.normal(size=(40, 2)) * 10.0**i for i in range(3)}
    points["layer1"][5] = np.nan  # an isolated input
    drawn = dict(plots.embedding_images(points.items(), labels, ", epoch 3"))
    assert list(drawn) == list(points)
    for name, xy in points.items():
        alone = plots.to_image(plots.embedding(xy, labels, title=f"{name}, epoch 3"))
        assert alone.shape == drawn[name].shape
        assert np.abs(alone.astype(int) - drawn[name]).mean() < 1.0  # the plot may lie half a pixel off
    (image,) = [image for _, image in plots.embedding_images([("x", np.full((2, 2), 0.5))])]  # one place, no labels
    assert (image < 100).any()
