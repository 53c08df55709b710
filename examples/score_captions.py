"""Figures with 95% intervals, and a paired test between two captioners on the same images.

    python examples/score_captions.py

The embedded captioner is compared with itself under classifier-free guidance.
"""

from __future__ import annotations

from captune import Captioner, evaluate, load_images, load_scorer, paired
from captune.decoding import load_decoder


def main(n: int = 100) -> None:
    """Caption `n` images twice, score both, test the difference."""
    images = load_images(f"storybook:val?n={n}")
    columns = {"references": images["references"], "scene": images["scene"]}
    captioner = Captioner.load("storybook")
    plain = captioner.generate(images["image"])
    guided = load_decoder("cfg:2.0")(captioner, images["image"])

    for name in ("cider", "storybook"):
        scorer = load_scorer(name)
        before = evaluate(plain, columns, [scorer])[name]
        after = evaluate(guided, columns, [scorer])[name]
        test = paired(after.rows, before.rows, scorer)
        for figure, value in after.values.items():
            if figure in test.p_value:
                low, high = test.interval[figure]
                change = f"{test.difference[figure]:+.3f} [{low:+.3f}, {high:+.3f}], p = {test.p_value[figure]:.4f}"
                print(f"{figure:24} {before.values[figure]:7.3f} -> {value:7.3f}   {change}")


if __name__ == "__main__":
    main()
