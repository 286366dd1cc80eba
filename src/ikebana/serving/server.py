"""The HTTP API and the web page of a model file."""

import base64
import hmac
import importlib.metadata
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from ikebana.evaluation.drift import Drift
from ikebana.inference import page_files
from ikebana.inference.page_files import ClassifierSummary
from ikebana.inference.sorting import UNUSABLE
from ikebana.serving.cross_origin import allow_origins
from ikebana.serving.limits import ClientDisconnected, Limits, Refusal
from ikebana.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from ikebana.serving.middleware import SecurityMiddleware
from ikebana.serving.prediction_queue import Classifier, PhotoPrediction, PredictionQueue
from ikebana.serving.uploads import read_uploads

# Counts requests of clients that disconnected, as nginx does; no client reads it.
CLIENT_CLOSED_REQUEST = 499
# With more classes, the page shows no sample of each.
MAX_SAMPLED_CLASSES = 24
# Path → file of the page.
PAGES = {"/": "index.html", "/docs": "docs.html"} | {
    f"/{name}": name for name in (*page_files.COMMON_FILES, *page_files.SERVER_FILES)
}
# Training photos per photo: each takes 7 kB of the response.
MAX_NEIGHBOURS = 20
PHOTO_SCHEMA = {"type": "string", "format": "binary"}
PHOTO_TEXT_SCHEMA = {"type": "string", "format": "byte", "description": "base64, or a data URL"}
NAMED_PHOTO_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "photo": PHOTO_TEXT_SCHEMA},
    "required": ["photo"],
}
PHOTO_LIST_SCHEMA = {"type": "array", "items": {"anyOf": [PHOTO_TEXT_SCHEMA, NAMED_PHOTO_SCHEMA]}}
JSON_SCHEMA = {
    "type": "object",
    "properties": {"photo": {"anyOf": [PHOTO_TEXT_SCHEMA, PHOTO_LIST_SCHEMA]}},
    "required": ["photo"],
}
PREDICT_OPENAPI = {
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "schema": {"type": "string"},
            "description": "Name of the photo if the body is a single photo; returned in the response.",
        },
        {
            "name": "neighbours",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0, "maximum": MAX_NEIGHBOURS, "default": 0},
            "description": "Number of training photos to return per photo that it resembles most, if the model file "
            "was exported with its training photos.",
        },
    ],
    "requestBody": {
        "required": True,
        "description": "One or more files as a form, one or more photos in base64 as JSON, or the bytes of one photo. "
        "With `Content-Encoding: gzip` the body is decompressed.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"photo": {"type": "array", "items": PHOTO_SCHEMA}}}
            },
            "application/json": {"schema": JSON_SCHEMA},
            "image/*": {"schema": PHOTO_SCHEMA},
        },
    },
}


@dataclass
class PredictResponse:
    """One prediction per photo, in the order of the upload."""

    predictions: list[PhotoPrediction]


@dataclass
class ErrorResponse:
    """What is wrong with a request, and what to try."""

    error: str
    advice: str


@dataclass
class UnusablePhotosResponse(ErrorResponse):
    """None of the photos is usable."""

    predictions: list[PhotoPrediction]


@dataclass
class UploadLimits:
    """The limits of one upload."""

    bytes: int
    files: int
    pixels: int


@dataclass(frozen=True)
class ClassesResponse(ClassifierSummary):
    """The classes, the accuracy of the classifier, and the limits of an upload."""

    limits: UploadLimits
    # How familiar the last photos were, beside the calibration photos; null if it is not known.
    drift: Drift | None = None
    has_drifted: bool = False
    # A small JPEG of one training photo per class, as base64; empty unless the file contains training photos.
    samples: dict[str, str] = field(default_factory=dict)


@dataclass
class StateResponse:
    """The state of the server."""

    state: str


@dataclass(frozen=True)
class Service:
    """The application and its queue."""

    app: SecurityMiddleware
    queue: PredictionQueue


def build(
    classifier: Classifier,
    limits: Limits,
    token: str | None = None,
    allowed_hosts: Collection[str] | None = None,
    *,
    origins: frozenset[str] = frozenset(),
    name: str = "",
) -> Service:
    """Build the application without a socket.

    Args:
        allowed_hosts: host names that requests may use; None for any, which needs a token to be safe.
        origins: origins whose pages may read the responses.
        name: of the classifier, for the title of the page.
    """
    metrics = Metrics()
    queue = PredictionQueue(classifier, limits, metrics)

    @asynccontextmanager
    async def run_queue(_: FastAPI) -> AsyncIterator[None]:
        async with queue.run_workers():
            yield

    app = FastAPI(
        title="ikebana",
        summary="Classifies photos." if token else f"Distinguishes {', '.join(classifier.classes)}.",
        version=importlib.metadata.version("ikebana"),
        docs_url=None,
        redoc_url=None,
        lifespan=run_queue,
    )
    _add_error_handlers(app)
    dependencies = [Depends(_make_token_check(token))] if token else []
    _add_predict_route(app, queue, limits, dependencies)
    _add_classes_route(app, queue, page_files.summarise_classifier(classifier, name), limits, dependencies)

    @app.get("/metrics", summary="Metrics in Prometheus' text format", dependencies=dependencies)
    def _metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    _add_health_routes(app, queue)
    for path, file_name in PAGES.items():
        app.add_api_route(path, _make_page_endpoint(file_name), methods=["GET", "HEAD"], include_in_schema=False)
    paths = [getattr(route, "path", "") for route in app.routes]
    # The links of a page are relative, so a page is redirected to its own path instead.
    api_paths = [path for path in paths if path not in PAGES]
    shared_app = allow_origins(app, origins)
    return Service(SecurityMiddleware(shared_app, metrics, paths, allowed_hosts, api_paths=api_paths), queue)


