"""Picture files: find them under a folder, and decode one of them to uint8 pixels.

A picture comes out as a viewer shows it: upright, in 8 bits, transparent parts over a background.
"""

import io
import os
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from diffusion_lib.system import files

# Formats that are read, whatever a file is called.  Pillow reads more, but it passes PostScript to
# another program, which executes it.
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")


class SkippedFile(NamedTuple):
    """A file that is left out; as text "NAME (REASON)"."""

    name: str  # path relative to the folder, with "/"
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def find(folder: Path) -> tuple[list[str], list[SkippedFile], dict[str, int]]:
    """List the pictures at any depth below a folder.

    Hidden files (".name") and those of systems, such as __MACOSX and @eaDir, are ignored.  Links to
    folders are followed, and each folder is read once.

    Returns:
        Sorted paths of pictures relative to the folder, with "/"; folders that cannot be opened and
        links that lead to no file; numbers of files with other endings, the most frequent first.
    """
    endings = {end for end, kind in Image.registered_extensions().items() if kind in KINDS}
    names: list[str] = []
    skipped: list[SkippedFile] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()

    def skip(error: OSError) -> None:
        place = Path(error.filename).relative_to(folder)
        skipped.append(SkippedFile(f"{place.as_posix()}/", error.strerror or str(error)))

    for place, folders, entries in os.walk(folder, onerror=skip, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not files.is_system(name))
        for path in [Path(place, entry) for entry in sorted(entries) if not files.is_system(entry)]:
            name, ending = path.relative_to(folder).as_posix(), path.suffix.lower()
            if ending not in endings:
                others[ending or "no ending"] += 1
            elif path.is_file():
                names.append(name)
            else:
                skipped.append(SkippedFile(name, "no file, or a link to none"))
    return sorted(names), skipped, dict(others.most_common())


def decode(raw: bytes, shape: tuple[int, ...], background: tuple[int, ...]) -> np.ndarray:
    """Decode the content of a picture file to uint8 pixels [C, H, W].

    Scale the picture until it covers the shape, and cut out the middle.  Of several frames take the
    first.  A picture that cannot be read is a ValueError whose message is the reason.

    Args:
        raw: content of a file of one of `KINDS`.
        shape: (channels, height, width), with 1 channel for the luminance or 3 for colors.
        background: red, green and blue, 0..255, behind transparent parts.
    """
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # too many pixels
            image = Image.open(io.BytesIO(raw), formats=KINDS)
        image.load()
        with suppress(Exception):  # damaged metadata says nothing of the pixels
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_eight_bits(image)
        if image.has_transparency_data:
            clear = image.convert("RGBA")
            image = clear.convert("RGB")
            image.paste(background, mask=ImageChops.invert(clear.getchannel("A")))
        image = image.convert("RGB" if channels == 3 else "L")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    except UnidentifiedImageError as error:
        raise ValueError("not a picture of a known kind" if raw else "an empty file") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(" ".join(str(error).split())[:100] or type(error).__name__) from error
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert gray levels of 16 bits to 8."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"pixels of an unknown range (mode {image.mode}): save it with 8 bits")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
