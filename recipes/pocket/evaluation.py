"""Write what `benchmarks/pocket.py` measures pocket-wan on, small enough to keep beside the model.

    python recipes/pocket/evaluation.py pocket-data recipes/pocket/evaluation

writes the held-out pictures and clips, `names.json` (names trained on, chosen by --seed), and the text-image
scorer, fitted on the training pictures whose names are not among those: it knows neither list.
"""

import argparse
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import av
from safetensors.torch import save_file

from omnitune import evaluate
from omnitune.data.media import read_image

NUM_SEEN = 189
LEAST_FRAMES = 17
WORD = re.compile(r"[^\s,]+")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def write_rows(file: Path, found: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))


def num_frames(file: Path) -> int:
    with av.open(str(file)) as container:
        return container.streams.video[0].frames


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for kind in ("pictures", "clips"):
        source, target = arguments.data / kind / "heldout", arguments.out / kind
        kept = [
            row
            for row in rows(source)
            if kind == "pictures" or num_frames(source / row["file_name"]) >= LEAST_FRAMES
        ]
        write_rows(target / "metadata.jsonl", kept)
        for row in kept:
            shutil.copyfile(source / row["file_name"], target / row["file_name"])
    train = arguments.data / "pictures" / "train"
    trained = rows(train)
    seen = random.Random(arguments.seed).sample([row["caption"] for row in trained], NUM_SEEN)
    words = sorted(
        {word for kind in ("pictures", "clips") for row in rows(arguments.data / kind / "train")
         for word in WORD.findall(row["caption"].lower())}
    )  # fmt: skip
    (arguments.out / "names.json").write_text(
        json.dumps({"seen": seen, "words of training": words}, ensure_ascii=False, indent=0) + "\n"
    )
    scorer = evaluate.TextImageScorer.fit(
        (read_image(train / row["file_name"])[0] for row in trained),
        [row["caption"] for row in trained],
        evaluate.load_features("efficientnet_lite0"),
        evaluate.minilm(),
        seen,
    )
    tensors = {name: getattr(scorer, name).contiguous() for name in ("mean", "scale", "offset")}
    tensors["weight"] = scorer.weight.half().contiguous()
    save_file(
        tensors,
        arguments.out / "scorer.safetensors",
        {"fitted": str(scorer.num_fitted), "alpha": f"{scorer.alpha:.6g}"},
    )
    print(f"scorer fitted on {scorer.num_fitted} pictures, {scorer.num_dropped} left out: they are in seen")


if __name__ == "__main__":
    main()
