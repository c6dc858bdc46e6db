"""Tables and pictures as a page gets them: numbers in base64, pictures on one sheet."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MISSING = -32768


def pack(values: ArrayLike) -> dict[str, Any]:
    """A table of numbers as float32 in base64; what is missing is NaN.

    Example:
        >>> packed = pack([[0.5, np.nan]])
        >>> packed["shape"], np.frombuffer(base64.b64decode(packed["data"]), "<f4").tolist()
        ([1, 2], [0.5, nan])
    """
    table = np.asarray(values, dtype="<f4")
    return {"type": "f4", "shape": list(table.shape), "data": _base64(table)}


def pack_integers(values: ArrayLike) -> dict[str, Any]:
    """A table of integers in base64, of 16 bits where these hold them.

    Example:
        >>> pack_integers([1, -1])["type"], pack_integers([100_000])["type"]
        ('i2', 'i4')
    """
    table = np.asarray(values, dtype=np.int64)
    kind = "i2" if np.abs(table).max(initial=0) < -_MISSING else "i4"
    return {"type": kind, "shape": list(table.shape), "data": _base64(table.astype(f"<{kind}"))}


def pack_coarsely(values: ArrayLike) -> dict[str, Any]:
    """A table of numbers as 16-bit integers times a scale, exact to 1/65532 of its largest magnitude.

    Example:
        >>> packed = pack_coarsely([[0.5, np.nan]])
        >>> packed["shape"], np.frombuffer(base64.b64decode(packed["data"]), "<i2").tolist()
        ([1, 2], [32766, -32768])
    """
    table = np.asarray(values, dtype=float)
    largest = float(np.max(np.abs(table), where=np.isfinite(table), initial=0.0))
    scale = largest / 32766 or 1.0
    scaled = np.where(np.isfinite(table), np.round(np.nan_to_num(table) / scale), _MISSING).astype("<i2")
    return {"type": "scaled", "shape": list(table.shape), "scale": scale, "data": _base64(scaled)}


def sprite(images: NDArray[np.uint8]) -> dict[str, Any]:
    """All pictures on one sheet, as a JPEG in a data URI with the numbers to find them by.

    Args:
        images: ``(N, H, W, 3)`` uint8.

    Example:
        >>> sheet = sprite(np.zeros((5, 8, 8, 3), dtype=np.uint8))
        >>> sheet["columns"], sheet["rows"], sheet["uri"][:23]
        (3, 2, 'data:image/jpeg;base64,')
    """
    from PIL import Image

    count, height, width, _ = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "jpeg", quality=85, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"uri": uri, "columns": columns, "rows": rows, "width": width, "height": height}


def _base64(table: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(table).tobytes()).decode()