def _add_predict_route(app: FastAPI, queue: PredictionQueue, limits: Limits, dependencies: list[Any]) -> None:
    error_responses: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorResponse, "description": "The form, the JSON or the gzip is malformed."},
        408: {"model": ErrorResponse, "description": "The upload was too slow."},
        413: {"model": ErrorResponse, "description": "The upload is too large, or has too many files."},
        415: {"model": ErrorResponse, "description": "The body has a Content-Encoding other than gzip."},
        422: {"model": UnusablePhotosResponse, "description": "None of the photos is usable."},
        503: {"model": ErrorResponse, "description": "The queue is full; retry after the seconds in `Retry-After`."},
    }

    @app.post(
        "/predict",
        summary="Classify photos",
        dependencies=dependencies,
        response_model=PredictResponse,
        responses=error_responses,
        openapi_extra=PREDICT_OPENAPI,
    )
    async def _predict(request: Request) -> JSONResponse:
        with queue.admit_request() as queued_request:
            neighbours = _read_neighbours(request)
            uploads = await read_uploads(request, limits, queued_request)
            predictions = await queue.predict(uploads, neighbours)
        body = [asdict(prediction) for prediction in predictions]
        if all(prediction.outcome == UNUSABLE for prediction in predictions):
            count = len(predictions)
            what = predictions[0].status if count == 1 else f"none of the {count} photos is usable"
            return JSONResponse({"error": what, "advice": "another photo", "predictions": body}, 422)
        return JSONResponse({"predictions": body})


def _read_neighbours(request: Request) -> int:
    """Read how many training photos a request asks for; Refusal if invalid."""
    text = request.query_params.get("neighbours", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= MAX_NEIGHBOURS):
        raise Refusal(400, "`neighbours` is not a number of training photos", f"neighbours=0 to {MAX_NEIGHBOURS}")
    return int(text)


def _add_classes_route(
    app: FastAPI, queue: PredictionQueue, summary: ClassifierSummary, limits: Limits, dependencies: list[Any]
) -> None:
    upload_limits = UploadLimits(limits.megabytes * 2**20, limits.files, limits.megapixels * 1_000_000)
    index = queue.classifier.neighbour_index
    samples = {} if index is None else index.pick_samples(MAX_SAMPLED_CLASSES)
    encoded = {name: base64.b64encode(thumbnail).decode() for name, thumbnail in samples.items()}
    response = ClassesResponse(**vars(summary), limits=upload_limits, samples=encoded)

    # Not in a thread: the queue's methods run on the event loop.
    @app.get("/classes", summary="Classes, accuracy, upload limits and drift", dependencies=dependencies)
    async def _classes() -> ClassesResponse:
        drift = queue.measure_drift()
        return replace(response, drift=drift, has_drifted=drift is not None and drift.is_significant)


def _add_health_routes(app: FastAPI, queue: PredictionQueue) -> None:
    @app.get("/healthz", summary="Liveness: the process responds")
    async def _healthz() -> StateResponse:
        return StateResponse("alive")

    error_responses: dict[int | str, dict[str, Any]] = {
        503: {"model": ErrorResponse, "description": "The server is shutting down."}
    }

    @app.get("/readyz", summary="Readiness: the server accepts photos", responses=error_responses)
    async def _readyz() -> StateResponse:
        if queue.is_closing:
            raise Refusal(503, "the server is shutting down", "another server, or retry later", retry_after=1)
        return StateResponse("ready")


def _make_token_check(token: str) -> Callable[..., None]:
    bearer = HTTPBearer(auto_error=False, description="The token that was passed to `ikebana serve --token`.")

    def check_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if credentials is None or not hmac.compare_digest(
            credentials.credentials.encode("latin-1", "replace"), token.encode()
        ):
            what = "a token is required" if credentials is None else "the token is wrong"
            raise Refusal(401, what, "Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})

    return check_token


def _make_page_endpoint(name: str) -> Callable[[], Response]:
    content = page_files.read(name)

    def page() -> Response:
        return Response(content, media_type=page_files.get_content_type(name), headers={"Cache-Control": "no-cache"})

    return page


def _add_error_handlers(app: FastAPI) -> None:
    """Give all error responses the same JSON form."""

    @app.exception_handler(Refusal)
    async def _refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _make_error_response(refusal.status, refusal.what, refusal.advice, refusal.headers)

    @app.exception_handler(ClientDisconnected)
    async def _gone(_: Request, __: ClientDisconnected) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        return _make_error_response(error.status_code, str(error.detail).lower(), "/docs lists all endpoints", headers)

    @app.exception_handler(Exception)
    async def _broken(_: Request, __: Exception) -> JSONResponse:
        return _make_error_response(500, "internal server error", "see the traceback in the server's log")


def _make_error_response(status: int, what: str, advice: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(asdict(ErrorResponse(what, advice)), status, headers)
