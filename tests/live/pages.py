"""What a page gets, read as it reads it."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np


def unpack(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A table of numbers; what is missing is NaN."""
    kind = {"f4": "<f4", "i2": "<i2", "i4": "<i4", "scaled": "<i2"}[packed["type"]]
    q = np.frombuffer(base64.b64decode(packed["data"]), kind).reshape(packed["shape"])
    return np.where(q == -32768, np.nan, q * packed["scale"]) if packed["type"] == "scaled" else q


def contents(html: str) -> dict[tuple[Any, ...], Any]:
    """The pieces that a report carries, by what they answer."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return {tuple(json.loads(key)): piece for key, piece in json.loads(found[1]).items()}
