from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from captune import storybook
from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.models.encoders.features import ImageFeatureCache
from captune.scorers import load_scorer
from captune.scorers.image.self_retrieval import SelfRetrieval

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


class Eyes:
    """Reads the colours of plain images, and the names of colours in texts."""

    name, digest, context_length, truncated = "eyes", "0", 9, 0

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode_images(self, images: list[Image.Image], **_: object) -> torch.Tensor:
        self.encoded.append(len(images))
        return self._unit([image.getpixel((0, 0)) for image in images])

    def encode_texts(self, texts: list[str], **_: object) -> torch.Tensor:
        return self._unit([np.sum([COLOURS.get(w, (0, 0, 0)) for w in (*t.split(), "")], axis=0) for t in texts])

    @staticmethod
    def _unit(vectors: list) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tensor(np.array(vectors), dtype=torch.float32), dim=-1)


def plain(*names: str) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), COLOURS[name]) for name in names]


def test_ranks_by_hand() -> None:
    scorer = SelfRetrieval("?k=1,2", encoder=Eyes())
    captions = ["red", "red", "blue green", "grey"]
    images = plain("red", "green", "blue", "grey")
    # "red" of the green image: red .71 > grey .58 > green = blue = 0, a tie with its own
    # "blue green" of the blue image: grey .82 > green = blue .71, a tie; "grey" of the grey one: 1
    rows = scorer.rows(captions, image=images)
    np.testing.assert_allclose(rows[:, 2], [1, 1 / 4, 1 / 3, 1])
    np.testing.assert_array_equal(rows[:, :2], [[1, 1], [0, 0], [0, 0], [1, 1]])
    values = scorer.corpus(rows)
    assert values == pytest.approx({"recall_1": 0.5, "recall_2": 0.5, "mrr": (1 + 1 / 4 + 1 / 3 + 1) / 4})
    assert scorer(captions, image=images) == pytest.approx([1, 1 / 4, 1 / 3, 1])


def test_a_caption_that_says_nothing_is_last() -> None:
    rows = SelfRetrieval(encoder=Eyes()).rows(["", "😀", "nothing"], image=plain("red", "green", "blue"))
    np.testing.assert_allclose(rows, [[0, 0], [0, 1 / 3], [0, 1 / 3]])  # an empty one finds nothing


def test_copies_of_the_own_image_are_no_distractors() -> None:
    eyes = Eyes()
    images = plain("red", "red", "red", "green")
    rows = SelfRetrieval(encoder=eyes).rows(["red", "red", "green", "green"], image=images)
    np.testing.assert_allclose(rows[:, -1], [1, 1, 1 / 2, 1])
    assert eyes.encoded == [2]  # and each is encoded once
    features = ImageFeatureCache(eyes)
    keys, made = features([*images, *plain("blue")], batch_size=2)
    assert len(set(keys)) == 3 and keys[0] == keys[2] and len(made) == 5
    assert eyes.encoded[1:] == [1, 1, 1]  # whatever the batches
    features(images)
    assert eyes.encoded[1:] == [1, 1, 1]  # and from call to call


def many(n: int) -> tuple[list[str], list[Image.Image]]:
    rng = np.random.default_rng(0)
    images = [Image.new("RGB", (4, 4), tuple(int(x) for x in rng.integers(0, 255, 3))) for _ in range(n)]
    return [rng.choice(["red", "green blue", "grey", "blue"]) for _ in range(n)], images


def test_distractors_are_drawn_by_content_and_seed() -> None:
    captions, images = many(60)
    rows = SelfRetrieval("?n=10", encoder=Eyes()).rows(captions, image=images)
    order = random.Random(0).sample(range(60), 60)
    shuffled = SelfRetrieval("?n=10", encoder=Eyes(), batch_size=7).rows(
        [captions[i] for i in order], image=[images[i] for i in order]
    )
    np.testing.assert_array_equal(shuffled, rows[order])
    other = SelfRetrieval("?n=10&seed=1", encoder=Eyes()).rows(captions, image=images)
    assert (other != rows).any()
    ranks = 1 / rows[:, -1]
    assert ranks.max() <= 11
    everyone = SelfRetrieval(encoder=Eyes())
    np.testing.assert_array_equal(
        everyone.rows(captions, image=images), SelfRetrieval("?n=59", encoder=Eyes()).rows(captions, image=images)
    )
    assert (1 / everyone.rows(captions, image=images)[:, -1] >= ranks).all()
    assert "|distractors:all|images:60|seed:0|" in everyone.signature
    assert "|distractors:all|seed:0|" in everyone.identity  # that of a reward does not depend on the last batch


