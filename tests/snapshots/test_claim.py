"""Of several runs that want one folder, one gets it; a run that is gone holds none."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lightning_ssc.snapshots import claim as claims
from lightning_ssc.snapshots.claim import CLAIM, Claim, Owner, TakenError


def claimed_by(root: Path, owner: Owner) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / CLAIM).write_text(json.dumps(asdict(owner)))


def ended() -> int:
    """The number of a process that there was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_is_one_run_s_until_it_lets_go(tmp_path: Path) -> None:
    first = Claim(tmp_path / "ssc")
    with pytest.raises(TakenError, match=f"is in use by process {os.getpid()} on .*, begun 20"):
        Claim(tmp_path / "ssc")
    first.release()
    assert not list((tmp_path / "ssc").iterdir())
    second = Claim(tmp_path / "ssc")
    first.release()  # once more, which is not the second's business
    with pytest.raises(TakenError):
        Claim(tmp_path / "ssc")
    second.release()


def test_a_claim_that_nobody_holds_is_given_up(tmp_path: Path) -> None:
    held = Claim(tmp_path)
    del held
    gc.collect()
    Claim(tmp_path).release()


@pytest.mark.parametrize("how", ["ended", "number given again"])
def test_a_run_that_was_killed_holds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    here = Owner.here()
    claimed_by(tmp_path, replace(here, pid=ended()) if how == "ended" else replace(here, start=here.start - 60))
    claim = Claim(tmp_path)
    assert "which ended without giving it up; it is taken over" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM]
    assert json.loads((tmp_path / CLAIM).read_text())["start"] == here.start
    claim.release()


@pytest.mark.parametrize("where", [{"host": "another machine"}, {"processes": "of a container"}])
def test_of_another_machine_nobody_can_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: dict[str, str]
) -> None:
    claimed_by(tmp_path, replace(Owner.here(), pid=ended(), **where))
    with pytest.raises(TakenError):
        Claim(tmp_path)
    Claim(tmp_path, from_elsewhere=True).release()
    assert "whose end nobody can see from here" in caplog.text


def test_a_claim_that_cannot_be_read_is_respected(tmp_path: Path) -> None:
    (tmp_path / CLAIM).write_text("")  # as while another process writes it
    with pytest.raises(TakenError, match=r"a run that run\.lock does not name"):
        Claim(tmp_path)


def test_one_of_several_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another process does between looking at the old claim and replacing it."""
    gone = replace(Owner.here(), pid=ended())
    read, rivals = claims._read, []

    def and_then_the_rival(path: Path) -> Owner | None:
        found = read(path)
        if not rivals:
            rivals.append(None)
            rivals[0] = Claim(tmp_path)
        return found

    claimed_by(tmp_path, gone)
    monkeypatch.setattr(claims, "_read", and_then_the_rival)
    with pytest.raises(TakenError):
        Claim(tmp_path)
    assert isinstance(rivals[0], Claim)
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM]
    rivals[0].release()
    assert not list(tmp_path.iterdir())
