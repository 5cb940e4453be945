"""Picture files: find them under a folder, and decode one of them to uint8 pixels.

A picture comes out as a viewer shows it: upright, in 8 bits, transparent parts over a background.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from diffusion_lib.system import files

# Formats that are read, whatever a file is called.  Pillow reads more, but it passes PostScript to
# another program, which executes it.
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # all that pixels depend on
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


class UnsupportedError(ValueError):
    """A picture that is intact and still not decoded; the message is the reason."""


class SkippedFile(NamedTuple):
    """A file that is left out; as text "NAME (REASON)", or "NAME (not read: REASON)"."""

    name: str  # path relative to the folder, with "/"
    reason: str
    is_broken: bool  # damaged; else it may be intact: unsupported, or not to be opened

    def __str__(self) -> str:
        return f"{self.name} ({'' if self.is_broken else 'not read: '}{self.reason})"


class Listing(NamedTuple):
    """Content of a folder."""

    names: list[str]  # paths of pictures relative to it, with "/"; sorted
    skipped: list[SkippedFile]  # folders that cannot be opened, and links that lead to no file
    others: dict[str, int]  # files that are no pictures: "no ending" or an ending, most first


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: np.ndarray  # uint8 [C, H, W]
    is_dark: bool  # 16 bits of which not even an eighth of the range is used


def find(folder: Path) -> Listing:
    """List the pictures at any depth below a folder.

    Hidden files (".name") and those of systems, such as __MACOSX and @eaDir, are ignored.  Links to
    folders are followed, except to one that contains the link.
    """
    endings = {end for end, kind in Image.registered_extensions().items() if kind in KINDS}
    names: list[str] = []
    skipped: list[SkippedFile] = []
    others: Counter[str] = Counter()
    stack: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while stack:
        place, ancestors = stack.pop()
        real = os.path.realpath(folder / place)
        if real in ancestors:
            continue
        try:
            with os.scandir(folder / place) as iterator:
                entries = [entry for entry in iterator if not files.is_system(entry.name)]
        except OSError as error:
            skipped.append(SkippedFile(place or ".", error.strerror or str(error), False))
            continue
        for entry in entries:
            name, ending = place + entry.name, Path(entry.name).suffix.lower()
            if os.path.isdir(entry):
                stack.append((f"{name}/", ancestors | {real}))
            elif os.path.isfile(entry):
                if ending in endings:
                    names.append(name)
                else:
                    others[ending or "no ending"] += 1
            elif ending in endings:  # a pipe, or a link to nothing or to itself
                skipped.append(SkippedFile(name, "no file, or a link to none", False))
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return Listing(sorted(names), skipped, dict(most))


def decode(raw: bytes, shape: tuple[int, ...], background: tuple[int, ...]) -> Picture:
    """Decode the content of a picture file to uint8 pixels.

    Scale the picture until it covers the shape, and cut out the middle.  Of several frames take the
    first.

    Args:
        raw: content of a file of one of `KINDS`.
        shape: (channels, height, width), with 1 channel for the luminance or 3 for colors.
        background: red, green and blue, 0..255, behind transparent parts.

    Raises:
        UnsupportedError: more pixels than Pillow's limit (89 million), values of an unknown range,
            or HEIC.
        ValueError: damaged, or no picture of a known kind.
    """
    channels, height, width = shape
    try:
        try:
            image = _load(raw)
        except Exception as error:
            # Texts and profiles of a PNG can be too long for Pillow or damaged, its pixels intact.
            if isinstance(error, UnsupportedError) or not raw.startswith(_PNG):
                raise
            image = _load(b"".join(_png_chunks(raw)))
        with suppress(Exception):  # damaged metadata says nothing of the pixels
            ImageOps.exif_transpose(image, in_place=True)
        image, is_dark = _to_eight_bits(image)
        image = _to_mode(_lay_over(image, background), "RGB" if channels == 3 else "L")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    except UnsupportedError:
        raise
    except UnidentifiedImageError as error:
        if raw[4:10] == b"ftyphe" or raw[4:12] == b"ftypmif1":
            raise UnsupportedError("HEIC by its content: convert it to JPEG or PNG") from error
        raise ValueError("not a picture of a known kind" if raw else "an empty file") from error
    except MemoryError as error:
        raise UnsupportedError("it takes more memory than there is") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(" ".join(str(error).split())[:100] or type(error).__name__) from error
    pixels = np.asarray(image)
    return Picture(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), is_dark)


def _load(raw: bytes) -> Image.Image:
    """Decode a file as it stands, with `info["transparency"]` in the units of its pixels."""
    limit = Image.MAX_IMAGE_PIXELS or 0  # 0 for a user who lifted it
    most = f"million pixels, the limit is {limit / 1e6:,.0f} million: scale it down"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(raw), formats=KINDS)
        except Image.DecompressionBombError as error:
            raise UnsupportedError(f"more than {2 * limit / 1e6:,.0f} {most}") from error
    pixels = image.width * image.height
    if limit and pixels > limit:
        size = f"{image.width:,} x {image.height:,} = {pixels / 1e6:,.0f}"
        raise UnsupportedError(f"{size} {most}")
    image.load()
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("L", "RGB") and key is not None:
        bits = raw[24]  # of the file; Pillow stretches or cuts the pixels to 8, and not the key
        keys = np.atleast_1d(key)
        keys = keys >> 8 if bits == 16 else keys * 255 // (2**bits - 1)
        image.info["transparency"] = tuple(keys.tolist()) if image.mode == "RGB" else int(keys[0])
    if image.format == "TGA" and image.mode == "RGBA" and raw[17] & 15 == 0:
        return image.convert("RGB")  # its header says that the fourth channel is no alpha
    return image


def _png_chunks(raw: bytes) -> Iterator[bytes]:
    """Yield the parts of a PNG file that its pixels depend on."""
    yield raw[:8]
    start = 8
    while start < len(raw):
        end = start + 12 + int.from_bytes(raw[start : start + 4])  # length, kind, data, checksum
        if raw[start + 4 : start + 8] in _PNG_CHUNKS:
            yield raw[start:end]
        start = end


def _to_eight_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    """Convert deep pixels to 8 bits; the flag says whether 16 bits are nearly black."""
    if image.mode == "LAB":
        return image.convert("RGB"), False  # Pillow cannot convert it to gray at once
    if not image.mode.startswith(("I", "F")):
        return image, False
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and tags):
        bits = tags.get(_BITS_PER_SAMPLE, (32,))[0]
        kind = "floating-point numbers" if image.mode == "F" else f"{bits}-bit whole numbers"
        raise UnsupportedError(f"pixels of an unknown range, {kind}: save it with 8 bits")
    deep = np.asarray(image).astype(np.uint16)
    clear = deep == image.info.get("transparency", -1)
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        deep = deep << 4 | deep >> 8
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        deep = 65535 - deep
    gray = Image.fromarray((deep // 257).astype(np.uint8))
    if clear.any():
        gray.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return gray, bool(0 < deep.max() < 65536 // 8)


def _lay_over(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Lay an image over a background, where it is transparent."""
    if not image.has_transparency_data:
        return image
    # In two steps, because Pillow cannot convert premultiplied gray to colors.
    clear = _to_mode(_to_mode(image, "LA") if image.mode == "La" else image, "RGBA")
    opaque = clear.convert("RGB")
    opaque.paste(background, mask=ImageChops.invert(clear.getchannel("A")))
    return opaque


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image, without the copy that Pillow makes where there is nothing to convert."""
    return image if image.mode == mode else image.convert(mode)
