"""Does captune say what pycocoevalcap 1.2 says, with its own Java tokenizer? Words, BLEU-1 to 4, ROUGE-L, CIDEr-D.

    python -m benchmarks.parity.pycocoevalcap DATA [--output benchmarks/parity/pycocoevalcap.json]

DATA holds flickr8k/captions.txt and flickr8k/captions_text_only.csv (`image,caption` lines), cocoln500/captions.json
and docci500/captions.json ({id: text}). Needs `java`; takes two minutes. A table is written beside the JSON.

Words: of the short captions, of the long ones, and of texts that the tokenizer was not made for (odd_captions.py), both
the half whose differences were looked at to improve it and the half that was kept back. Each text is followed by a line
"A" for the Java program, since it looks at the next line to judge a full stop at the end of this one.

Scores, pycocoevalcap run in its own way on raw captions (no lines in between): each Flickr8k caption against the others
of its image; 10,000 others against five captions of other images; each long caption against the next image's and itself
without its last five words. Pairs with a text that is tokenized otherwise are left out and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu as PeerBleu
from pycocoevalcap.cider.cider import Cider as PeerCider
from pycocoevalcap.rouge.rouge import Rouge as PeerRouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.parity.odd_captions import odd_captions, prose
from captune.scorers._support import ptb
from captune.scorers.reference.bleu import Bleu
from captune.scorers.reference.cider import Cider
from captune.scorers.reference.rouge import Rouge
from tests.golden.make_pycocoevalcap import read, tokens

LISTED = 60  # differences listed per set of texts
TOLERANCE = 1e-6
Pair = tuple[str, list[str]]


def compare_words(texts: list[str]) -> dict[str, Any]:
    """How many texts get other words than from the Java program, and which."""
    texts = [text for text in texts if len(text.splitlines()) == 1]  # a line break shifts the Java program's answers
    differing = [
        {"text": text, "java": java, "captune": ours}
        for text, java in zip(texts, tokens(texts), strict=True)
        if (ours := ptb.tokenize(text)) != java
    ]
    return {
        "texts": len(texts),
        "differ": len(differing),
        "share": len(differing) / len(texts),
        "differences": differing[:LISTED],
    }


def compare_scores(pairs: list[Pair]) -> dict[str, Any]:
    """The largest differences between captune's and pycocoevalcap's figures, of the corpus and of any caption."""
    gts, res = peer_tokens(pairs)
    kept = [
        i
        for i, (caption, references) in enumerate(pairs)
        if ptb.tokenize(caption) == res[i][0] and [ptb.tokenize(r) for r in references] == gts[i]
    ]
    gts, res = {i: gts[i] for i in kept}, {i: res[i] for i in kept}
    captions, references = [pairs[i][0] for i in kept], [pairs[i][1] for i in kept]
    bleu, bleu_each = PeerBleu().compute_score(gts, res, verbose=0)
    peers = {f"bleu_{n + 1}": value for n, value in enumerate(bleu)}
    each = {"bleu_4": bleu_each[3]}
    for name, scorer in (("rouge", PeerRouge()), ("cider", PeerCider())):
        peers[name], each[name] = scorer.compute_score(gts, res)
    ours, ours_each = {}, {}
    for scorer in (Bleu(), Rouge(), Cider()):
        rows = scorer.rows(captions, references=references)
        ours |= scorer.corpus(rows)
        ours_each["bleu_4" if scorer.name == "bleu" else scorer.name] = scorer.per_caption(rows)
    return {
        "pairs": len(kept),
        "left_out": len(pairs) - len(kept),
        "pycocoevalcap": {name: float(value) for name, value in peers.items()},
        "largest_difference_corpus": max(abs(peers[name] - ours[name]) for name in peers),
        "largest_difference_caption": max(float(np.abs(np.array(each[n]) - ours_each[n]).max()) for n in each),
    }


def peer_tokens(pairs: list[Pair]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """pycocoevalcap's (references, captions), tokenized."""
    gts = {i: [{"caption": r} for r in references] for i, (_, references) in enumerate(pairs)}
    res = {i: [{"caption": caption}] for i, (caption, _) in enumerate(pairs)}
    return PTBTokenizer().tokenize(gts), PTBTokenizer().tokenize(res)


