"""What the text-image score tells of pictures whose names it never met: the bundled silhouettes.

Fitted on the training split, measured on the validation split, of which no concept is in both.
"""

import json
from importlib.resources import files
from typing import Any

from omnitune import evaluate
from omnitune.data.media import read_image

STYLE = files("omnitune") / "assets" / "style"


def captioned(part: str) -> tuple[list[Any], list[str]]:
    """Pictures (128, 128, 3) in uint8 and their captions."""
    rows = [json.loads(line) for line in (STYLE / part / "metadata.jsonl").read_text().splitlines()]
    return [read_image(STYLE / part / row["file_name"])[0] for row in rows], [row["caption"] for row in rows]


def main() -> None:
    network = evaluate.load_features("efficientnet_lite0")
    pictures, captions = captioned("validation")
    scorer = evaluate.TextImageScorer.fit(*captioned("train"), network, evaluate.minilm(), captions)
    scores = scorer.scores(network.features(pictures), captions)
    auc, recall = evaluate.auc(scores, captions), evaluate.recall(scores, captions)
    print(f"AUC {auc.value:.3f} (standard error {auc.spread:.3f}), recall@10 {recall.value:.3f}")


if __name__ == "__main__":
    main()
