"""Makes tests/golden/meteor.json: what pycocoevalcap 1.2's METEOR, with its own Java tokenizer, says.

    python -m tests.golden.make_meteor captions.txt               # Flickr8k's `image,caption` file; needs Java
    python -m tests.golden.make_meteor --compare N captions.txt   # captune against it on N images, with times

The first images of the captions file, each image's first caption against its other four, and a small corpus of odd
captions. Each item has the line that the Java program was given, its answer, and the score; the tests play the program
from them, and need neither Java nor pycocoevalcap. Line breaks inside a caption are given to the tokenizer as spaces:
it would shift all later captions.

Last result, on 700 Flickr8k images with OpenJDK 17: the corpus figure 0.251200 is the same to the last bit, and the
largest difference of a caption is 1.1e-16. 8 to 15 s to start, 2.3 ms per caption on one of two busy cores, 1.1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor.meteor import Meteor as Reference

from captune.scorers.reference.meteor import Meteor
from tests.golden.make_pycocoevalcap import ODD_CORPUS, read, tokens

GOLDEN = Path(__file__).with_name("meteor.json")
IMAGES = 30
ODD = [
    *ODD_CORPUS,
    ("", [""]),
    ("a dog", [""]),
    ("a dog", ["a dog", "a dog"]),
    ("a dog runs ||| on a beach ||||| now", ["a dog runs on a beach"]),
    ("a dog\u2028runs\ron\va\u2029beach\nnow", ["a dog runs\x85on a beach\fnow"]),
    ("a puppy is playing on the couch", ["dogs played at a sofa", "the children are playing"]),
    ("the the the of of a a in on at", ["of the a in on at"]),
    ("🐕 😀", ["a dog 🐕", "😀"]),
    ("Zwei Hunde laufen über die Wiese, çöğüş İIı", ["zwei hunde über die wiese çöğüş"]),
]


def lines(pairs: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The pairs, tokenized by Java."""
    texts = [" ".join(text.split()) for caption, references in pairs for text in (caption, *references)]
    answers = iter(tokens(texts))
    return [(next(answers), [next(answers) for _ in references]) for _, references in pairs]


def scores(pairs: list[tuple[str, list[str]]]) -> tuple[float, list[float]]:
    tokenized = dict(enumerate(lines(pairs)))
    return Reference().compute_score(
        {i: references for i, (_, references) in tokenized.items()}, {i: [c] for i, (c, _) in tokenized.items()}
    )


def golden(pairs: list[tuple[str, list[str]]]) -> dict:
    reference, items, statistics = Reference(), [], []
    corpus, each = scores(pairs)
    for (caption, references), (tokenized, others), score in zip(pairs, lines(pairs), each, strict=True):
        statistics.append(reference._stat(tokenized, others))
        line = " ||| ".join(("SCORE", *others, tokenized.replace("|||", "").replace("  ", " ")))
        items.append({"caption": caption, "references": references, "line": line, "answer": statistics[-1],
                      "meteor": score})  # fmt: skip
    return {"corpus": corpus, "items": items}


def compare(pairs: list[tuple[str, list[str]]]) -> None:
    captions, references = [caption for caption, _ in pairs], [own for _, own in pairs]
    with Meteor() as scorer:
        start = time.perf_counter()
        scorer.rows(captions[:1], references=references[:1])
        loaded = time.perf_counter()
        rows = scorer.rows(captions, references=references)
        print(f"captune: {loaded - start:.1f} s to start, {(time.perf_counter() - loaded) / len(pairs) * 1e3:.2f} ms "
              "per caption")  # fmt: skip
    start = time.perf_counter()
    corpus, each = scores(pairs)
    print(f"pycocoevalcap: {time.perf_counter() - start:.1f} s with its tokenizer")
    difference = np.abs(scorer.per_caption(rows) - each)
    print(f"{len(pairs)} captions: corpus {corpus:.6f}, difference {abs(scorer.corpus(rows)['meteor'] - corpus):.1e}; "
          f"captions: largest difference {difference.max():.1e}, {(difference > 1e-9).sum()} above 1e-9")  # fmt: skip
    for i in np.argsort(-difference)[:5]:
        if difference[i] > 1e-9:
            print(f"  {difference[i]:.4f} {captions[i]!r} {references[i]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--compare", type=int, metavar="N", help="only compare captune with it on N images")
    args = parser.parse_args()
    complete = [(own[0], own[1:5]) for own in read(args.captions).values() if len(own) >= 5]
    if args.compare:
        return compare(complete[: args.compare])
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
    made = {"pycocoevalcap": version("pycocoevalcap"), "tokenizer": "stanford-corenlp-3.4.1", "java": java}
    result = {"made_with": made, "flickr8k": golden(complete[:IMAGES]), "odd": golden(ODD)}
    GOLDEN.write_text(json.dumps(result, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
