"""Does `detected` tell an image's captions from another image's, and what does it cost?

    python -m benchmarks.behaviour.detected yolox_nano.onnx flickr8k/captions.txt

The photographs lie in `images/` beside the captions. Each human caption is scored with its own image and with another
image (the next one in a random order); the AUC over all pairs of such scores is .5 for a scorer that guesses. Beside it
the share of images with no object found, and the figures of the captions of own images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._lib import machine, write
from captune.data import load_images
from captune.data.images import open_image
from captune.inference.detect import detect_to_file
from captune.models.detectors import load_detector
from captune.scorers import load_scorer
from studies._lib.ranks import auc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", help="images with references")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    dataset = load_images(args.source, decode=False)
    ids, references = dataset["image_id"], dataset["references"]
    other = np.random.default_rng(0).permutation(len(ids))
    shifted = dict(zip((ids[i] for i in other), (ids[i] for i in np.roll(other, 1)), strict=True))
    captions = [text for texts in references for text in texts]
    own = [image_id for image_id, texts in zip(ids, references, strict=True) for _ in texts]
    result: dict = {"images": len(ids), "captions": len(captions), "thresholds": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.jsonl"
        report = detect_to_file(args.model, args.source, file, threshold=0.05, batch_size=8)
        result["bad"] = len(report.bad)
        for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
            scorer = load_scorer(f"detected:?detections={file}&threshold={threshold}")
            right = scorer.rows(captions, image_id=own)
            wrong = scorer.rows(captions, image_id=[shifted[i] for i in own])
            columns = {"detected": scorer.per_caption}
            columns["precision"] = lambda rows: np.divide(rows[:, 0], np.maximum(rows[:, 1], 1))
            columns["recall"] = lambda rows: np.divide(rows[:, 0], np.maximum(rows[:, 2], 1))
            result["thresholds"][str(threshold)] = {
                **{f"auc_{name}": round(auc(of(right), of(wrong)), 3) for name, of in columns.items()},
                **{name: round(value, 3) for name, value in scorer.corpus(right).items()},
                "of other images": round(scorer.corpus(wrong)["detected"], 3),
            }
    detector = load_detector(args.model)
    images = [open_image(dataset[row]["image"]) for row in range(min(50, len(ids)))]
    times = []
    for image in images:
        began = time.perf_counter()
        detector.detect([image], threshold=0.3)
        times.append(time.perf_counter() - began)
    result["ms per image"] = round(1000 * float(np.median(times)), 1)
    write(result | {"machine": machine()}, None, args.output)


if __name__ == "__main__":
    main()
