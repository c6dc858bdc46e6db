"""Tables from stored snapshots; nothing here needs the training run."""

from lightning_ssc.analysis.dynamics import Dynamics, dynamics

__all__ = ["Dynamics", "dynamics"]
