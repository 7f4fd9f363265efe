"""Sources of images: one registry for pretraining and evaluation. Imports nothing heavy."""

from maskco.data.sources.base import Source, SourceError, is_remote
from maskco.data.sources.registry import Kind, fingerprint, locate, open_labelled, open_source, register

__all__ = [
    "Kind",
    "Source",
    "SourceError",
    "fingerprint",
    "is_remote",
    "locate",
    "open_labelled",
    "open_source",
    "register",
]
