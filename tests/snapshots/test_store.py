import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_ssc.snapshots.store as store_module
from lightning_ssc import Snapshot, SnapshotStore, snapshot
from lightning_ssc.snapshots import MemoryStore, Moment, ProbeCard, SnapshotError
from lightning_ssc.snapshots.codec import FORMAT
from tests.nets import convnet, data

PAIRS = 1 << 18  # Gram entries that a sketch for linear CKA keeps, two bytes each


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    x, y = data(40).tensors
    torch.manual_seed(0)
    return snapshot(convnet(), x, y, layers="conv", epoch=3, step=17, learning_rate=0.1)


@pytest.fixture
def store(tmp_path: Path, taken: Snapshot) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "ssc")
    store.save(taken)
    return store


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for key in ("moment", "settings", "probe", "seconds", "learning_rate", "previous"):
        assert getattr(one, key) == getattr(other, key), key
    for key in ("labels", "predictions", "confidence"):
        assert torch.equal(getattr(one, key), getattr(other, key))
    assert list(one.layers) == list(other.layers)
    assert one.pairs.keys() == other.pairs.keys()
    for name, table in one.pairs.items():
        assert torch.equal(table, other.pairs[name])
    for a, b in zip(one.layers.values(), other.layers.values(), strict=True):
        assert torch.equal(a.coef.to_dense(), b.coef.to_dense())
        assert torch.equal(a.affinity.to_dense(), b.affinity.to_dense())
        assert a.coef.dtype == b.coef.dtype
        assert a.values == b.values
        assert a.graph.norm == b.graph.norm
        assert a.of_classes.keys() == b.of_classes.keys() == {"class_modularity"}
        assert torch.allclose(a.of_classes["class_modularity"].float(), b.of_classes["class_modularity"].float())
        assert torch.equal(a.gap, b.gap)
        assert (a.features, a.converged) == (b.features, b.converged)
        assert a.linear is not None
        assert b.linear is not None
        assert torch.equal(a.linear.pairs, b.linear.pairs)
        assert torch.equal(a.linear.diagonal, b.linear.diagonal)


def test_what_is_saved_comes_back(store: SnapshotStore, taken: Snapshot) -> None:
    assert_same(store.load(3), taken)
    assert_same(next(iter(store)), taken)
    assert (store.epochs, len(store), 3 in store, 4 in store) == ([3], 1, True, False)
    assert store.header(3).layers == list(taken.layers)
    layer = store.load_layer(3, "4")
    assert torch.equal(layer.coef.to_dense(), taken.layers["4"].coef.to_dense())


def test_a_store_in_memory_answers_alike(store: SnapshotStore, taken: Snapshot) -> None:
    memory = MemoryStore()
    memory.save(taken)
    assert_same(memory.load(3), store.load(3))
    assert memory.header(3) == store.header(3)
    assert (memory.epochs, 3 in memory, 4 in memory) == (store.epochs, True, False)
    assert memory.of_classes(17).keys() == store.of_classes(17).keys() == taken.layers.keys()
    assert torch.equal(memory.labels(17), store.labels(17))  # type: ignore[arg-type]
    assert memory.load_card() is store.load_card() is None


def test_without_labels_or_linear_cka(tmp_path: Path) -> None:
    taken = snapshot(convnet(), data(20).tensors[0], layers="conv", linear_cka=False)
    store = SnapshotStore(tmp_path)
    store.save(taken)
    loaded = store.load(0)
    assert loaded.labels is None
    assert store.labels(0) is None
    assert loaded.layers["0"].linear is None


