"""Decode images with libvips, as an independent witness of what they show. Runs in an environment of its own with pyvips.

Usage: ``python libvips_decode.py FOLDER`` with lines ``<image path>`` on the input. For each it writes one line of JSON: the path,
width and height, and the file in FOLDER with its pixels, 8-bit RGBA in sRGB, row after row; or what libvips says against it.
"""

import json
import sys
from pathlib import Path

import pyvips


def visible(path: str) -> "pyvips.Image":
    """The first picture of a file, upright, in sRGB."""
    image = pyvips.Image.new_from_file(path, fail_on="none").autorot()
    if image.get_typeof("icc-profile-data"):
        try:
            # As browsers do: the perceptual table of a profile, and black points left where they are.
            image = image.icc_transform(
                "srgb", embedded=True, intent="perceptual", black_point_compensation=False, depth=8
            )
            image.copy_memory()
        except pyvips.Error:
            image = pyvips.Image.new_from_file(path, fail_on="none").autorot()
            image.remove("icc-profile-data")
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    if image.format != "uchar":
        image = image.cast("uchar")
    return image if image.hasalpha() else image.bandjoin(255)


def main() -> None:
    """Answer each line."""
    folder = Path(sys.argv[1])
    for number, line in enumerate(sys.stdin):
        path = line.rstrip("\n")
        try:
            image = visible(path)
            pixels = folder / f"{number}.rgba"
            pixels.write_bytes(image.write_to_memory())
            answer = {
                "path": path,
                "width": image.width,
                "height": image.height,
                "bands": image.bands,
                "pixels": str(pixels),
            }
        except pyvips.Error as error:
            answer = {"path": path, "error": str(error)}
        print(json.dumps(answer), flush=True)


main()
