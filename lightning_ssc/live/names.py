"""What runs are called."""

from __future__ import annotations

from pathlib import Path


def run_name(root: Path) -> str:
    """What to call a run: the last two folders above its snapshots.

    Example:
        >>> run_name(Path("runs/resnet/version_0/ssc"))
        'resnet/version_0'
    """
    return "/".join(_folders(root)[-2:])


def run_names(
    roots: tuple[Path, Path],
    epochs: tuple[int | None, int | None] = (None, None),
    steps: tuple[int | None, int | None] = (None, None),
) -> tuple[str, str]:
    """What to call two runs: as many of their last folders, two or more, as tell them apart, and the moment asked for.

    Example:
        >>> run_names((Path("a/net/version_0/ssc"), Path("b/net/version_0/ssc")), (3, None))
        ('a/net/version_0, epoch 3', 'b/net/version_0')
    """
    one, other = (_folders(root) for root in roots)
    count = next((k for k in range(2, max(len(one), len(other))) if one[-k:] != other[-k:]), 2)
    first, second = (
        "/".join(parts[-count:])
        + ("" if epoch is None else f", epoch {epoch}")
        + ("" if step is None else f", step {step}")
        for parts, epoch, step in zip((one, other), epochs, steps, strict=True)
    )
    return first, second


def _folders(root: Path) -> tuple[str, ...]:
    path = root.resolve()
    return (path.parent if path.name.startswith("ssc") else path).parts
