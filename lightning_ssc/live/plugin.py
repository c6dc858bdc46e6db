"""The tab Subspaces of TensorBoard, which finds this class by the entry point ``tensorboard_plugins``."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin

from lightning_ssc.live.folder import LogFolder
from lightning_ssc.live.server import Application, applications


class SubspacesPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """One more tab, there as soon as the log folder holds snapshots.

    Args:
        context: TensorBoard's; its log folder is read and nothing else.
    """

    plugin_name = "subspaces"

    def __init__(self, context: Any) -> None:
        self._folder = LogFolder(context.logdir) if context.logdir else None

    def get_plugin_apps(self) -> dict[str, Application]:
        """WSGI applications by path."""
        return {} if self._folder is None else applications(self._folder)

    def is_active(self) -> bool:
        """Whether there is anything to see."""
        return self._folder is not None and self._folder.holds_runs()

    def frontend_metadata(self) -> Any:
        """What TensorBoard calls the tab, and loads into its frame."""
        return base_plugin.FrontendMetadata(es_module_path="/main.js", tab_name="Subspaces")
