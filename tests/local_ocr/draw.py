"""Draws the pictures of tests/tests/local_ocr.rs into a folder, and prints the lines of text in each as JSON.

Needs Pillow, which rapidocr brings along: draw.py FOLDER
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TEXTS = {
    "house.png": ["OPEN HOUSE", "Sunday 2 pm"],
    # More lines than ten, whose order would show if their numbers were sorted as texts.
    "lease.jpg": [f"Paragraph {number} of the lease" for number in range(1, 14)],
    # Lies on its side, and its Exif says so.
    "turned.jpg": ["First line of a letter", "second line comes next", "third and last"],
    "blank.png": [],
}
TURN_RIGHT = 6
ORIENTATION = 0x0112


def draw(lines):
    picture = Image.new("RGB", (900, 60 + 80 * max(len(lines), 3)), "white")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((40, 30 + 80 * number), line, fill="black", font=ImageFont.load_default(size=44))
    return picture


def main(folder):
    for name, lines in TEXTS.items():
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[ORIENTATION] = TURN_RIGHT
            draw(lines).rotate(90, expand=True).save(folder / name, quality=95, exif=exif)
        else:
            draw(lines).save(folder / name)
    # Half a picture, one that is none behind its first bytes, and one that does not even say so.
    whole = (folder / "lease.jpg").read_bytes()
    (folder / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "fake.png").write_bytes(b"\x89PNG\r\n\x1a\nthis is no picture")
    (folder / "notes.txt").write_text("this is no picture")
    json.dump(TEXTS, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
