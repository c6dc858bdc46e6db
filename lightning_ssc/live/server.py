"""A page and its pieces over HTTP: WSGI applications by path, for TensorBoard and for a server of our own."""

from __future__ import annotations

import gzip
import inspect
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cache, partial
from importlib.resources import files
from threading import Thread
from typing import TYPE_CHECKING, Any

from werkzeug import Request, Response

from lightning_ssc.live.folder import LogFolder

if TYPE_CHECKING:
    from lightning_ssc.live.source import Source

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

MODULES = (
    "main.js",
    "start.js",
    "data.js",
    "ui.js",
    "colors.js",
    "training.js",
    "architecture.js",
    "inputs.js",
    "run.js",
)
PIECES = (
    *("runs", "run", "computed", "pictures", "heatmap", "classes", "between"),
    *("samples", "embedding", "neighbours", "input", "history", "doubts"),
)

_JAVASCRIPT, _JSON = "text/javascript; charset=utf-8", "application/json"
_WORTH_PACKING = 4096  # bytes from which an answer is compressed


def applications(folder: LogFolder) -> dict[str, Application]:
    """WSGI applications by path: the modules of the page, its style, plotly.js, and the pieces of the runs.

    They answer GET and HEAD alone, and serve nothing but these files and what was read of the runs that are found.

    Args:
        folder: The log folder.
    """
    source = _Later(folder)
    found: dict[str, Application] = {"/plotly.js": _answering(lambda request: _script(plotly(), request))}
    for name in MODULES:
        found[f"/{name}"] = _answering(partial(_module, name))
    found["/style.css"] = _answering(
        lambda request: _Answer(asset("style.css"), content_type="text/css; charset=utf-8")
    )
    for name in PIECES:
        found[f"/{name}"] = _answering(partial(_piece, source, name))
    return found


class _Later:
    """A source that is made beside whatever else starts: to import PyTorch takes seconds."""

    def __init__(self, folder: LogFolder) -> None:
        self._folder = folder
        self._made: Future[Source] = Future()
        Thread(target=self._make, daemon=True).start()

    def _make(self) -> None:
        try:
            from lightning_ssc.live.source import Source

            self._made.set_result(Source(self._folder))
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.result().read_ahead()

    def __call__(self) -> Source:
        return self._made.result()


def _module(name: str, request: Request) -> Response:
    return _script(asset(name), request)


def _piece(source: Callable[[], Source], name: str, request: Request) -> Response:
    from lightning_ssc.live.source import NotFoundError
    from lightning_ssc.snapshots import SnapshotError

    answer = getattr(source(), name)
    try:
        arguments = _arguments(answer, request)
    except ValueError as error:
        return _failed(str(error), 400)
    try:
        found = answer(**arguments)
    except NotFoundError as error:
        return _failed(str(error), 404)
    except SnapshotError as error:
        return _failed(str(error), 422)
    text = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
    return _compressed(_Answer(text, content_type=_JSON), request)


def _arguments(answer: Callable[..., Any], request: Request) -> dict[str, Any]:
    """What a piece needs, from the query; numbers where its signature says so."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(answer).parameters.items():
        if name in request.args:
            text = request.args[name]
            if parameter.annotation == "int" and not (text.isdecimal() and text.isascii() and len(text) < 16):
                raise ValueError(f"{name} has to be a number, not {text[:100]!r}.")
            found[name] = int(text) if parameter.annotation == "int" else text
        elif parameter.default is parameter.empty:
            raise ValueError(f"{name} is missing.")
    return found


class _Answer(Response):
    """Never taken for anything but what it says it is."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.headers["X-Content-Type-Options"] = "nosniff"
        self.headers["Cache-Control"] = "no-cache"


def _answering(answer: Callable[[Request], Response]) -> Application:
    def respond(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            refused = _failed("This is answered to GET alone.", 405)
            refused.headers["Allow"] = "GET, HEAD"
            return refused
        try:
            return answer(request)
        except Exception as error:  # a page that is told can say so; the rest of it works
            log.exception("%s failed", request.path)
            return _failed(f"{type(error).__name__}: {error}", 500)

    application: Application = Request.application(respond)
    return application


def _failed(message: str, status: int) -> Response:
    return _Answer(json.dumps({"error": message}), status, content_type=_JSON)


def _script(text: str, request: Request) -> Response:
    return _compressed(_Answer(text, content_type=_JAVASCRIPT), request)


def _compressed(answer: Response, request: Request) -> Response:
    """An answer for other machines in fewer bytes; this one has them at once."""
    data = answer.get_data()
    if (
        request.remote_addr not in ("127.0.0.1", "::1")
        and len(data) >= _WORTH_PACKING
        and request.accept_encodings.find("gzip") >= 0
    ):
        answer.set_data(gzip.compress(data, 3))
        answer.headers["Content-Encoding"] = "gzip"
    return answer


@cache
def asset(name: str) -> str:
    """A file of the page."""
    return (files("lightning_ssc.live") / "page" / name).read_text(encoding="utf-8")


@cache
def plotly() -> str:
    """plotly.js, which draws the page.

    Raises:
        ImportError: Plotly, whose wheel carries it, is not installed.
    """
    try:
        return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise ImportError(
            "The page is drawn by plotly, which is not installed: pip install 'lightning-ssc[report]'."
        ) from error
