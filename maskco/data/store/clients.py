"""Clients of stores: `head` and `read` of one object, by obstore, or by fsspec for the schemes that obstore lacks.

Both packages are imported when the first client is made. Clients belong to one process: obstore's threads do not
survive a fork, after which its calls would wait for ever. So loading workers are started by a fork server, see
`RemoteShardSource.start_method`, and a forked process gets an error in place of a client.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from maskco.data.sources.base import SourceError
from maskco.data.store.addresses import FSSPEC, clean, redact, scheme_of, split

TIMEOUT = 30.0  # seconds that one request may take, a block of 1 MiB included
MAY_PASS = (408, 425, 429)  # of the answers that blame the request: too slow, too early, too many

_made_by: list[int] = []  # the id of the process that made the first client


class Unavailable(Exception):
    """The store failed in a way that may pass: try again."""


class Stat(NamedTuple):
    """An object, as its store describes it."""

    size: int
    tag: str  # changes with the content: the ETag, else the time of the last change, else ""


class Client(Protocol):
    """One object of a store."""

    def head(self) -> Stat:
        """Raises Unavailable, or SourceError if another try would not help."""

    def read(self, start: int, stop: int) -> tuple[bytes, str | None]:
        """The bytes start … stop - 1, perhaps fewer, and the object's tag if the answer says it. Raises as `head`."""


def client_of(url: str, timeout: float = TIMEOUT) -> Client:
    """The client of the object at an address."""
    _made_by[:] = _made_by or [os.getpid()]
    if _made_by[0] != os.getpid():
        raise SourceError(
            f"data: {redact(url)!r} cannot be read in a forked process. Start its workers by 'forkserver' or 'spawn'"
        )
    return FsspecClient(url) if scheme_of(url) in FSSPEC else ObstoreClient(url, timeout)


class ObstoreClient:
    """An object that obstore reads. Its own retries are off, since `Retry` counts them all."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        base, self.path, login = split(url)
        self.url, self._store = url, _store(base, login, timeout)

    def head(self) -> Stat:
        """By a read of one byte: addresses signed for reading allow no other request."""
        import obstore

        try:
            return _stat(obstore.get(self._store, self.path, options={"range": (0, 1)}).meta)
        except Exception as error:
            raise self._error(error) from None  # its chain holds whole addresses

    def read(self, start: int, stop: int) -> tuple[bytes, str | None]:
        import obstore

        try:
            result = obstore.get(self._store, self.path, options={"range": (start, stop)})
            return bytes(result.bytes()), _stat(result.meta).tag
        except Exception as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> Exception:
        """Unavailable, unless the kind of error says that another try would be the same."""
        import obstore.exceptions as kinds

        text = clean(str(error), self.url)
        lasting = {
            FileNotFoundError: "there is no such object. Check the address",
            kinds.PermissionDeniedError: f"permission is denied ({text}). Check the credentials",
            kinds.UnauthenticatedError: f"no valid credentials were found ({text}). Set them",
            kinds.NotSupportedError: f"the server sends no ranges of bytes ({text}). Copy the shards here",
            kinds.InvalidPathError: f"the path is not valid ({text}). Check the address",
            kinds.UnknownConfigurationKeyError: text,
        }
        for kind, reason in lasting.items():
            if isinstance(error, kind):
                return SourceError(f"data: {redact(self.url)!r} cannot be read: {reason}")
        status = re.search(r"status code: (4\d\d)", text)
        if status and int(status[1]) not in MAY_PASS:
            reason = "is empty. Restore it" if status[1] == "416" else f"cannot be read: {text}"
            return SourceError(f"data: {redact(self.url)!r} {reason}")
        return Unavailable(text or type(error).__name__)


class FsspecClient:
    """An object that fsspec reads."""

    def __init__(self, url: str) -> None:
        import fsspec

        scheme, _, rest = url.partition("://")
        self.url = url
        try:
            self._system, self._path = fsspec.core.url_to_fs(f"{scheme.lower()}://{rest}")
        except Exception as error:
            raise self._error(error) from None

    def head(self) -> Stat:
        try:
            info: dict[str, Any] = self._system.info(self._path)
        except Exception as error:
            raise self._error(error) from None
        if info.get("size") is None:
            raise SourceError(
                f"data: {redact(self.url)!r} cannot be read: the server does not report its size. Copy the shards here"
            )
        said = (info.get(name) for name in ("ETag", "etag", "blob_id", "mtime", "modify", "LastModified", "created"))
        return Stat(int(info["size"]), str(next((tag for tag in said if tag), "")))

    def read(self, start: int, stop: int) -> tuple[bytes, str | None]:
        try:
            return self._system.cat_file(self._path, start=start, end=stop), None
        except Exception as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> Exception:
        text = clean(str(error), self.url) or type(error).__name__
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, NotImplementedError)):
            return SourceError(f"data: {redact(self.url)!r} cannot be read: {text}")
        return Unavailable(text)


def _stat(meta: Any) -> Stat:
    changed = meta.get("last_modified")
    tag = meta.get("e_tag") or ("" if changed is None or changed.year < 1980 else changed.isoformat())
    return Stat(int(meta["size"]), tag.removeprefix("W/"))


@lru_cache(maxsize=64)
def _store(base: str, login: str, timeout: float) -> Any:
    """One for each bucket or host, since it keeps connections open."""
    from obstore.store import from_url

    options: dict[str, Any] = {"timeout": f"{timeout}s", "connect_timeout": f"{min(timeout, 10)}s"}
    scheme = scheme_of(base)
    if scheme == "http" or (scheme == "s3" and _s3_endpoint().startswith("http://")):
        options["allow_http"] = True
    if login:
        options["default_headers"] = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    more: dict[str, Any] = {"client_options": options, "retry_config": {"max_retries": 0}}
    if scheme == "s3":
        more |= _s3_credentials()
    try:
        return from_url(base, **more)
    except Exception as error:
        raise SourceError(f"data: {redact(base)!r} cannot be opened: {clean(str(error), base)}") from None


def _s3_endpoint() -> str:
    """The server that the user names in place of Amazon's."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _s3_credentials() -> dict[str, Any]:
    """Credentials of ~/.aws by way of boto3, where the environment has none. obstore itself reads the environment's."""
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ or not importlib.util.find_spec("boto3"):
        return {}
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    region = {"region": session.region_name} if session.region_name else {}
    return {"credential_provider": Boto3CredentialProvider(session), **region}
