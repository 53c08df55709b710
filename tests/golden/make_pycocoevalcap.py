"""Makes the golden values of tests/golden: what pycocoevalcap 1.2, with its own Java tokenizer, says.

    python -m tests.golden.make_pycocoevalcap captions.txt            # Flickr8k's `image,caption` file; needs Java

`pycocoevalcap.json`: the first images of the captions file, each image's first caption against its other four; and a
small corpus of odd captions (empty, brackets, emoji, other scripts, one word). `tokens.json`: odd texts, their tokens.
The tests read these files and need neither Java nor pycocoevalcap. parity_pycocoevalcap.py compares whole corpora.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

GOLDEN = Path(__file__).parent
IMAGES = 300

ODD_CORPUS = [
    ("", ["A dog runs on the beach.", "The dog's running."]),
    ("a (small) dog [running] {fast}", ["A small dog runs (fast).", "a dog [running]", "a dog"]),
    ("a dog 🐕 on the beach 😀", ["a dog 🐕 on the beach", "A dog on a beach!!"]),
    ("一只狗 在 海滩 上", ["一只狗 在 海滩 上 跑", "собака на пляже"]),
    ("dog", ["dog", "a dog"]),
    ("a a a a a a a a", ["a dog a day", "a a a"]),
    ("Two dogs don't run; they can't!", ["Two dogs don't run.", "two dogs cannot run", "2 1/2 dogs don't run"]),
    (
        "a man and/or a woman wearing R&B T-shirts in the U.S.A. at 5:30 p.m.",
        ["a man at 5:30 p.m.", "R&B in the U.S.A."],
    ),
    ("the the the dog dog on the the beach beach beach", ["the dog on the beach", "the dog on the beach"]),
    ("...", ["a dog", "..."]),
    (
        "A black dog and a white dog are fighting in the grass and a man watches them from the fence.",
        ["two dogs fight"],
    ),
    ("dogs", ["A black dog and a white dog are fighting in the grass and a man watches them from the fence."]),
]

ODD_TEXTS = [
    "A dog's ball isn't here, can't won't I'm they're we've he'd she'll y'all",
    "cannot gonna gotta wanna gimme lemme 'tis 'twas dunno more'n rock'n'roll rock 'n' roll",
    "'90s the 'stop' sign says 'STOP' `hi` ``hello'' \"quoted\" “curly” ‘single’ it’s don’t",
    "(parens) [brackets] {braces} <b>tag</b> <PERSON> at home (a (b)) dog(s)",
    "semi;colon: and - dash -- emdash — en – three... four.... … well--known dog -dog dog-",
    "Mr. Smith and Dr. Jones at St. Mary's, the U.S. Army at 5 a.m. or p.m., etc., in J. K. Rowling's",
    "3.5 1,000 1,000,000.50 10:30 1/2 3/4 50% $5 £5 €5 5¢ #1 @ 5'10\" 1st 2nd 20s 1990's ½ 1½ 2 1/2 .5 12:30pm 1-2",
    "t-shirt well-known and/or his/her black&white AT&T R&B a.b.c http://www.example.com/foo www.example.com me@x.com",
    "the orange U. Miami shirt, plan B. The end. plan C. is good, No. 5 and no. no vs. Vs. approx. ave. blvd.",
    "hello world.this is one. And two.  three one.two.three hi.5a 5.5a a5.b",
    "smile :) :-) ;) <3 dog🐕 中文字 日本語です русский हिन्दी ไทย العربية 한국어",
    "a*b a_b a+b = ~ ^ | \\ / &amp; &lt; % ★ © ® ™ ° • ← × ÷ § ¿ x² H₂O 30°C café naïve façade",
    "!! ?? ?! !!! .. ; : , ,, a!b a?b dog! dog? dog.; dog., dog.:",
    "o'clock O'Neil o'er ma'am nat'l Hawai'i l'eau d'or 'em 'til 'cause jumpin' dogs' James' ",
    "5-year-old two-year-old 3d 4x4 20-25 mid-1990s 80s-style a-b-c ab-cd/ef a/b/c a/b/c/d 24/7 10/10/2010",
    "(555) 555-1234 or 555-1234 <unk> <|im_end|> </s> <a href=\"x\"> @home #hashtag C++ .NET",
    "a b a\u3000b a\u200bb a\ufeffb a\u00adb a\u200db ❤️ ☺ ♥ ✓ 「中文」 ， 。 « a » ‹ b ›",
]  # fmt: skip


def scores(pairs: list[tuple[str, list[str]]]) -> dict:
    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({i: [{"caption": r} for r in references] for i, (_, references) in enumerate(pairs)})
    res = tokenizer.tokenize({i: [{"caption": caption}] for i, (caption, _) in enumerate(pairs)})
    if len(res) != len(pairs) or any(len(gts[i]) != len(refs) for i, (_, refs) in enumerate(pairs)):
        raise SystemExit("the tokenizer returned another number of lines than it was given")
    bleu, bleu_each = Bleu().compute_score(gts, res, verbose=0)
    rouge, rouge_each = Rouge().compute_score(gts, res)
    cider, cider_each = Cider().compute_score(gts, res)
    items = [
        {
            "caption": caption,
            "references": references,
            "tokens": [res[i][0], *gts[i]],
            "bleu_4": bleu_each[3][i],
            "rouge": float(rouge_each[i]),
            "cider": float(cider_each[i]),
        }
        for i, (caption, references) in enumerate(pairs)
    ]
    corpus = {f"bleu_{n + 1}": value for n, value in enumerate(bleu)} | {"rouge": float(rouge), "cider": float(cider)}
    return {"corpus": corpus, "items": items}


def tokens(texts: list[str]) -> list[str]:
    """What the Java tokenizer makes of each text. Every second line is a dummy: it looks one line ahead."""
    spaced = {2 * i: [{"caption": text}] for i, text in enumerate(texts)}
    spaced |= {2 * i + 1: [{"caption": "A"}] for i in range(len(texts))}
    answer = PTBTokenizer().tokenize(dict(sorted(spaced.items())))
    return [answer[2 * i][0] for i in range(len(texts))]


def read(path: Path) -> dict[str, list[str]]:
    by_image = defaultdict(list)
    if path.suffix == ".json":
        for image, text in json.loads(path.read_text(encoding="utf-8")).items():
            by_image[image].append(text)
    else:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                by_image[row["image"]].append(row["caption"])
    return by_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    args = parser.parse_args()
    complete = [own for own in read(args.captions).values() if len(own) >= 5][:IMAGES]
    made_with = {"pycocoevalcap": version("pycocoevalcap"), "tokenizer": "stanford-corenlp-3.4.1"}
    golden = {
        "made_with": made_with,
        "flickr8k": scores([(own[0], own[1:5]) for own in complete]),
        "odd": scores(ODD_CORPUS),
        "one_image": scores([(complete[0][0], complete[0][1:5])]),
    }
    (GOLDEN / "pycocoevalcap.json").write_text(json.dumps(golden, ensure_ascii=False, indent=0), encoding="utf-8")
    odd = [{"text": text, "tokens": answer} for text, answer in zip(ODD_TEXTS, tokens(ODD_TEXTS), strict=True)]
    (GOLDEN / "tokens.json").write_text(
        json.dumps({"made_with": made_with, "items": odd}, ensure_ascii=False, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
