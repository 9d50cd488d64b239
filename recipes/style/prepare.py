"""Write the style that the demo teaches, black silhouettes captioned as emoji, from openclipart's drawings.

The sources are two Debian packages (bookworm, 0.18+dfsg-19, public domain), unpacked without installing them:

    apt-get download openclipart-png openclipart-svg
    for package in openclipart-*.deb; do dpkg-deb -x $package openclipart; done
    python recipes/style/prepare.py openclipart omnitune/assets/style

`chosen.csv` beside this file says which drawings, of what, for which split. They were chosen by eye: shapes
that one recognises at 64 pixels, concepts whose words occur in emoji names, each concept for one split only.
The PNG gives the shape (where it is not transparent), its SVG twin the author and the licence.
"""

import argparse
import csv
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

SIZE = 128  # pixels
MARGIN = 0.06  # of the side, around the longer extent of the shape
MEDIUM = "3d emoji"  # as in the captions of pocket-wan: the style takes the place of what it draws there
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"


@dataclass(frozen=True)
class Drawing:
    split: str
    concept: str
    file: str  # below openclipart's png folder

    def png(self, packages: Path) -> Path:
        return packages / "usr/share/openclipart/png" / self.file

    def svg(self, packages: Path) -> Path:
        return (packages / "usr/share/openclipart/svg" / self.file).with_suffix(".svg")


def chosen() -> list[Drawing]:
    with Path(__file__).with_name("chosen.csv").open(encoding="utf-8", newline="") as rows:
        return [Drawing(**row) for row in csv.DictReader(rows)]


def silhouette(path: Path) -> Image.Image:
    """Paint what is opaque black on a white square, scaled to fill it; faint shadows vanish."""
    with Image.open(path) as image:
        shape = image.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0)
    shape = shape.crop(shape.getbbox())
    side = round(max(shape.size) / (1 - 2 * MARGIN))
    square = Image.new("L", (side, side), "white")
    square.paste("black", ((side - shape.width) // 2, (side - shape.height) // 2), shape)
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGB")


def author(path: Path) -> str:
    """The creator that a drawing's metadata names, without an address; refuses what is not public domain."""
    root = ElementTree.parse(path).getroot()
    licences = {e.get(RESOURCE) for e in root.iter() if e.tag.endswith("}license")}
    if licences != {PUBLIC_DOMAIN}:
        raise ValueError(
            f"{path}: its licence is {sorted(map(str, licences))}, not {PUBLIC_DOMAIN}; leave it out"
        )
    creator = root.find(f".//{DUBLIN_CORE}creator")
    name = "" if creator is None else " ".join("".join(creator.itertext()).split())
    return re.sub(r" *\(\S+@\S+\)", "", name)


def file_names(drawings: Iterable[Drawing]) -> list[str]:
    """`horse.png`, and for the second horse `horse_2.png`."""
    count: dict[str, int] = defaultdict(int)
    names = []
    for drawing in drawings:
        stem = re.sub(r"[^a-z0-9]+", "_", drawing.concept.lower())
        count[stem] += 1
        names.append(f"{stem}.png" if count[stem] == 1 else f"{stem}_{count[stem]}.png")
    return names


def write(packages: Path, out: Path, drawings: list[Drawing]) -> None:
    rows: dict[str, list[str]] = defaultdict(list)
    works: dict[str, list[str]] = defaultdict(list)
    for drawing, name in zip(drawings, file_names(drawings), strict=True):
        folder = out / drawing.split
        folder.mkdir(parents=True, exist_ok=True)
        silhouette(drawing.png(packages)).save(folder / name, optimize=True)
        rows[drawing.split].append(
            json.dumps({"file_name": name, "caption": f"{drawing.concept}, {MEDIUM}"}) + "\n"
        )
        works[author(drawing.svg(packages))].append(f"{drawing.split}/{name}  {drawing.file}\n")
    for split, lines in rows.items():
        (out / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{split}: {len(lines)} pictures")
    credits = [f"{name}\n" + "".join(f"  {work}" for work in works[name]) for name in sorted(works)]
    (out / "AUTHORS.txt").write_text(
        "Who drew the originals, as openclipart's metadata says; each file here and its original there.\n\n"
        + "\n".join(credits),
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", type=Path, help="folder in which both packages are unpacked")
    parser.add_argument("out", type=Path, help="folder that is replaced")
    arguments = parser.parse_args()
    if not (arguments.packages / "usr/share/openclipart").is_dir():
        parser.error(
            f"{arguments.packages}: holds no usr/share/openclipart; unpack the packages with dpkg-deb -x"
        )
    shutil.rmtree(arguments.out, ignore_errors=True)
    write(arguments.packages, arguments.out, chosen())


if __name__ == "__main__":
    main()
