"""How much memory there is to work in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free, with what PyTorch's allocator holds in reserve and within a container's limit.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return min((int(psutil.virtual_memory().available), *left_in_groups()))


def left_in_groups(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes left of every limit on a control group of Linux, a container's or a job's, that this process is in.

    Cached files, which the kernel gives up for the asking, count as left (the kernel's documentation of cgroups,
    version 2, and of the memory controller of version 1).

    Args:
        own: Where the kernel says which groups they are.
        mounted: Where the groups are.
    """
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used, cached = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top = mounted / "memory"
            limit, used, cached = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            try:
                most = (folder / limit).read_text().strip()
                counts = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                left = int(counts.get(cached, 0)) - int((folder / used).read_text())
            except OSError:  # a group without this controller, or one that this container does not see
                continue
            if most != "max":
                yield max(0, int(most) + left)