def leave_one_out(by_image: dict[str, list[str]]) -> list[Pair]:
    return [(own[i], own[:i] + own[i + 1 :]) for own in by_image.values() for i in range(len(own)) if len(own) > 1]


def shuffled(captions: list[str], number: int) -> list[Pair]:
    rng = random.Random(0)
    return [(caption, rng.sample(captions, 5)) for caption in rng.sample(captions, number)]


def long_pairs(captions: list[str]) -> list[Pair]:
    following = captions[1:] + captions[:1]
    return [(c, [f, " ".join(c.split()[:-5])]) for c, f in zip(captions, following, strict=True)]


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Parity with pycocoevalcap",
        "",
        f"captune's tokenizer {result['tokenizer']} and scorers against {result['peer']}, made by",
        "`python -m benchmarks.parity.pycocoevalcap DATA` (its head says what is compared).",
        "",
        "| texts | number | tokenized otherwise | share |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {r['texts']:,} | {r['differ']:,} | {r['share']:.3%} |" for name, r in result["words"].items()),
        "",
        "| pairs | number | left out | CIDEr-D | BLEU-4 | ROUGE-L | largest difference, corpus | of a caption |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in result["scores"].items():
        figures = " | ".join(f"{r['pycocoevalcap'][key]:.4f}" for key in ("cider", "bleu_4", "rouge"))
        largest = f"{r['largest_difference_corpus']:.1e} | {r['largest_difference_caption']:.1e}"
        lines.append(f"| {name} | {r['pairs']:,} | {r['left_out']} | {figures} | {largest} |")
    lines += ["", "Every remaining difference on captions, and the first of the others, are in the JSON file."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    by_image = read(args.data / "flickr8k" / "captions.txt")
    flickr = [text for own in by_image.values() for text in own]
    others = [text for own in read(args.data / "flickr8k" / "captions_text_only.csv").values() for text in own]
    long = {name: [t for own in read(args.data / name / "captions.json").values() for t in own]
            for name in ("cocoln500", "docci500")}  # fmt: skip
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints
        words = {
            "Flickr8k": compare_words(flickr),
            "Flickr8k, text only": compare_words(others),
            **{name: compare_words(texts) for name, texts in long.items()},
            "odd captions, looked at": compare_words(odd_captions(flickr + others, 10_000, half=0)),
            "odd captions, kept back": compare_words(odd_captions(flickr + others, 10_000, half=1)),
            "prose of installed packages, looked at": compare_words(prose(20_000, half=0)),
            "prose of installed packages, kept back": compare_words(prose(20_000, half=1)),
        }
        scores = {
            "Flickr8k, leave one out": compare_scores(leave_one_out(by_image)),
            "Flickr8k text only, shuffled": compare_scores(shuffled(others, 10_000)),
            **{f"{name}, next and cut": compare_scores(long_pairs(texts)) for name, texts in long.items()},
        }
    result = {
        "peer": f"pycocoevalcap {version('pycocoevalcap')} with stanford-corenlp-3.4.1 on {java}",
        "tokenizer": ptb.VERSION,
        "words": words,
        "scores": scores,
    }
    print(markdown(result))
    if args.output:
        args.output.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    worst = max(r[key] for r in scores.values() for key in ("largest_difference_corpus", "largest_difference_caption"))
    short = words["Flickr8k"]["differ"] + words["Flickr8k, text only"]["differ"]
    if worst > TOLERANCE or short or max(words[name]["share"] for name in long) > 0.003:
        sys.exit("captune does not equal pycocoevalcap")


if __name__ == "__main__":
    main()
