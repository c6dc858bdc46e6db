"""The callbacks for Lightning's Trainer."""

from lightning_ssc.callback.freezing import FreezeSettled
from lightning_ssc.callback.monitor import SSCMonitor

__all__ = ["FreezeSettled", "SSCMonitor"]
