"""Snapshots as ``.npz`` files: a zip archive of plain arrays with one JSON header, checked both ways.

A file loads without executing anything, each array is read only when asked for, and it appears under its name only
when it is whole. Format 2 keeps what was measured in the header and takes the step for the key; files of format 1,
whose key was the epoch, are read as well.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_ssc.files import obstacle
from lightning_ssc.functional.gram_sketch import GramSketch
from lightning_ssc.snapshots.snapshot import LayerGraph, Moment, ProbeCard, Snapshot, SnapshotError, SnapshotHeader
from lightning_ssc.version import __version__

Arrays = Mapping[str, NDArray[Any]]

FORMAT = 2
_NAN = float("nan")
OF_SAMPLES = ("labels", "indices", "predictions", "confidence")


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers come from; every stored snapshot carries them."""
    found = {"lightning_ssc": __version__, "python": platform.python_version()}
    for package in ("torch", "lightning", "pytorch-lightning", "numpy", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # of Lightning's two names one is usually missing
            continue
    return found


def write(path: Path, arrays: Arrays) -> None:
    """Write an archive, as ``numpy.savez`` does, under its name only when it is whole.

    Indices are compressed, to two thirds of their size; the digits of weights and Grams are as good as random, and to
    compress them too took more than four times as long for 7 % of the file.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    member = zipfile.ZipInfo(f"{name}.npy")
                    member.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
                    with archive.open(member, "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Archive(Mapping[str, NDArray[Any]]):
    """The arrays of an ``.npz`` file, each read, and its checksum compared, when it is asked for.

    As ``numpy.load``, which takes twice as long for the arrays of 40 layers of 1000 inputs: it reads in pieces, copies
    them and parses the same few descriptions again and again.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._zip = file, zipfile.ZipFile(file)
        self._names = dict.fromkeys(name.removesuffix(".npy") for name in self._zip.namelist())

    def __getitem__(self, name: str) -> NDArray[Any]:
        content = self._read(self._zip.getinfo(f"{name}.npy"))
        start = 10 + int.from_bytes(content[8:10], "little")
        shape, dtype = _description(bytes(content[:start]))
        return np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)

    def _read(self, member: zipfile.ZipInfo) -> bytearray:
        """What a member holds; before it stand 30 bytes, the last four of which say how long name and extras are."""
        self._file.seek(member.header_offset + 26)
        lengths = self._file.read(4)
        self._file.seek(sum(struct.unpack("<2H", lengths)), os.SEEK_CUR)
        content = bytearray(member.compress_size)
        _check(self._file.readinto(content) == len(content), f"{member.filename} is cut off")
        if member.compress_type == zipfile.ZIP_DEFLATED:
            content = bytearray(zlib.decompress(content, -zlib.MAX_WBITS, member.file_size))
        _check(zlib.crc32(content) == member.CRC, f"{member.filename} does not match its checksum")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


