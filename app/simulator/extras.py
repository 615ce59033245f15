"""The extras routes: real upscaling of the pictures that are posted.

Follows ``modules/postprocessing.py`` and ``scripts/postprocessing_upscale.py`` of the WebUI.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, PngImagePlugin

from app.simulator import lists, pictures
from app.simulator.engine import Engine
from app.simulator.errors import CrashError


def run(
    engine: Engine,
    fields: dict[str, Any],
    images: list[Image.Image],
    seconds: float,
    *,
    hang: float = 0.0,
    notes: bool = True,
) -> tuple[list[bytes], str]:
    """Upscale every image; the PNGs and the ``html_info`` of the answer.

    A failure leaves the job "Upscale" in the state, as the server does. ``seconds`` is what one image takes, ``hang``
    what the first one takes on top; ``notes`` puts what was done into the PNGs.

    :raises CrashError: for an upscaler that does not exist, or an image too big for memory.
    """
    with engine.queue_lock:
        engine.begin("Upscale" if images else "extras")
        engine.plan(len(images))
        done: list[bytes] = []
        text = ""
        for image in images:
            # The counter moves before the work: for one image progress reads 1 at once.
            engine.next_job()
            engine.hang(hang if not done else 0.0)
            if engine.interrupted:
                break
            upscaled, text = _one(fields, image)
            if engine.hang(seconds):
                upscaled = _half_done(upscaled)
            done.append(_png(upscaled, image, text if notes else None))
        engine.end()
    return done, f"<p>{text}</p>"


def _one(fields: dict[str, Any], image: Image.Image) -> tuple[Image.Image, str]:
    first, second = fields["upscaler_1"], fields["upscaler_2"]
    if first in (None, "None"):
        return image, ""
    _refuse_unknown(first)
    by_size = fields["resize_mode"] == 1
    wide, high = fields["upscaling_resize_w"], fields["upscaling_resize_h"]
    factor = max(wide / image.width, high / image.height) if by_size else fields["upscaling_resize"]
    target = (int(image.width * factor) // 8 * 8, int(image.height * factor) // 8 * 8)
    if not 0 < target[0] * target[1] <= pictures.MAX_PIXELS:
        raise CrashError("ValueError", "height and width must be > 0")
    upscaled = pictures.upscale(image, first, target)
    texts = {"Postprocess upscale by": factor} if not by_size else {"Postprocess upscale to": f"{wide}x{high}"}
    if by_size and fields["upscaling_crop"]:
        texts["Postprocess crop to"] = f"{wide}x{high}"
        upscaled = _crop(upscaled, wide, high)
    texts["Postprocess upscaler"] = first
    if second not in (None, "None"):
        _refuse_unknown(second)
        other = pictures.upscale(image, second, upscaled.size)
        upscaled = Image.blend(upscaled, other.convert(upscaled.mode), fields["extras_upscaler_2_visibility"])
        texts["Postprocess upscaler 2"] = second
    return upscaled, ", ".join(f"{name}: {value}" for name, value in texts.items())


def _half_done(upscaled: Image.Image) -> Image.Image:
    """Since 1.9 an interrupt ends the work amid the tiles, and the rest stays black (``modules/upscaler_utils.py``)."""
    sheet = Image.new(upscaled.mode, upscaled.size)
    sheet.paste(upscaled.crop((0, 0, upscaled.width, upscaled.height // 2)))
    return sheet


def _refuse_unknown(upscaler: str) -> None:
    if upscaler not in lists.UPSCALERS:
        raise CrashError("AssertionError", f"could not find upscaler named {upscaler}")


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Exactly the size asked for, from the middle; what is missing stays black."""
    sheet = Image.new(image.mode, (width, height))
    sheet.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return sheet


def _png(image: Image.Image, source: Image.Image, text: str | None) -> bytes:
    """The result keeps the ``parameters`` of its source, and may say what was done under ``postprocessing``."""
    chunks = PngImagePlugin.PngInfo()
    parameters = source.info.get("parameters")
    if isinstance(parameters, str):
        chunks.add_text("parameters", parameters)
    if text is not None:
        chunks.add_text("postprocessing", text)
    return pictures.to_png(image, chunks)