def test_snapshots_from_before_the_learning_rate_was_kept(store: SnapshotStore) -> None:
    arrays = dict(np.load(store.path(17)))
    header = json.loads(bytes(arrays["header"]))
    assert header.pop("learning_rate") == store.header(3).learning_rate == 0.1
    np.savez(store.path(17), **arrays | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    assert store.load(3).learning_rate is store.header(3).learning_rate is None


def test_the_probe_card(store: SnapshotStore) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    store.save_card(ProbeCard("abc", images, ("cat", "dog")))
    card = store.load_card()
    assert card is not None
    assert (card.fingerprint, card.class_names) == ("abc", ("cat", "dog"))
    assert np.array_equal(card.images, images)  # type: ignore[arg-type]
    assert store.epochs == [3]  # the card is no snapshot


def test_one_layer_is_read_without_the_others(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = zipfile.ZipFile.getinfo
    monkeypatch.setattr(
        zipfile.ZipFile,
        "getinfo",
        lambda self, name: (read.append(name.removesuffix(".npy")), original(self, name))[1],
    )
    store.load_layer(3, "4")
    assert {key.split("/")[0] for key in read} == {"header", "1"}


def size_of(layers: int, inputs: int, neighbours: float) -> float:
    """Most bytes of a snapshot: a weight and an index a neighbour, a row and two numbers an input, and the sketch."""
    return layers * (6 * neighbours * inputs + 12 * inputs + 2 * PAIRS) + 28 * inputs + 4096


def test_the_size_of_a_store_is_known_beforehand(tmp_path: Path) -> None:
    """A hundred epochs of forty layers on ten thousand inputs, from what real snapshots take."""
    store = SnapshotStore(tmp_path)
    for epoch, count in enumerate((800, 1600)):
        x, y = data(count).tensors
        taken = snapshot(convnet(), x, y, layers="conv", epoch=epoch, step=epoch)
        store.save(taken)
        expected = size_of(2, count, float(np.mean([layer.neighbours for layer in taken.layers.values()])))
        assert 0.8 * expected < store.path(epoch).stat().st_size < expected
        with zipfile.ZipFile(store.path(epoch)) as archive:
            kinds = {entry.filename.split("/")[-1]: entry.compress_type for entry in archive.infolist()}
        assert kinds["col.npy"] == zipfile.ZIP_DEFLATED
        assert kinds["value.npy"] == kinds["pairs.npy"] == zipfile.ZIP_STORED  # it would not pay
    planned = 100 * size_of(40, 10_000, 40)
    assert 12e9 < planned < 12.5e9
    costs = (Path(__file__).parents[2] / ".site" / "pages" / "costs.md").read_text()
    assert f"{planned / 1e9:.0f} GB for 100 epochs of 40 layers on 10,000 inputs with 40 neighbours each" in costs


def test_saving_again_replaces_and_a_failure_keeps_what_was_there(
    store: SnapshotStore, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.path(17).read_bytes()

    def full(file: Any, array: Any, **kwargs: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", full)
        with pytest.raises(OSError, match="No space left"):
            store.save(taken)
    assert store.path(17).read_bytes() == before
    assert [path.name for path in store.root.iterdir()] == ["step_000000017.npz"]
    store.save(taken)
    assert store.epochs == [3]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "array", "missing part"])
def test_damage_is_named(store: SnapshotStore, damage: str) -> None:
    path = store.path(17)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\0" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        with zipfile.ZipFile(path) as source:
            members = {name: source.read(name) for name in source.namelist() if not name.startswith("0/col")}
        with zipfile.ZipFile(path, "w") as target:
            for name, content in members.items():
                target.writestr(name, content)
    with pytest.raises(SnapshotError, match=r"step_000000017\.npz is not a readable snapshot .* Delete the file"):
        store.load(3)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files")])
def test_what_cannot_be_opened_is_not_called_damaged(
    store: SnapshotStore, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, mode: str = "r", **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(SnapshotError, match=rf"step_000000017\.npz cannot be opened \({error.strerror}") as caught:
        store.load(step=17)
    assert "Delete" not in str(caught.value)
    assert caught.value.step == 17


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError(116, "Stale file handle"), "Stale file handle"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
    ],
    ids=["EIO", "ESTALE", "MemoryError", "torch"],
)
@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 20])
def test_what_fails_while_it_is_read_is_not_called_damaged(
    store: SnapshotStore, taken: Snapshot, error: Exception, said: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever library meets the failure, at whichever read, and whatever it makes of it; the others can be read."""

    class Failing(io.BytesIO):
        reads = 0

        def read(self, *args: Any) -> bytes:
            self.reads += 1
            if self.reads > after:
                raise error
            return super().read(*args)

    store.save(replace(taken, moment=Moment(20, 4)))
    opened, content = Path.open, store.path(17).read_bytes()
    fails = lambda path, *args: Failing(content) if path.name == "step_000000017.npz" else opened(path, *args)  # noqa: E731
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(SnapshotError, match=rf"step_000000017\.npz cannot be read \({said}\)\.$") as caught:
        store.load(step=17)
    assert caught.value.step == 17
    assert store.load(step=20).epoch == 4


def test_a_folder_that_cannot_be_listed(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(SnapshotError, match=r"The snapshots in .*ssc cannot be listed \(Permission denied\)\.$"):
        len(store)


def test_a_folder_by_the_name_of_a_snapshot(store: SnapshotStore) -> None:
    (store.root / "step_000000020.npz").mkdir()
    assert store.epochs == [3]
    with pytest.raises(SnapshotError, match=r"step_000000020\.npz cannot be opened \(Is a directory"):
        store.load(step=20)


def test_moments() -> None:
    assert (Moment(3, 2.0).epoch, Moment(3, 2.5).epoch, Moment(7, 2).logged, Moment(7, 2, "", 6).logged) == (
        2,
        2.5,
        7,
        6,
    )
    assert isinstance(Moment(3, 2.0).epoch, int)
    assert [Moment(1, epoch).is_whole for epoch in (0, 1.5, float("nan"))] == [True, False, False]
    with pytest.raises(ValueError, match="step of at least 0, got -1"):
        Moment(-1, 0)


def test_steps_are_keys_and_whole_epochs_are_names(store: SnapshotStore, taken: Snapshot) -> None:
    for moment in (Moment(5, 1), Moment(20, 3.5, "steps"), Moment(25, float("nan"))):
        store.save(replace(taken, moment=moment))
    assert (store.steps, store.epochs, len(store)) == ([5, 17, 20, 25], [1, 3], 4)
    assert store.load(step=20).moment == Moment(20, 3.5, "steps")
    assert np.isnan(store.header(step=25).epoch)
    assert [snapshot.step for snapshot in store] == store.steps
    with pytest.raises(SnapshotError, match=r"no snapshot of step 6 in .*; it holds steps \[5, 17, 20, 25\]"):
        store.load(step=6)
    with pytest.raises(ValueError, match="by its epoch"):
        store.load()
    with pytest.raises(ValueError, match="by its epoch"):
        store.load(3, step=17)


def test_a_folder_is_looked_at_once_for_all_epochs(
    store: SnapshotStore, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (20, 25, 30):
        store.save(replace(taken, moment=Moment(step, step)))
    looks: list[Path] = []
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: (looks.append(self), original(self))[1])
    assert store.epochs == [3, 20, 25, 30]
    assert looks == [store.root]


def test_other_values_keep_what_was_derived_of_the_graph(taken: Snapshot) -> None:
    layer = taken.layers["4"]
    other = layer.with_values({"gap": 0.5})
    assert other.affinity is layer.affinity
    assert other.graph is layer.graph
    assert (dict(other.values), other.coef is layer.coef) == ({"gap": 0.5}, True)
    assert layer.values != other.values


def test_a_header_is_read_alone_and_once(
    store: SnapshotStore, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = zipfile.ZipFile.getinfo
    monkeypatch.setattr(
        zipfile.ZipFile,
        "getinfo",
        lambda self, name: (read.append(name.removesuffix(".npy")), original(self, name))[1],
    )
    assert store.header(3).values["4"] == taken.layers["4"].values
    assert store.header(step=17).size == 40
    assert read == ["header"]
    store.save(replace(taken, learning_rate=0.5))
    assert store.header(3).learning_rate == 0.5


def test_weights_in_float64_and_values_that_are_nan_survive(store: SnapshotStore, taken: Snapshot) -> None:
    layer = taken.layers["4"]
    wide = replace(
        layer,
        coef=(layer.coef.to_dense().double() / 3).to_sparse_csr(),
        values={"modularity": float("nan"), "gap": 1e-7},
    )
    store.save(replace(taken, layers={"4": wide}, pairs={}))
    found = store.load(3).layers["4"]
    assert torch.equal(found.coef.values(), wide.coef.values())
    assert np.isnan(found.values["modularity"])
    assert found.values["gap"] == 1e-7


def edit_layer(**values: Any) -> Any:
    return lambda header, arrays: header["layers"][0].update(values)


def edit(**values: Any) -> Any:
    return lambda header, arrays: header.update(values)


def change(key: str, to: Any) -> Any:
    return lambda header, arrays: arrays.update({key: to(arrays[key])})


HOSTILE = {
    "name of a layer is a number": edit_layer(name=7),
    "names of layers repeat": edit_layer(name="4"),
    "features are text": edit_layer(features="many"),
    "another step": edit(moment={"step": 5, "epoch": 3, "trigger": "", "logged": 5}),
    "a step that is none": edit(moment={"step": 1.5, "epoch": 3, "trigger": "", "logged": 5}),
    "values are text": edit_layer(values={"gap": "small"}),
    "another size": edit(size=41),
    "a table of another size": change("pairs/pairwise_cka", lambda a: a[:1]),
    "no seconds": edit(seconds=None),
    "seconds are text": edit(seconds={"total": "long"}),
    "learning rate is text": edit(learning_rate="x"),
    "few labels": change("labels", lambda a: a[:5]),
    "labels are fractions": change("labels", lambda a: a.astype(float)),
    "few predictions": change("predictions", lambda a: a[:3]),
    "few confidences": change("confidence", lambda a: a[:3]),
    "short gap": change("0/gap", lambda a: a[:5]),
    "empty gap": change("1/gap", lambda a: a[:0]),
    "weights are NaN": change("0/value", lambda a: a * np.nan),
    "weights are text": change("0/value", lambda a: a.astype("<U5")),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_what_a_readable_archive_holds_is_checked(store: SnapshotStore, damage: str) -> None:
    with np.load(store.path(17)) as archive:
        arrays = dict(archive)
    header = json.loads(bytes(arrays["header"]))
    HOSTILE[damage](header, arrays)
    np.savez(store.path(17), **arrays | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    with pytest.raises(SnapshotError, match=r"step_000000017\.npz is not a readable snapshot"):
        store.load(3)


def test_a_whole_archive_rewritten_is_readable(store: SnapshotStore, taken: Snapshot) -> None:
    """What the test above relies on; a negative label, as classes to ignore have, is none of the damage."""
    with np.load(store.path(17)) as archive:
        arrays = dict(archive)
    arrays["labels"] = np.where(np.arange(len(arrays["labels"])) == 0, -100, arrays["labels"])
    np.savez(store.path(17), **arrays)
    assert store.load(3).labels.tolist()[0] == store.labels(17).tolist()[0] == -100  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "card",
    [
        ProbeCard("abc", np.zeros((2, 4, 4, 3))),  # type: ignore[arg-type]
        ProbeCard("abc", np.zeros((2, 4, 4), np.uint8)),
        ProbeCard("abc", None, (1, 2)),  # type: ignore[arg-type]
        ProbeCard(None),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_card_is_named(store: SnapshotStore, card: ProbeCard) -> None:
    store.save_card(card)
    with pytest.raises(SnapshotError, match=r"probe\.npz"):
        store.load_card()


def test_flipped_bytes_are_noticed(store: SnapshotStore) -> None:
    path = store.path(17)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="not a readable snapshot"):
        store.load(3)


def test_a_pickle_is_not_executed(store: SnapshotStore) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was executed",))

    store.path(17).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SnapshotError, match="not a readable snapshot"):
        store.load(3)
    with store.path(17).open("wb") as file:
        np.savez(file, header=np.array([Bomb()], dtype=object))
    with pytest.raises(SnapshotError, match="not a readable snapshot"):
        store.load(3)


def test_a_newer_format_and_a_missing_epoch(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotError, match=r"no snapshot of epoch 9 in .*ssc; it holds epochs \[3\]"):
        store.load(9)
    with pytest.raises(SnapshotError, match="holds no layer 'fc', only 0, 4"):
        store.load_layer(3, "fc")
    header = json.dumps({"format": FORMAT + 1}).encode()
    np.savez(store.path(18), header=np.frombuffer(header, np.uint8))
    with pytest.raises(
        SnapshotError, match=r"has snapshot format 3; this version of lightning_ssc reads up to 2\. Upgrade"
    ):
        store.load(step=18)


@pytest.mark.parametrize("links", [True, False])
def test_taking_over(store: SnapshotStore, taken: Snapshot, tmp_path: Path, links: bool, monkeypatch: Any) -> None:
    if not links:
        monkeypatch.setattr(store_module.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    new = SnapshotStore(tmp_path / "new")
    new.take_over(store, [2, 17])
    assert_same(new.load(3), taken)
    assert new.epochs == [3]


def test_no_damage_escapes(store: SnapshotStore, taken: Snapshot) -> None:
    """Whatever a changed byte does to an archive, reading says which file it is, or reads what was written."""
    content, refused = store.path(17).read_bytes(), 0
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(content), 150).tolist() + list(range(30)):
        damaged = bytearray(content)
        damaged[place] ^= int(generator.integers(1, 256))
        store.path(17).write_bytes(damaged)
        try:
            read = store.load(3)
        except SnapshotError as error:
            refused += "step_000000017.npz" in str(error)
        else:
            assert_same(read, taken)
    assert refused > 90  # of 180; the others change what nothing reads, such as the date of a member


def test_setting_aside(store: SnapshotStore) -> None:
    store.set_aside([17])
    assert store.steps == store.epochs == []
    assert (store.root / "superseded" / "step_000000017.npz").is_file()


def test_what_is_derived_of_graphs_is_not_kept_in_memory(taken: Snapshot) -> None:
    store = MemoryStore()
    for layer in taken.layers.values():
        assert layer.graph.edges is not None
        assert layer.affinity is not None
    store.save(taken)
    for layer in store.load(step=taken.step).layers.values():
        assert not {"graph", "affinity"} & set(vars(layer))


def test_a_setting_is_known_by_its_old_name(store: SnapshotStore, taken: Snapshot) -> None:
    store.save(replace(taken, settings={**taken.settings, "labels": "classes"}))
    assert store.header(step=taken.step).settings["groups"] == "classes"
