"""What processes tell one another: nothing where there is one, and the same on all where there are several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_ssc.ranks import Ranks
from tests import processes


def test_a_lone_process_tells_nobody() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert (ranks.everyones("mine"), ranks.gather("mine"), ranks.broadcast("mine")) == (["mine"], ["mine"], "mine")
    assert (ranks.all_true(True), ranks.all_true(False)) == (True, False)
    assert [act(lambda: "got") for act in (ranks.from_zero, ranks.on_zero, ranks.together)] == ["got"] * 3


def test_a_lone_process_raises_its_own_error() -> None:
    ranks, error = Ranks(), KeyError("mine")
    ranks.raise_together(None)

    def fail() -> None:
        raise error

    for act in (ranks.from_zero, ranks.on_zero, ranks.together, lambda _: ranks.raise_together(error)):
        with pytest.raises(KeyError) as caught:
            act(fail)
        assert caught.value is error


def test_two_processes(tmp_path: Path) -> None:
    assert processes.distributed(processes.talk, 2, tmp_path) == [0, 0]
    zero, one = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert (zero.pop("who"), one.pop("who")) == ([0, 2], [1, 2])
    assert (zero.pop("gather"), one.pop("gather")) == ([[0, 0, 0], [1, 1, 1]], None)
    assert (zero.pop("on_zero"), one.pop("on_zero")) == ("on 0", None)
    assert (zero.pop("together"), one.pop("together")) == ("mine 0", "mine 1")
    assert (zero.pop("acted"), one.pop("acted")) == ([0, 0], [])
    of_one = "FailedError: SSC failed on rank 1: ValueError: no 1"
    assert (zero.pop("of one"), one.pop("of one")) == ([of_one, "None"], [of_one, "ValueError('no 1')"])
    of_both = "FailedError: SSC failed on rank 0: ValueError: no 0; rank 1: ValueError: no 1"
    assert zero.pop("of both") == [of_both, "ValueError('no 0')"]
    assert one.pop("of both") == [of_both, "ValueError('no 1')"]
    of_zero, cause = "FailedError: SSC failed on rank 0: ZeroDivisionError: division by zero", "ZeroDivisionError("
    for key in ("of zero", "of zero, asked", "together of one"):
        (told, why), (heard, nothing) = zero.pop(key), one.pop(key)
        assert (told, heard, nothing) == (of_zero, of_zero, "None")
        assert why.startswith(cause)
    assert zero == one
    assert zero == {
        "everyones": [{"rank": 0}, {"rank": 1}],
        "all_true": [True, False, False],
        "broadcast": "of 0",
        "from_zero": "from 0",
        "no failure": None,
        "still together": [0, 1],
    }
