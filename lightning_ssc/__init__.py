"""Watch a network's representation form while it trains."""

from typing import TYPE_CHECKING, Any

from lightning_ssc.version import __version__

if TYPE_CHECKING:
    from lightning_ssc.callback import FreezeSettled, SSCMonitor
    from lightning_ssc.callback.triggers import at, auto, every, log_spaced, on_lr_drop, on_validation
    from lightning_ssc.capture import show_layers
    from lightning_ssc.pipeline import snapshot
    from lightning_ssc.recorder import Recorder
    from lightning_ssc.settings import Settings
    from lightning_ssc.snapshots import Snapshot, SnapshotStore
    from lightning_ssc.writers import Images

__all__ = [
    "FreezeSettled",
    "Images",
    "Recorder",
    "SSCMonitor",
    "Settings",
    "Snapshot",
    "SnapshotStore",
    "__version__",
    "at",
    "auto",
    "every",
    "log_spaced",
    "on_lr_drop",
    "on_validation",
    "show_layers",
    "snapshot",
]

_TRIGGERS = ("at", "auto", "every", "log_spaced", "on_lr_drop", "on_validation")

_WHERE = {
    "FreezeSettled": "callback",
    "Images": "writers",
    "Recorder": "recorder",
    "SSCMonitor": "callback",
    "Settings": "settings",
    "Snapshot": "snapshots",
    "SnapshotStore": "snapshots",
    "show_layers": "capture",
    "snapshot": "pipeline",
    **dict.fromkeys(_TRIGGERS, "callback.triggers"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``lightning_ssc.functional`` alone stays cheap."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
