"""Addresses of objects in stores. Checks that they can be read, and shows them without their secrets.

http:// https:// s3:// gs:// gcs:// az:// azure:// abfs://    obstore: pip install 'maskco[cloud]'
ftp://                                                        fsspec, which comes with torch
hf://                                                         huggingface_hub, which comes with timm
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from maskco.data.sources.base import SourceError, import_package

OBSTORE = ("http", "https", "s3", "gs", "gcs", "az", "azure", "abfs")
FSSPEC = {"ftp": "fsspec", "hf": "huggingface_hub"}  # schemes that obstore lacks, and what fsspec needs for them


class Address(NamedTuple):
    """Where an object lies."""

    base: str  # scheme, host or bucket; of an http address the query too
    path: str  # within the base, not quoted
    login: str  # user:password, not quoted, or ""


def redact(url: str) -> str:
    """The address without what may be secret: user and password, the query (signed addresses), the fragment."""
    plain = re.split(r"[?#]", url, maxsplit=1)[0]
    plain = re.sub(r"(://)[^/@:]*:(?!\d+/)[^@]*@", r"\1", plain)  # a password may have a slash in it, against the rules
    return re.sub(r"(://)[^/]*@", r"\1", plain)


def scheme_of(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def check_address(url: str) -> None:
    """Raises SourceError, which says what to do, if there is nothing that can read such an address here."""
    scheme = scheme_of(url)
    if url.lower().startswith("pipe:"):
        raise SourceError(
            "data: 'pipe:' is no longer supported, since it ran a shell command. Give the shards' address itself "
            "(https://, s3://, …), or copy them here and give their paths"
        )
    if scheme not in (*OBSTORE, *FSSPEC):
        known = " ".join(f"{name}://" for name in (*OBSTORE, *FSSPEC))
        raise SourceError(f"data: {redact(url)!r} has a scheme that cannot be read. Use one of {known}, or a path")
    if "::" in url:  # fsspec's way to name one file system within another, of any scheme
        raise SourceError(f"data: {redact(url)!r} holds '::'. Give one plain address")
    if scheme in FSSPEC:
        import_package(FSSPEC[scheme], f"{scheme}://", FSSPEC[scheme])
    else:
        import_package("obstore", f"{scheme}://", "'maskco[cloud]'")
        if not _host(url):
            lacking = "host" if scheme.startswith("http") else "bucket"
            raise SourceError(f"data: {redact(url)!r} names no {lacking}. Write {scheme}://{lacking.upper()}/…")


def split(url: str) -> Address:
    """The parts of an address that `check_address` has passed."""
    scheme, rest = scheme_of(url), url.partition("://")[2]
    if not scheme.startswith("http"):  # a name in a store may hold ? and #
        bucket, _, path = rest.partition("/")
        return Address(f"{'gs' if scheme == 'gcs' else scheme}://{bucket}", path, "")
    parts = urlsplit(url)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username is not None else ""
    query = f"?{parts.query}" if parts.query else ""
    return Address(f"{scheme}://{parts.netloc.rpartition('@')[2]}{query}", unquote(parts.path).lstrip("/"), login)


def clean(text: str, url: str = "") -> str:
    """An error's text in one line, in which addresses are redacted too."""
    text = text.partition("Debug source:")[0]  # of obstore, which continues for many lines
    text = " ".join((text.replace(url, redact(url)) if url else text).split())
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+", lambda found: redact(found[0]), text)
    return re.sub(r"\?[^\s'\"]+", "", text)[:500]  # clients name a path and its query too


def unreadable(data: str, error: Exception, *, secret: str = "") -> SourceError:
    """The error of a store's client, in one line and without the secrets of addresses."""
    return SourceError(f"data: {data!r} cannot be read: {clean(str(error), secret) or type(error).__name__}")


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # of unbalanced brackets, for example
        return None
