"""The server's answers: the page's files, and JSON about the index and the model.

GET requests read the index. POST requests compute with the model or write a mask. An error is JSON with the key
`error`, whose text is for people.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from monet.errors import ConfigError, DataError, MonetError, recognised
from monet.eval.view import files, limits
from monet.eval.view.guard import Guard, TooLarge
from monet.eval.view.live import Live
from monet.eval.view.masks import Collection
from monet.eval.view.query import Query
from monet.eval.view.store import Store
from monet.eval.view.visible import encoded
from monet.json_text import parse_json

Kind = TypeVar("Kind")


class TextBody(msgspec.Struct, forbid_unknown_fields=True):
    """A typed text."""

    text: str
    group: int | None = None


class CompareBody(msgspec.Struct, forbid_unknown_fields=True):
    """A typed text, and what to remove."""

    text: str
    collection: Collection


class ContinueBody(msgspec.Struct, forbid_unknown_fields=True):
    """A typed text to continue, and what to remove."""

    text: str
    collection: Collection
    count: int = 40
    temperature: float = 0.0
    seed: int = 0


class CollectionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A collection of experts."""

    collection: Collection


class SaveBody(msgspec.Struct, forbid_unknown_fields=True):
    """A collection to write as a mask."""

    name: str
    label: str
    collection: Collection
    overwrite: bool = False


class Api:
    """Handlers of requests.

    Args:
        store: the index.
        live: the model; None without one.
    """

    def __init__(self, store: Store, live: Live | None) -> None:
        self.store, self._live = store, live

    @property
    def live(self) -> Live:
        """The model.

        Raises:
            ConfigError: the server was started without one.
        """
        if self._live is None:
            raise ConfigError("this needs the model: start `monet view` with --model")
        return self._live

    def routes(self) -> list[Route]:
        """The paths below the token."""
        reads = {
            "info": self.info,
            "overview": lambda request: self.store.overview(),
            "experts": self.experts,
            "expert/{name}": lambda request: self.store.expert(self._unit(request)),
            "expert/{name}/neighbours": self.neighbours,
        }
        posts = {
            "expert/{name}/weights": lambda request, body: self.live.weights(self._unit(request)),
            "expert/{name}/promoted/{how}": lambda request, body: self.live.promoted(
                self._unit(request), request.path_params["how"]
            ),
            "prompt": self.prompt,
            "compare": self.compare,
            "collection": self.collection,
            "masks": self.save,
        }
        found = [Route(f"/api/{path}", _read(answer), methods=["GET"]) for path, answer in reads.items()]
        found += [Route(f"/api/{path}", _post(answer), methods=["POST"]) for path, answer in posts.items()]
        return [*found, Route("/api/continue", self.continuation, methods=["POST"])]

    def info(self, request: Request) -> dict[str, Any]:
        """About the index."""
        most = {"text_tokens": limits.TEXT_TOKENS, "new_tokens": limits.NEW_TOKENS, "rows": limits.ROWS}
        masks_folder = str(self.store.masks.out)
        return {**self.store.info(), "live": self._live is not None, "limits": most, "masks_folder": masks_folder}

    def experts(self, request: Request) -> dict[str, Any]:
        """Rows of the table."""
        words = dict(request.query_params)
        offset, count = (_whole(words.pop(name, "0" if name == "offset" else "50")) for name in ("offset", "count"))
        return self.store.browse(Query.of(words), offset, count)

    def neighbours(self, request: Request) -> list[dict[str, Any]]:
        """Similar units."""
        words = request.query_params
        return self.store.neighbours(self._unit(request), words.get("by", "contexts"), _whole(words.get("count", "10")))

    def prompt(self, request: Request, body: Any) -> dict[str, Any]:
        """Experts of a typed text."""
        asked = _body(body, TextBody)
        return self.live.prompt(asked.text, asked.group)

    def compare(self, request: Request, body: Any) -> dict[str, Any]:
        """What a removal changes in a typed text."""
        asked = _body(body, CompareBody)
        live = self.live
        removed_RN = self.store.masks.resolved(asked.collection, self.store.browser)
        return live.effect(asked.text, self.store.masks.mask(removed_RN))

    def collection(self, request: Request, body: Any) -> dict[str, Any]:
        """What a collection removes."""
        masks = self.store.masks
        removed_RN = masks.resolved(_body(body, CollectionBody).collection, self.store.browser)
        return {
            "experts": int(removed_RN.sum()),
            "share": float(removed_RN.mean()),
            "by_group": removed_RN.sum(1).tolist(),
            "weights": list(masks.weights(removed_RN).values()),
        }

    def save(self, request: Request, body: Any) -> dict[str, Any]:
        """Write a mask."""
        asked, masks = _body(body, SaveBody), self.store.masks
        removed_RN = masks.resolved(asked.collection, self.store.browser)
        try:
            folder = masks.save(asked.name, asked.label, removed_RN, asked.collection, asked.overwrite)
        except FileExistsError as error:
            return {"exists": True, "path": str(masks.path(asked.name)), "error": str(error)}
        self.store.browser.forget()
        return {"saved": str(folder), "experts": int(removed_RN.sum()), "name": asked.name.strip()}

    async def continuation(self, request: Request) -> Response:
        """A stream of JSON lines."""

        def start() -> Iterator[dict[str, Any]]:
            asked = _body(body, ContinueBody)
            live = self.live
            mask = self.store.masks.mask(self.store.masks.resolved(asked.collection, self.store.browser))
            return live.continuation(asked.text, mask, asked.count, asked.temperature, asked.seed)

        try:
            body = await _json(request)
            steps = await run_in_threadpool(start)
        except (MonetError, TooLarge) as error:
            return _failure(error)
        lines = (encoded(step) + b"\n" for step in steps)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    def _unit(self, request: Request) -> Any:
        return self.store.unit(request.path_params["name"])


