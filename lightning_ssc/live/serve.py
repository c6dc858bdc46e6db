"""A server of the page for people without TensorBoard."""

from __future__ import annotations

import ipaddress
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from lightning_ssc.live.folder import LogFolder
from lightning_ssc.live.server import Application, applications, asset

# plotly.js writes styles into the page; scripts come as files of this server and from nowhere else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def make(path: str | Path, host: str = "127.0.0.1", port: int = 0) -> BaseWSGIServer:
    """A server of the runs below a folder, ready for ``serve_forever()``.

    Args:
        path: The folder.
        host: The address to listen at.
        port: The port; 0 takes a free one.

    Raises:
        NotADirectoryError: There is no such folder.
        OSError: The port is taken.
    """
    if not Path(path).is_dir():
        raise NotADirectoryError(f"{path} is not a folder. Name the folder that holds your runs.")
    server = make_server(host, port, page(LogFolder(path), _is_local(host)), threaded=True, request_handler=_Quiet)
    return server


def page(folder: LogFolder, local: bool = True) -> Application:
    """The WSGI application that is the whole page.

    Args:
        folder: The log folder.
        local: Whether only this machine is answered, under its own names: a name elsewhere that leads here would let
            another site read the runs.
    """
    below = applications(folder)

    @Request.application
    def index(request: Request) -> Response:
        answer = Response(asset("index.html"), content_type="text/html; charset=utf-8")
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "no-cache"
        return answer

    @Request.application
    def nothing(request: Request) -> Response:
        return Response("There is nothing here.\n", 404, headers={"X-Content-Type-Options": "nosniff"})

    def application(environ: dict[str, Any], start: Any) -> Any:
        name = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if local and not (name == "localhost" or _is_local(name.strip("[]"))):
            return nothing(environ, start)
        path = environ.get("PATH_INFO", "")
        is_index = path == "/" and environ["REQUEST_METHOD"] in ("GET", "HEAD")
        return (index if is_index else below.get(path, nothing))(environ, start)

    return application


def serve(path: str | Path, host: str, port: int, browser: bool) -> None:
    """Serve until interrupted, and say where."""
    server = make(path, host, port)
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.port}/"
    if not _is_local(host):
        print(f"Warning: everybody who reaches {host} can read the runs below {path}.", file=sys.stderr)
    print(f"Subspaces: {address} (Ctrl-C ends it)", flush=True)
    if browser and _has_screen():
        webbrowser.open(address)
    with server:
        server.serve_forever()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_screen() -> bool:
    """Whether a browser would have a place to open; one in the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Quiet(WSGIRequestHandler):
    """Says nothing of every request."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing but of errors."""
        if type == "error":
            super().log(type, message, *args)
