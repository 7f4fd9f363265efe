"""Addresses: their parts, and what is shown of them."""

from __future__ import annotations

import pytest

from maskco.data.store.addresses import Address, clean, redact, split


def test_no_secret_is_shown() -> None:
    assert redact("s3://key:se/cr@et@host/a.tar?X-Amz-Signature=1#f") == "s3://host/a.tar"
    assert redact("https://host:80/a@b.tar") == "https://host:80/a@b.tar"
    assert redact("https://me:secret@host:80/a@b.tar?sig=1") == "https://host:80/a@b.tar"
    text = "GET https://me:secret@h/a b?sig=secret failed\n\nDebug source:\nGeneric { uri: secret }"
    assert "secret" not in clean(text) and clean(text).startswith("GET https://h/a b")
    assert len(clean("x" * 9999)) == 500


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket/a/b c#?.tar", Address("s3://bucket", "a/b c#?.tar", "")),
        ("GCS://bucket/a.tar", Address("gs://bucket", "a.tar", "")),
        (
            "https://me:a%40b@host:8/x%20y/a b.tar?sig=1%2F#f",
            Address("https://host:8?sig=1%2F", "x y/a b.tar", "me:a@b"),
        ),
        (
            "abfs://box@account.dfs.core.windows.net/a.tar",
            Address("abfs://box@account.dfs.core.windows.net", "a.tar", ""),
        ),
    ],
)
def test_parts(url: str, parts: Address) -> None:
    assert split(url) == parts
