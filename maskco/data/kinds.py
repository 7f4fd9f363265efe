"""Kinds of files: those that can be read as images, and reasons for the others."""

from __future__ import annotations

import os
import re
import warnings
from functools import lru_cache
from typing import IO

from PIL import Image, features

# By Pillow's format, since what a file is called says little about its content. No other format is ever opened:
# Pillow hands PostScript to Ghostscript, which runs what the file says.
_EXTENSIONS = {
    "JPEG": "jpg jpeg jpe jfif jfi jif mpo",  # .mpo: several in one file, of which the first is shown
    "PNG": "png apng",
    "WEBP": "webp",
    "BMP": "bmp",
    "DIB": "dib",
    "GIF": "gif",
    "TIFF": "tif tiff",
    "PPM": "ppm pgm pbm pnm pfm",
    "TGA": "tga",
    "JPEG2000": "jp2 j2k j2c jpc jpf jpx",
    "QOI": "qoi",
    "AVIF": "avif",
    "HEIF": "heic heif hif",
}
_OPTIONAL = {
    "WEBP": "webp",
    "JPEG2000": "jpg_2000",
    "AVIF": "avif",
}  # in most builds of Pillow, by their feature's name
_RAW = "3fr arw cr2 cr3 crw dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_FILM = "avi flv m4v mkv mov mp4 mpeg mpg ogv webm wmv"
_OTHER = "avifs dcm eps exr heics heifs icns ico jxl nii pdf psd svg"
_ARCHIVES = "7z gz rar tar tgz xz zip zst"
_HINTS = {
    **dict.fromkeys(_EXTENSIONS["HEIF"].split(), "run pip install pillow-heif"),
    "avif": "install a Pillow with AVIF, 11.3 or newer",
    "webp": "install a Pillow with WebP",
    **dict.fromkeys(_EXTENSIONS["JPEG2000"].split(), "install a Pillow with JPEG 2000"),
    **dict.fromkeys(_RAW.split(), "convert camera raw to TIFF or JPEG"),
    **dict.fromkeys(_FILM.split(), "extract the frames of films"),
    **dict.fromkeys(_OTHER.split(), "convert to PNG or JPEG"),
    **dict.fromkeys(_ARCHIVES.split(), "unpack archives, or give a .tar as data"),
    "npy": "give an array as data by itself",
    "npz": "save one of its arrays by numpy.save",
}


@lru_cache
def readable() -> frozenset[str]:
    """The extensions of images that can be read here, in lower case with their dot. HEIC takes pillow-heif."""
    return frozenset(f".{name}" for known in formats() for name in _EXTENSIONS[known].split())


@lru_cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow may open, by its names. Registers pillow-heif's, where that is installed."""
    missing = {name for name, feature in _OPTIONAL.items() if not features.check(feature)}
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        if "AVIF" in missing and hasattr(pillow_heif, "register_avif_opener"):  # up to its version 0.22
            pillow_heif.register_avif_opener()
            missing.remove("AVIF")
    except ImportError:
        missing.add("HEIF")
    return tuple(name for name in _EXTENSIONS if name not in missing)


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """`PIL.Image.open` for the formats above alone. Twice Pillow's limit of pixels is refused, by Pillow itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of images that are used all the same
        return Image.open(file, formats=formats())


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in readable()


def why_not(name: str) -> str:
    """Why a file of this name is left out: by its kind, and what would help."""
    extension = os.path.splitext(name)[1].lower()
    if not re.fullmatch(r"\.\w{1,10}", extension, re.ASCII):  # of a name in any encoding, of any length
        return "without a known extension" if extension else "without an extension"
    hint = _HINTS.get(extension[1:])
    return f"{extension} ({hint})" if hint else extension


def why_unreadable(name: str) -> str | None:
    """The same of a file that is named as an image, by whatever ending. None if it may be readable."""
    return why_not(name) if not is_image(name) and os.path.splitext(name)[1].lower()[1:] in _HINTS else None