def application(store: Store, live: Live | None, token: str) -> Guard:
    """The server's application.

    Args:
        store: the index.
        live: the model; None without one.
        token: the random first part of every path.
    """
    known = {name: (content, kind) for name, content, kind in files.files()}

    async def file(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in known:
            raise HTTPException(404)
        content, kind = known[name]
        return Response(content, media_type=kind)

    async def home(request: Request) -> Response:
        return RedirectResponse(f"/{token}/")

    async def missing(request: Request, error: Exception) -> Response:
        return PlainTextResponse("There is nothing at this address.\n", getattr(error, "status_code", 404))

    below = [*Api(store, live).routes(), Route("/", file, methods=["GET"]), Route("/{name}", file, methods=["GET"])]
    routes = [Route(f"/{token}{route.path}", route.endpoint, methods=list(route.methods or ())) for route in below]
    app = Starlette(
        routes=[*routes, Route(f"/{token}", home)],
        exception_handlers={404: missing, 405: missing, TooLarge: _too_large},
    )
    app.router.redirect_slashes = False
    return Guard(app, token)


def _read(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        try:
            return _success(await run_in_threadpool(lambda: encoded(answer(request))))
        except Exception as error:
            return _failure(error)

    return endpoint


def _post(answer: Callable[[Request, Any], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        try:
            body = await _json(request)
            return _success(await run_in_threadpool(lambda: encoded(answer(request, body))))
        except Exception as error:
            return _failure(error)

    return endpoint


async def _json(request: Request) -> Any:
    text = await request.body()
    return parse_json(text or b"{}", "the request")


def _success(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _failure(error: BaseException) -> Response:
    if isinstance(error, asyncio.CancelledError):
        raise error
    if isinstance(error, TooLarge):
        return _too_large_answer()
    known = recognised(error)
    if known is None:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}; the terminal of `monet view` shows where"
        return Response(encoded({"error": text}), 500, media_type="application/json")
    status = 503 if known.exit_code == 6 else 400
    return Response(encoded({"error": str(known)}), status, media_type="application/json")


async def _too_large(request: Request, error: Exception) -> Response:
    return _too_large_answer()


def _too_large_answer() -> Response:
    return Response(encoded({"error": f"the request has more than {limits.BODY} bytes"}), 413)


def _body(content: Any, kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"the request: {error}") from None


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ConfigError(f"{text[:40]!r} is no whole number")
    return int(text)
