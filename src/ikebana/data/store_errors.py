"""Errors of object stores and web servers: retried, or translated for the user.

fsspec's file systems raise the errors of their own clients (aiohttp, botocore, httpx, requests),
often as the cause of another error. They are recognised by HTTP status, type and module, so that no
client has to be imported.
"""

import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ikebana.data.store_loggers import shared_logger
from ikebana.errors import PhotosError, get_first_line

# Seconds before each retry.
RETRY_DELAYS_SECONDS = (0.5, 2.0, 8.0)
TRANSIENT_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
DENIED_STATUSES = frozenset((401, 403))
ACCESS_DENIED = "access denied"
# HTTP: the file is not the one that was asked for, and the range begins after its end.
CHANGED_STATUSES = frozenset((412, 416))
CONFLICT_STATUSES = frozenset((409, 412))
# Clients whose errors without an HTTP status are those of a connection.
CLIENT_MODULES = (
    "aiohttp", "aiobotocore", "botocore", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3",
)  # fmt: skip
# Errors of these modules and of these names concern credentials or the address, not a connection.
CREDENTIAL_ERRORS = frozenset(
    (
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "TokenRetrievalError",
    )
) | frozenset(("DefaultCredentialsError", "RefreshError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"))
ADDRESS_ERRORS = frozenset(("InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "ParamValidationError"))
# Environment variables by which a store's client finds credentials.
CREDENTIAL_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login; "
    "for a public bucket FSSPEC_GS_TOKEN=anon",
    "hf": "set HF_TOKEN, or run: hf auth login",
}
MAX_CAUSES = 10

Result = TypeVar("Result")


class StoreError(PhotosError):
    """A store refused a request, or does not answer.

    Attributes:
        is_transient: whether the same request may succeed later.
        is_denied: whether the credentials are missing, wrong or lack the permission.
        is_missing: whether there is no such file, folder or bucket.
        is_conflict: whether a file exists that should be new.
    """

    is_transient = False
    is_denied = False
    is_missing = False
    is_conflict = False


class ChangedFile(Exception):
    """A file of a store is not the one that was listed."""


class NoRanges(Exception):
    """A web server sends whole files only."""


def request(action: Callable[[], Result], address: str) -> Result:
    """Run a request; retry it while the store is overloaded or the connection breaks.

    Raises:
        StoreError: the request failed; ChangedFile, NoRanges and PhotosError as they are.
    """
    # gcsfs retries by itself, for a minute.
    delays = () if address.startswith("gs:") else RETRY_DELAYS_SECONDS
    for delay in (*delays, None):
        try:
            with shared_logger.use():
                return action()
        except (ChangedFile, NoRanges, PhotosError):
            raise
        # The clients of stores have no common base class.
        except Exception as error:
            if delay is None or not is_transient(error):
                raise translate(error, address) from None
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def translate(error: Exception, address: str) -> StoreError:
    """Make an error for the user from that of a store's client."""
    status, kinds = find_status(error), {type(cause).__name__ for cause in iterate_causes(error)}
    protocol = address.partition("://")[0]
    if isinstance(error, PermissionError) or status in DENIED_STATUSES or kinds & CREDENTIAL_ERRORS:
        what = f"{ACCESS_DENIED}{_describe_status(status)}: the credentials are missing, wrong or lack the permission"
        advice = CREDENTIAL_ADVICE.get(protocol, "check the address and its token")
        translated = StoreError(what, where=address, advice=advice)
        translated.is_denied = True
        return translated
    if is_transient(error):
        what = f"the store does not answer{_describe_status(status)}: {get_first_line(error)}"
        translated = StoreError(what, where=address, advice="check the connection, or try again later")
        translated.is_transient = True
        return translated
    if is_missing(error):
        translated = StoreError(
            "there is no such file, folder or bucket",
            where=address,
            advice="check the address; names are case-sensitive",
        )
        translated.is_missing = True
        return translated
    translated = StoreError(
        f"the store refused the request{_describe_status(status)}: {get_first_line(error)}",
        where=address,
        advice="check the address, and the endpoint and the region of the store",
    )
    translated.is_conflict = status in CONFLICT_STATUSES or isinstance(error, FileExistsError)
    return translated


def _describe_status(status: int | None) -> str:
    return f" (HTTP {status})" if status is not None else ""


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    status = find_status(error)
    if status is not None:
        return status in TRANSIENT_STATUSES
    causes = list(iterate_causes(error))
    if any(type(cause).__name__ in CREDENTIAL_ERRORS | ADDRESS_ERRORS for cause in causes):
        return False
    # A name that cannot be resolved is more often a network that is down than a misspelt address.
    connection_errors = (TimeoutError, ConnectionError, socket.gaierror)
    return any(isinstance(cause, connection_errors) or _is_client_error(cause) for cause in causes)


def is_missing(error: Exception) -> bool:
    """Return whether the error says that there is no such file."""
    return find_status(error) in (404, 410) or isinstance(error, FileNotFoundError | NotADirectoryError)


def _is_client_error(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in CLIENT_MODULES


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def find_status(error: BaseException) -> int | None:
    """Find the HTTP status of an error or of its causes."""
    for cause in iterate_causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            response_status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            response_status = getattr(response, "status_code", None)
        # aiohttp warns of its attribute `code`.
        own_status = getattr(cause, "status", None)
        for status in (response_status, getattr(cause, "code", None) if own_status is None else own_status):
            if isinstance(status, int | str) and str(status).isdecimal() and 100 <= int(status) < 600:
                return int(status)
    return None
