"""The ONNX file → HTTP and a page."""

import hmac
import importlib.metadata
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from ikebana import progress
from ikebana.errors import RecipeError
from ikebana.shipping import listening, pages
from ikebana.shipping.door import Door
from ikebana.shipping.limits import Gone, Limits, Refusal
from ikebana.shipping.metrics import CONTENT_TYPE_LATEST, Metrics
from ikebana.shipping.pages import Facts
from ikebana.shipping.queueing import Answer, Classifier, Desk
from ikebana.shipping.sorting import UNUSABLE
from ikebana.shipping.upload import received

HUNG_UP = 499  # nobody is there to read it; it is counted under this number, as nginx does
PAGES = {"/": "index.html", "/docs": "docs.html"} | {f"/{name}": name for name in (*pages.COMMON, *pages.SERVED)}
PHOTO = {"type": "string", "format": "binary"}
BODY = {
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "schema": {"type": "string"},
            "description": "Of the photo, if the body is one photo: it is repeated in the answer.",
        }
    ],
    "requestBody": {
        "required": True,
        "description": "One or many files as a form, or the bytes of one photo.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"photo": {"type": "array", "items": PHOTO}}}
            },
            "image/*": {"schema": PHOTO},
        },
    },
}


@dataclass
class Answers:
    """One answer a photo, in the order of the upload."""

    predictions: list[Answer]


@dataclass
class Problem:
    """Why there is no answer."""

    error: str  # what is wrong
    advice: str  # what to try


@dataclass
class Unusable(Problem):
    """None of the photos can be used."""

    predictions: list[Answer]


@dataclass
class Accepted:
    """What one upload may be."""

    bytes: int
    files: int
    pixels: int


@dataclass(frozen=True)
class Classes(Facts):
    """What the classifier can tell apart, how far it can be believed, and what it takes."""

    limits: Accepted


@dataclass
class State:
    """Of the server."""

    state: str


@dataclass(frozen=True)
class Service:
    """The application, and the desk behind it."""

    app: Door
    desk: Desk


def serve(
    file: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Answer over HTTP what photos show, until told to stop.

    file    that `ikebana export` made
    token   that requests must bring, as `Authorization: Bearer TOKEN`
    raises  ModelError if the file is none; MachineError if the port is taken; RecipeError for a token that cannot be sent
    """
    from ikebana.shipping import classifier

    bounds = limits or Limits()
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RecipeError("this token cannot be sent in a header", advice="letters and digits, 32 say")
    shipped = classifier.load(file)
    listener = listening.bound(host, port)
    names = listening.names(listener, host)
    service = build(shipped, bounds, token, None if token else names)
    progress.say(f"{Path(file).name}: {', '.join(shipped.classes)}")
    progress.say("Photos are looked at and forgotten. Ctrl-C finishes what was accepted, and stops.")
    if names is None and not token:
        progress.say("Whoever reaches this machine may ask: --token SECRET keeps strangers out.")
    url = listening.address(listener)
    progress.event("serving", url=url)
    progress.result(url)
    listening.run(service.app, service.desk, bounds, listener)


def build(
    classifier: Classifier, limits: Limits, token: str | None = None, names: Collection[str] | None = None
) -> Service:
    """The application, without a socket. It must be made and run on the same event loop's thread.

    names  of the server: requests for any other are refused; None if it may have any, as one that asks for a token may
    """
    metrics = Metrics()
    desk = Desk(classifier, limits, metrics)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        async with desk.at_work():
            yield

    app = FastAPI(
        title="ikebana",
        summary="Says what photos show." if token else f"Tells apart {', '.join(classifier.classes)}.",
        version=importlib.metadata.version("ikebana"),
        docs_url=None,
        redoc_url=None,
        lifespan=working,
    )
    _complain(app)
    private = [Depends(_guard(token))] if token else []
    _predict(app, desk, limits, private)
    _tell_classes(app, classifier, limits, private)

    @app.get("/metrics", summary="What was counted, as Prometheus reads it", dependencies=private)
    def _metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    _tell_state(app, desk)
    for path, name in PAGES.items():
        app.add_api_route(path, _page(name), methods=["GET", "HEAD"], include_in_schema=False)
    return Service(Door(app, metrics, [getattr(each, "path", "") for each in app.routes], names), desk)


def _predict(app: FastAPI, desk: Desk, limits: Limits, private: list[Any]) -> None:
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "The form is broken."},
        408: {"model": Problem, "description": "The upload was too slow."},
        413: {"model": Problem, "description": "The upload is too large, or has too many files."},
        422: {"model": Unusable, "description": "None of the photos can be used."},
        503: {"model": Problem, "description": "The queue is full; `Retry-After` says when to come again."},
    }

    @app.post(
        "/predict",
        summary="What photos show",
        dependencies=private,
        response_model=Answers,
        responses=problems,
        openapi_extra=BODY,
    )
    async def _predict(request: Request) -> JSONResponse:
        with desk.visit() as visit:
            uploads = await received(request, limits, visit)
            answers = await desk.answers(uploads)
        told = [asdict(each) for each in answers]
        if all(each.outcome == UNUSABLE for each in answers):
            what = answers[0].status if len(answers) == 1 else f"none of the {len(answers)} photos can be used"
            return JSONResponse({"error": what, "advice": "another photo", "predictions": told}, 422)
        return JSONResponse({"predictions": told})


def _tell_classes(app: FastAPI, classifier: Classifier, limits: Limits, private: list[Any]) -> None:
    accepted = Accepted(limits.megabytes * 2**20, limits.files, limits.megapixels * 1_000_000)
    classes = Classes(**asdict(pages.facts(classifier)), limits=accepted)

    @app.get("/classes", summary="What the classifier tells apart, and what it takes", dependencies=private)
    def _classes() -> Classes:
        return classes


def _tell_state(app: FastAPI, desk: Desk) -> None:
    @app.get("/healthz", summary="Whether the server lives")
    async def _healthz() -> State:
        return State("alive")

    closing: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "The server is shutting down."}}

    @app.get("/readyz", summary="Whether the server takes photos", responses=closing)
    async def _readyz() -> State:
        if desk.closing:
            raise Refusal(503, "the server is shutting down", "another server", again=1)
        return State("ready")


def _guard(token: str) -> Callable[..., None]:
    bearer = HTTPBearer(auto_error=False, description="The token that `ikebana serve --token` was given.")

    def guard(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode("latin-1", "replace"), token.encode()):
            what = "a token is needed" if given is None else "this token is not the right one"
            raise Refusal(401, what, "Authorization: Bearer TOKEN", kind={"WWW-Authenticate": "Bearer"})

    return guard


def _page(name: str) -> Callable[[], Response]:
    content = pages.read(name)

    def page() -> Response:
        return Response(content, media_type=pages.kind(name), headers={"Cache-Control": "no-cache"})

    return page


def _complain(app: FastAPI) -> None:
    """Every refusal is JSON of the same form, whoever raises it."""

    @app.exception_handler(Refusal)
    async def _refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _problem(refusal.status, refusal.what, refusal.advice, refusal.headers)

    @app.exception_handler(Gone)
    async def _gone(_: Request, __: Gone) -> Response:
        return Response(status_code=HUNG_UP)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(
            error.status_code, str(error.detail).lower(), "/docs lists what there is", dict(error.headers or {})
        )

    @app.exception_handler(Exception)
    async def _broken(_: Request, __: Exception) -> JSONResponse:
        return _problem(500, "this is a fault of the server", "its terminal says more")


def _problem(status: int, what: str, advice: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(asdict(Problem(what, advice)), status, headers)
