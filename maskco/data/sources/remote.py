"""Files on other machines, copied here. No address ever reaches a shell, and messages show none of its secrets.

http:// https://       Python's own client; user:password@ is sent as basic authentication
ftp://                 fsspec, which comes with torch
s3://                  pip install s3fs
gs:// gcs://           pip install gcsfs
az:// abfs://          pip install adlfs
hf://                  pip install huggingface_hub, which comes with timm
"""

from __future__ import annotations

import base64
import http.client
import re
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from maskco.data.cache import one_at_a_time
from maskco.data.sources.base import SourceError, import_package
from maskco.files import write_atomically

TIMEOUT = 60  # seconds without a byte
PACKAGES = {  # what fsspec needs for a scheme
    "ftp": "fsspec",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}


def redact(url: str) -> str:
    """The address without what may be secret: user and password, the query (signed addresses), the fragment."""
    plain = re.split(r"[?#]", url, maxsplit=1)[0]
    plain = re.sub(r"(://)[^/@:]*:(?!\d+/)[^@]*@", r"\1", plain)  # a password may have a slash in it, against the rules
    return re.sub(r"(://)[^/]*@", r"\1", plain)


def check_address(url: str) -> None:
    """Raises SourceError, which says what to do, if there is nothing that can read such an address here."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if url.lower().startswith("pipe:"):
        raise SourceError(
            "data: 'pipe:' is no longer supported, since it ran a shell command: give the shards' address itself "
            "(https://, s3://, …), or copy them here and give their paths"
        )
    if scheme not in ("http", "https", *PACKAGES):
        known = " ".join(f"{name}://" for name in ("http", "https", *PACKAGES))
        raise SourceError(f"data: {redact(url)!r} has a scheme that cannot be read: use one of {known}, or a path")
    if package := PACKAGES.get(scheme):
        if "::" in url:  # fsspec's way to name one file system within another, of any scheme
            raise SourceError(f"data: {redact(url)!r} holds '::': give one plain address")
        import_package(package, f"{scheme}://", package)
    elif not _host(url):
        raise SourceError(f"data: {redact(url)!r} names no host")


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # of unbalanced brackets, for example
        return None


def copy(url: str, path: Path) -> Path:
    """Copies the tar file at an address to `path`, unless it is there already, once for all processes.

    Raises SourceError, and leaves nothing behind, if it cannot be read, comes short, or is no tar file.
    """
    with one_at_a_time(path):
        if not path.exists():

            def download(file: BinaryIO) -> None:
                stream, size = _open(url)
                with stream:
                    shutil.copyfileobj(stream, file, 1 << 20)
                got = file.tell()
                if size is not None and got != size:
                    raise SourceError(f"data: {redact(url)!r} came short: {got} of {size} bytes. Try again")
                file.flush()
                check_tar(Path(file.name), redact(url))

            try:
                write_atomically(path, download)
            except SourceError:
                raise
            except Exception as error:  # whatever the client of a store raises: each has errors of its own
                raise unreadable(redact(url), error, secret=url) from error
    return path


def unreadable(data: str, error: Exception, *, secret: str = "") -> SourceError:
    """What a client of a store has raised, in one line and without addresses' secrets."""
    reason = _clean(str(error), secret) or type(error).__name__
    return SourceError(f"data: {data!r} cannot be read: {reason}")


def check_tar(file: Path, name: str) -> None:
    """Raises SourceError, which says what came in its place, unless the file is an uncompressed tar."""
    with open(file, "rb") as opened:
        start = opened.read(512)
    if not start:
        what = "is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a pointer of git-lfs: fetch the file itself"
    elif start.lstrip().startswith(b"<"):
        what = "is a web page or XML, such as an error or a log-in: check the address"
    elif start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        what = "is compressed: unpack it first, since images cannot be read from their places in it"
    elif _is_tar(file):
        return
    else:
        what = "is no tar file"
    raise SourceError(f"data: {name!r} {what}")


def _is_tar(file: Path) -> bool:
    try:
        with tarfile.open(file, "r:"):
            return True
    except tarfile.TarError:
        return False


def _open(url: str) -> tuple[IO[bytes], int | None]:
    """The file's bytes, and how many there should be, if that is known."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in PACKAGES:
        import fsspec

        system, path = fsspec.core.url_to_fs(f"{scheme}://{rest}")
        size = system.info(path).get("size")
        return system.open(path, "rb"), size
    parts = urlsplit(url)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")  # spaces, say; what is quoted already stays
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment="")
    request = urllib.request.Request(urlunsplit(plain))
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # (unredirected: another host gets none of it)
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    length = response.headers.get("Content-Length", "")
    return response, int(length) if length.isdecimal() else None


def _clean(text: str, url: str) -> str:
    """An error's text in one line, in which addresses are redacted too."""
    text = " ".join((text.replace(url, redact(url)) if url else text).split())
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+", lambda found: redact(found[0]), text)
    return re.sub(r"\?[^\s'\"]+", "", text)  # clients name a path and its query too
