"""Watch a network's representation form while it trains."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_ssc.callback import SSCMonitor
    from lightning_ssc.pipeline import snapshot
    from lightning_ssc.snapshots import Snapshot, SnapshotStore

__version__ = "0.1.0"
__all__ = ["SSCMonitor", "Snapshot", "SnapshotStore", "snapshot"]

_WHERE = {"SSCMonitor": "callback", "Snapshot": "snapshots", "SnapshotStore": "snapshots", "snapshot": "pipeline"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``lightning_ssc.functional`` alone stays cheap."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
