"""Reads parts of objects: from the cache of blocks, else from the store, and then keeps them."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import NamedTuple

from maskco.data.sources.base import SourceError
from maskco.data.store.addresses import redact
from maskco.data.store.blocks import BLOCK, BlockCache
from maskco.data.store.clients import Client, Unavailable, client_of
from maskco.data.store.retry import Retry

ONCE = Retry(tries=1)


class Changed(SourceError):
    """An object is no longer the one that was indexed."""


class StoredObject(NamedTuple):
    """An object as it was when the run started."""

    url: str
    size: int
    tag: str

    @property
    def key(self) -> str:
        """Key of its blocks in the cache. No address can be read from it."""
        return hashlib.blake2b(
            f"{self.url}\0{self.size}\0{self.tag}".encode(errors="surrogateescape"), digest_size=16
        ).hexdigest()

    @property
    def name(self) -> str:
        return redact(self.url).rpartition("/")[2]


class Ranges:
    """Reads parts of objects. Copies of it in other processes share the cache.

    Args:
        cache: by default the machine's.
        retry: how often, and for how long, a request is tried again.
    """

    def __init__(self, cache: BlockCache | None = None, retry: Retry | None = None) -> None:
        self.cache, self.retry = cache or BlockCache(), retry or Retry()

    def stat(self, url: str) -> StoredObject:
        """Raises SourceError, also if the store does not answer."""
        try:
            return StoredObject(url, *self.retry(lambda: self._client(url).head()))
        except Unavailable as error:
            raise SourceError(
                f"data: {redact(url)!r} cannot be read: {error}. Start again when the store answers"
            ) from None

    def read(self, stored: StoredObject, start: int, stop: int, retry: Retry | None = None) -> bytes:
        """The bytes start … stop - 1. Raises Unavailable if the store fails until the deadline, and Changed.

        retry: for this call, in place of that of all.
        """
        parts = []
        key = stored.key
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first = number * BLOCK
            inside = max(start - first, 0), min(stop - first, BLOCK)
            part = self.cache.read(key, number, *inside)
            if part is None:
                part = self.fetch(stored, number, retry)[slice(*inside)]
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fetch(self, stored: StoredObject, number: int, retry: Retry | None = None) -> bytes:
        """A whole block, kept from now on. Raises as `read`."""
        first, last, key = *_span(stored, number), stored.key
        with self.cache.fetching(key, number):
            data = self.cache.read(key, number, 0, last - first)  # another process may have been faster
            if data is None:
                data = (retry or self.retry)(lambda: self._request(stored, first, last))
                self.cache.write(key, number, data)
        return data

    def prefetch(self, stored: StoredObject, number: int) -> None:
        """Puts a block into the cache by one try, unless it is there or is being fetched. Raises as `read`."""
        key = stored.key
        with self.cache.fetching(key, number, seconds=0) as alone:
            if alone and not self.cache.has(key, number):
                self.cache.write(key, number, self._request(stored, *_span(stored, number)))

    def _request(self, stored: StoredObject, first: int, last: int) -> bytes:
        data, tag = self._client(stored.url).read(first, last)
        if tag is not None and tag != stored.tag:
            raise Changed(
                f"data: {redact(stored.url)!r} was changed during the run. Continue with `resume=True`, "
                "which needs images of the same names, or start another run"
            )
        if len(data) != last - first:
            raise Unavailable(f"{len(data)} of {last - first} bytes came")
        return data

    def _client(self, url: str) -> Client:
        return _client(url, self.retry.timeout, os.getpid())


def _span(stored: StoredObject, number: int) -> tuple[int, int]:
    return number * BLOCK, min((number + 1) * BLOCK, stored.size)


@lru_cache(maxsize=4096)
def _client(url: str, timeout: float, process: int) -> Client:
    return client_of(url, timeout)
