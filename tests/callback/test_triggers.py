import pytest

from lightning_ssc.callback.triggers import as_schedule, at, every, log_spaced


def test_schedules() -> None:
    assert [e for e in range(7) if as_schedule(2)(e)] == [0, 2, 4, 6]
    assert [e for e in range(40) if as_schedule([0, 1, 31])(e)] == [0, 1, 31]
    assert [e for e in range(4) if as_schedule(lambda epoch: epoch == 3)(e)] == [3]
    chosen = [e for e in range(1001) if log_spaced(3)(e)]
    assert chosen == [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(0), "at least 1, got 0"),
        (lambda: at([]), "from 0"),
        (lambda: at([3, -1]), "from 0"),
        (lambda: log_spaced(0), "at least 1, got 0"),
    ],
)
def test_wrong_schedules(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
