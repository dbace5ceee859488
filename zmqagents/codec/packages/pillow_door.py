"""Pillow: images by mode, size, palette and pixels. An image that was opened from a file arrives as a plain image."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ...errors import RemoteProtocolError
from ..forms import MARK_PACKAGE, Decoding, Encoding, NoForm, Reducer, expect, ints_of, items_of

__all__ = ["BUILDERS", "reducer_of"]

_PIXEL_BYTES = {
    "L": 1, "P": 1, "PA": 2, "LA": 2, "La": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4, "YCbCr": 3,
    "LAB": 3, "HSV": 3, "I": 4, "F": 4, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2,
}  # fmt: skip
_PALETTES = {"RGB": 3, "RGBA": 4}


def _size_of(mode: str, width: int, height: int) -> int:
    return (width + 7) // 8 * height if mode == "1" else _PIXEL_BYTES[mode] * width * height


def _image_box(encoder: Encoding, image: Any) -> list[Any]:
    if image.mode != "1" and image.mode not in _PIXEL_BYTES:
        raise NoForm(f"an image of mode {image.mode} has no form: convert it")
    if getattr(image, "n_frames", 1) > 1:
        raise NoForm(f"an image of {image.n_frames} frames has no form: send a copy() of each frame")
    data = image.tobytes()  # of a file this reads it
    palette = None
    if image.palette is not None and image.mode in ("P", "PA"):
        kind = image.palette.mode if image.palette.mode in _PALETTES else "RGB"
        palette = [kind, bytes(image.getpalette(kind) or b"")]
    return [MARK_PACKAGE, "PIL.Image", image.mode, list(image.size), encoder.place(data), palette, dict(image.info)]


def _make_image(decoder: Decoding, mode: Any, size: Any, place: Any, palette: Any, info: Any) -> Any:
    if expect(str, mode) != "1" and mode not in _PIXEL_BYTES:
        raise RemoteProtocolError("an image of a mode that is not known here")
    width, height = ints_of(*items_of(size))
    data = decoder.take(place)
    if width < 0 or height < 0 or max(width, height) >= 2**31 or _size_of(mode, width, height) != len(data):
        raise RemoteProtocolError("the pixels of an image do not fit its size")
    # An image without pixels is made without data, too.
    image = Image.frombytes(mode, (width, height), bytes(data)) if len(data) else Image.new(mode, (width, height))
    if palette is not None:
        kind, colours = items_of(palette)
        if expect(str, kind) not in _PALETTES or len(expect(bytes, colours)) > 256 * _PALETTES[kind]:
            raise RemoteProtocolError("the palette of an image is of a kind that is not known here")
        image.putpalette(colours, kind)
    image.info.update(expect(dict, info))
    return image


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of an image."""
    is_image = issubclass(cls, Image.Image) and cls.__module__.partition(".")[0] == "PIL"
    return _image_box if is_image else None


BUILDERS = {"PIL.Image": _make_image}