def test_the_expected_rank_among_n_is_that_among_all() -> None:
    """The circle is a fair draw: rank - 1 among 20 of 199 is a tenth of rank - 1 among all, on average over seeds."""
    captions, images = many(200)
    everyone = 1 / SelfRetrieval(encoder=Eyes()).rows(captions, image=images)[:, -1] - 1
    drawn = [1 / SelfRetrieval(f"?n=20&seed={s}", encoder=Eyes()).rows(captions, image=images)[:, -1] - 1
             for s in range(30)]  # fmt: skip
    assert np.mean(drawn) == pytest.approx(everyone.mean() * 20 / 199, rel=0.03)


def test_similarities_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    captions, images = many(50)
    rows = SelfRetrieval(encoder=Eyes()).rows(captions, image=images)
    monkeypatch.setattr("captune.scorers.image.self_retrieval._CELLS", 120)
    np.testing.assert_array_equal(SelfRetrieval(encoder=Eyes()).rows(captions, image=images), rows)


@pytest.mark.parametrize(("spec", "n"), [("", 1), ("?n=4", 4)])
def test_too_few_images(spec: str, n: int) -> None:
    with pytest.raises(ScorerError, match=f"needs {n} other images"):
        SelfRetrieval(spec, encoder=Eyes()).rows(["red", "red"], image=plain("red", "red"))
    assert SelfRetrieval(encoder=Eyes()).rows([], image=[]).shape == (0, 3)


def test_features_that_are_no_numbers_are_no_success() -> None:
    blind = SimpleNamespace(
        name="blind", truncated=0,
        encode_images=lambda images, **_: torch.full((len(images), 3), float("nan")),
        encode_texts=lambda texts, **_: torch.ones(len(texts), 3),
    )  # fmt: skip
    with pytest.raises(ScorerError, match="not finite"):
        SelfRetrieval(encoder=blind).rows(["red", "blue"], image=plain("red", "blue"))


def test_settings() -> None:
    scorer = load_scorer("self_retrieval:some/model?k=1,10&n=all&seed=3")
    assert (scorer.k, scorer.n, scorer.seed) == ((1, 10), None, 3)
    for wrong in ("?k=0", "?k=1,", "?n=-1", "?n=0", "?seed=x"):
        with pytest.raises(ValueError, match="must be at least 1|is not a whole number"):
            load_scorer(f"self_retrieval:{wrong}")
    with pytest.raises(ValueError, match="unknown setting 'top'"):
        load_scorer("self_retrieval:?top=1")
    load_scorer("self_retrieval").check()
    for use in (SelfRetrieval.check, lambda s: s.rows(["a"], image=plain("red"))):
        with pytest.raises(ScorerError, match="does not exist"):
            use(load_scorer("self_retrieval:no/such/folder"))


def test_storybook_captions_find_their_images() -> None:
    data = storybook.load("test", 40)
    right = [own[0] for own in data["references"]]
    wrong = right[1:] + right[:1]
    for captions, least, most in ((right, 0.9, 1), (wrong, 0, 0.1)):
        result = evaluate(captions, {"image": data["image"]}, ["self_retrieval"], bootstrap=20)["self_retrieval"]
        assert least <= result.value <= most and set(result.interval) == {"recall_1", "recall_5", "mrr"}


def test_b11_a_recall_that_every_caption_has_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    scorer = SelfRetrieval("?k=1,3,5", encoder=Eyes())
    rows = scorer.rows(["red", "green", "blue"], image=plain("red", "green", "blue"))
    assert list(scorer.corpus(rows)) == ["recall_1", "mrr"]
    assert "recall_3, recall_5 is left out" in caplog.text
    with pytest.raises(ScorerError, match="among 2 images every caption finds its own in the first 5"):
        SelfRetrieval("?k=5", encoder=Eyes()).rows(["red", "green"], image=plain("red", "green"))
    drawn = SelfRetrieval("?k=1,2,3&n=2", encoder=Eyes())
    assert list(drawn.corpus(drawn.rows(["red"] * 4, image=plain("red", "green", "blue", "grey")))) == [
        "recall_1",
        "recall_2",
        "mrr",
    ]


def test_b11_an_empty_caption_finds_nothing() -> None:
    scorer = SelfRetrieval("?k=1", encoder=Eyes())
    rows = scorer.rows([" ", "green", "blue"], image=plain("red", "green", "blue"))
    assert rows.tolist() == [[0, 0], [1, 1], [1, 1]]