@lru_cache(maxsize=1024)
def _description(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from the head of its ``.npy`` file."""
    stream = io.BytesIO(head)
    _check(np.lib.format.read_magic(stream) == (1, 0), "an array of it is of an unknown version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    _check(not dtype.hasobject, "an array of it is a pickled object")
    _check(not fortran_order or len(shape) < 2, "an array of it is in Fortran's order")
    return shape, dtype


@contextmanager
def reading(path: Path, step: int | None = None) -> Iterator[Arrays]:
    """The arrays of a file, in whose scope every kind of damage becomes a :class:`SnapshotError`.

    Args:
        path: The file.
        step: Step of its snapshot, for the error.
    """
    try:
        file = path.open("rb")
    except OSError as error:  # the file may be sound: what is wrong is the disk, the network or the permissions
        raise SnapshotError(f"{path} cannot be opened ({obstacle(error)}).", step) from error
    with file:
        try:
            yield _Archive(file)
        except SnapshotError:
            raise
        except Exception as error:  # whatever reading meets, the file is not what it should be
            if why := obstacle(error):
                raise SnapshotError(f"{path} cannot be read ({why}).", step) from error
            raise SnapshotError(
                f"{path} is not a readable snapshot ({error}). Delete the file; the run's other snapshots are not "
                f"affected.",
                step,
            ) from error


def encode(snapshot: Snapshot) -> Arrays:
    """A snapshot as arrays."""
    arrays: dict[str, NDArray[Any]] = {}
    entries = []
    for i, (name, layer) in enumerate(snapshot.layers.items()):
        arrays[f"{i}/crow"] = layer.coef.crow_indices().numpy().astype(np.int32)
        small = np.uint16 if len(layer.gap) <= 1 << 16 else np.int32
        arrays[f"{i}/col"] = layer.coef.col_indices().numpy().astype(small)
        arrays[f"{i}/value"] = layer.coef.values().numpy()
        arrays[f"{i}/gap"] = layer.gap.numpy()
        if layer.communities is not None:
            arrays[f"{i}/communities"] = layer.communities.numpy()
        for key, of_inputs in layer.of_inputs.items():
            arrays[f"{i}/inputs/{key}"] = of_inputs.numpy()
        for key, of_classes in layer.of_classes.items():
            arrays[f"{i}/classes/{key}"] = of_classes.numpy().astype(np.float32)
        if layer.linear is not None:
            arrays[f"{i}/linear/diagonal"] = layer.linear.diagonal.numpy()
            arrays[f"{i}/linear/pairs"] = layer.linear.pairs.numpy()
        entries.append(
            {
                "name": name,
                "converged": layer.converged,
                "features": layer.features,
                "values": {key: _number(value) for key, value in layer.values.items()},
                "norm": _number(layer.graph.norm),
                **({} if layer.linear is None else {"linear_norm": layer.linear.norm}),
                **({} if layer.is_output is None else {"is_output": layer.is_output}),
                **({} if layer.seconds is None else {"seconds": layer.seconds}),
            }
        )
    for key in OF_SAMPLES:
        if (tensor := getattr(snapshot, key)) is not None:
            arrays[key] = tensor.numpy()
    for name, table in snapshot.pairs.items():
        arrays[f"pairs/{name}"] = table.numpy().astype(np.float32)
    sizes = {len(layer.gap) for layer in snapshot.layers.values()}
    header = {
        "format": FORMAT,
        "moment": {**asdict(snapshot.moment), "epoch": _number(snapshot.epoch)},
        "size": next(iter(sizes), None),
        "layers": entries,
        "settings": dict(snapshot.settings),
        "seconds": dict(snapshot.seconds),
        "versions": versions(),
        "probe": snapshot.probe,
        "learning_rate": _number(snapshot.learning_rate),
        "previous": snapshot.previous,
        "start": snapshot.start,
        "run": snapshot.run,
        "notes": list(snapshot.notes),
        "names": _digest(arrays),
    }
    arrays["header"] = _as_bytes(header)
    return arrays


def decode_header(arrays: Arrays, path: Path, step: int | None = None) -> SnapshotHeader:
    """What a snapshot says of itself.

    Args:
        arrays: The archive.
        path: Its file, for errors and, of format 1, the epoch.
        step: The step that it must be of; of format 1, the step that it counts as.

    Raises:
        SnapshotError: It is of a newer format.
        ValueError: It is damaged; :func:`reading` adds which file it is.
    """
    header = _header(arrays, path)
    moment = _moment(header, step)
    _check(step is None or moment.step == step, f"it says that it is of step {moment.step}")
    names = _names(header)
    _check(
        all(isinstance(name, str) for name in names) and len(set(names)) == len(names),
        "its names of layers are not texts that differ",
    )
    values, taken = {}, {}
    for layer in header["layers"]:
        of_layer = layer.get("values", {})
        sound = type(layer["features"]) is int and type(layer["converged"]) is bool
        sound = sound and layer.get("is_output") in (None, True, False)
        sound = sound and type(seconds := layer.get("seconds", 0)) in (int, float)
        _check(sound and _are_numbers(of_layer), f"layer {layer['name']!r} is damaged")
        if "seconds" in layer:
            taken[layer["name"]] = float(seconds)
        values[layer["name"]] = {key: _NAN if value is None else float(value) for key, value in of_layer.items()}
    rate, previous, start, size = (header.get(key) for key in ("learning_rate", "previous", "start", "size"))
    run = header.get("run", "")
    _check(isinstance(header["probe"], str) and isinstance(run, str), "its probe or run is damaged")
    _check(rate is None or type(rate) in (int, float), f"its learning rate is {rate!r}")
    _check(
        all(number is None or type(number) is int for number in (previous, start, size)), "its size or order is damaged"
    )
    notes = header.get("notes", [])
    _check(isinstance(notes, list) and all(isinstance(note, str) for note in notes), "its notes are no texts")
    for key in ("settings", "seconds", "versions"):
        _check(isinstance(header.get(key, {}), dict), f"its {key} are damaged")
    _check(_are_numbers(header["seconds"]), "its seconds are damaged")
    known = [layer.get("is_output") for layer in header["layers"]]
    outputs = None if None in known else [name for name, is_output in zip(names, known, strict=True) if is_output]
    return SnapshotHeader(
        moment=moment,
        layers=names,
        values=values,
        size=size,
        # What modularity is over was once called labels.
        settings={"groups" if key == "labels" else key: value for key, value in header["settings"].items()},
        versions=header.get("versions", {}),
        learning_rate=rate,
        previous=previous,
        start=start,
        run=run,
        outputs=outputs,
        notes=tuple(notes),
        layer_seconds=taken,
        **{key: header[key] for key in ("probe", "seconds")},
    )


def decode(arrays: Arrays, path: Path, step: int | None = None) -> Snapshot:
    """A whole snapshot; arguments and errors as of :func:`decode_header`."""
    header = decode_header(arrays, path, step)
    layers = dict(decode_layers(arrays, path))
    sizes = {len(layer.gap) for layer in layers.values()}
    _check(len(sizes) <= 1, "its layers are of different numbers of samples")
    size = next(iter(sizes), None)
    _check(header.size in (None, size), "its layers are of another number of samples than it says")
    of_samples = decode_of_samples(arrays, size)
    return Snapshot(
        header.moment,
        layers,
        labels=of_samples.get("labels"),
        indices=of_samples.get("indices"),
        predictions=of_samples.get("predictions"),
        confidence=of_samples.get("confidence"),
        settings=header.settings,
        probe=header.probe,
        seconds=header.seconds,
        learning_rate=header.learning_rate,
        pairs=decode_pairs(arrays, path),
        previous=header.previous,
        start=header.start,
        run=header.run,
        notes=header.notes,
    )


def decode_pairs(arrays: Arrays, path: Path) -> dict[str, Tensor]:
    """Tables between the layers of a snapshot, by the names of the measures; errors as of :func:`decode_header`."""
    layers, tables = len(_names(_header(arrays, path))), {}
    for name in [name.removeprefix("pairs/") for name in arrays if name.startswith("pairs/")]:
        table = arrays[f"pairs/{name}"]
        _check(table.shape == (layers, layers) and table.dtype.kind == "f", f"its table {name!r} is damaged")
        tables[name] = torch.from_numpy(table)
    return tables


def decode_layers(arrays: Arrays, path: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, LayerGraph]]:
    """Layers of a snapshot, one at a time; all or those of the names that it holds.

    Raises:
        ValueError: One is damaged.
    """
    wanted = None if names is None else set(names)
    inputs, classes = _columns(arrays, "inputs"), _columns(arrays, "classes")
    for i, entry in enumerate(_header(arrays, path)["layers"]):
        if wanted is None or entry["name"] in wanted:
            yield entry["name"], _layer(arrays, i, entry, inputs.get(str(i), ()), classes.get(str(i), ()))


def decode_of_classes(arrays: Arrays, path: Path) -> dict[str, dict[str, Tensor]]:
    """What was measured of classes, by the names of layers and measures; errors as of :func:`decode_header`."""
    names, columns = _names(_header(arrays, path)), _columns(arrays, "classes")
    return {name: _of_classes(arrays, i, name, columns.get(str(i), ())) for i, name in enumerate(names)}


def _columns(arrays: Arrays, kind: str) -> dict[str, list[str]]:
    """Names of the columns of a kind, by the place of their layer."""
    found: dict[str, list[str]] = {}
    for place, separator, column in (key.partition(f"/{kind}/") for key in arrays):
        if separator:
            found.setdefault(place, []).append(column)
    return found


def _of_classes(arrays: Arrays, i: int, name: str, columns: Iterable[str]) -> dict[str, Tensor]:
    found = {key: arrays[f"{i}/classes/{key}"] for key in columns}
    for key, column in found.items():
        _check(column.ndim == 1 and column.dtype.kind == "f", f"layer {name!r} has a damaged column {key!r}")
    return {key: torch.from_numpy(column) for key, column in found.items()}


def decode_of_samples(arrays: Arrays, size: int | None) -> dict[str, Tensor]:
    """Labels, predictions and so on, one entry a sample; those that the snapshot has.

    Raises:
        ValueError: They are damaged.
    """
    found = {key: arrays[key] for key in OF_SAMPLES if key in arrays}
    for key, values in found.items():
        _check(values.ndim == 1 and size in (None, len(values)), f"its {key} are not one a sample")
        _check(values.dtype.kind == ("f" if key == "confidence" else "i"), f"its {key} are {values.dtype}")
        if key in ("labels", "predictions"):
            _check(values.dtype == np.int64, f"its {key} are {values.dtype}")
    return {key: torch.from_numpy(values) for key, values in found.items()}


def encode_card(card: ProbeCard) -> Arrays:
    """What readers see of the probe, as arrays."""
    header = {"format": FORMAT, "fingerprint": card.fingerprint, "class_names": list(card.class_names)}
    header |= {"texts": list(card.texts)} if card.texts else {}
    arrays = {"header": _as_bytes(header)}
    return arrays if card.images is None else {**arrays, "images": card.images}


def decode_card(arrays: Arrays, path: Path) -> ProbeCard:
    """What readers see of the probe; errors as of :func:`decode_header`."""
    header = _header(arrays, path)
    images = arrays.get("images")
    _check(isinstance(header["fingerprint"], str), "the fingerprint is no text")
    texts = header.get("texts", [])
    _check(all(isinstance(name, str) for name in (*header["class_names"], *texts)), "a class name or a text is none")
    pictures = images is None or (images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3)
    _check(pictures, "the pictures are not (N, H, W, 3) bytes")
    return ProbeCard(header["fingerprint"], images, tuple(header["class_names"]), tuple(texts))


def _layer(
    arrays: Arrays,
    i: int,
    entry: Mapping[str, Any],
    columns_of_inputs: Iterable[str],
    columns_of_classes: Iterable[str],
) -> LayerGraph:
    name = entry["name"]
    crow, col, value = (arrays[f"{i}/{part}"] for part in ("crow", "col", "value"))
    gap, found = torch.from_numpy(arrays[f"{i}/gap"]), arrays.get(f"{i}/communities")
    n = len(crow) - 1
    for values in (gap, found):
        _check(values is None or tuple(values.shape) == (n,), f"layer {name!r} has a column of another length")
    _check(
        value.dtype.kind == "f" and bool(np.isfinite(value).all()),
        f"layer {name!r} has weights that are no numbers",
    )
    try:  # unchecked, indices out of range would be read as memory
        rows, columns = (torch.from_numpy(index.astype(np.int64)) for index in (crow, col))
        # NumPy 1 gives an empty array, of a graph without edges, a stride of 0, which PyTorch takes for a gap
        columns = columns.clone(memory_format=torch.contiguous_format) if not len(columns) else columns
        coef = torch.sparse_csr_tensor(rows, columns, torch.from_numpy(value), (n, n), check_invariants=True)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    of_inputs = {}
    for key in columns_of_inputs:
        column = arrays[f"{i}/inputs/{key}"]
        _check(column.shape == (n,) and column.dtype.kind in "if", f"layer {name!r} has a damaged column {key!r}")
        of_inputs[key] = torch.from_numpy(column)
    linear = None
    if f"{i}/linear/pairs" in arrays:
        diagonal, pairs = (torch.from_numpy(arrays[f"{i}/linear/{part}"]) for part in ("diagonal", "pairs"))
        linear = GramSketch(diagonal, pairs, _known(entry, "linear_norm"))
    return LayerGraph(
        coef,
        gap,
        entry["converged"],
        entry["features"],
        linear,
        None if found is None else torch.from_numpy(found),
        {key: _float(measured) for key, measured in entry.get("values", {}).items()},
        of_inputs,
        _known(entry, "norm"),
        entry.get("is_output"),
        _known(entry, "seconds"),
        _of_classes(arrays, i, name, columns_of_classes),
    )


def _as_bytes(header: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)


def _header(arrays: Arrays, path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(bytes(arrays["header"]))
    if header["format"] > FORMAT:
        raise SnapshotError(
            f"{path} has snapshot format {header['format']}; this version of lightning_ssc reads up to {FORMAT}. "
            f"Upgrade lightning-ssc to read it."
        )
    # Names of arrays have no checksum of their own, and one that is missing may mean that there was nothing to keep.
    _check(header.get("names", _digest(arrays)) == _digest(arrays), "the names of its arrays are damaged")
    return header


def _digest(arrays: Iterable[str]) -> int:
    """A checksum of the names of arrays, but for the header."""
    return zlib.crc32("\n".join(name for name in arrays if name != "header").encode())


def _moment(header: Mapping[str, Any], step: int | None) -> Moment:
    """When it was taken; format 1 knows the epoch and the logging step, which is one less than the steps done."""
    if header["format"] == 1:
        epoch, logged = header["epoch"], header["step"]
        _check(type(epoch) is int and epoch >= 0 and type(logged) is int, "its step or epoch is damaged")
        return Moment((0 if epoch == 0 else logged + 1) if step is None else step, epoch, "epoch", logged)
    moment = header["moment"]
    whole = all(type(moment[key]) is int and moment[key] >= 0 for key in ("step", "logged"))
    number = moment["epoch"] is None or type(moment["epoch"]) in (int, float)
    _check(whole and number and isinstance(moment["trigger"], str), "its moment is damaged")
    return Moment(moment["step"], _float(moment["epoch"]), moment["trigger"], moment["logged"])


def _number(value: float | None) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else value


def _float(value: float | None) -> float:
    return _NAN if value is None else float(value)


def _known(entry: Mapping[str, Any], key: str) -> float | None:
    """A number that older files lack."""
    return _float(entry[key]) if key in entry else None


def _are_numbers(values: Mapping[str, Any]) -> bool:
    return set(map(type, values.values())) <= {int, float, type(None)}


def _names(header: Mapping[str, Any]) -> list[str]:
    return [layer["name"] for layer in header["layers"]]


def _check(holds: bool, what: str) -> None:
    """Refuse what an archive holds; :func:`reading` adds which file it is."""
    if not holds:
        raise ValueError(what)
