"""consensus: leave-one-out means by any text scorer, groups, what is refused, and MBR decoding."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny

from captune.cli.main import main
from captune.decoding import load_decoder
from captune.errors import ScorerError, SpecError
from captune.models.captioner import Captioner
from captune.scorers import load_scorer
from captune.scorers.reference.cider import Cider

CAPTIONS = ["a red ball", "two fish on a beach", "a red ball", "fish", "a big red ball here", "two fish"]
IDS = ["x", "y", "x", "y", "x", "y"]


@pytest.mark.parametrize("inner", ["rouge", "bleu", "sbert", "bertscore"])
def test_the_mean_over_the_others_one_by_one(inner: str) -> None:
    scorer, similarity = load_scorer(f"consensus:{inner}"), load_scorer(inner)
    scores = scorer(CAPTIONS, image_id=IDS)
    for i, caption in enumerate(CAPTIONS):
        others = [CAPTIONS[j] for j in range(6) if IDS[j] == IDS[i] and j != i]
        alone = [similarity([caption], references=[[other]])[0] for other in others]
        assert scores[i] == pytest.approx(np.mean(alone), abs=1e-6)


def test_rouge_is_the_default_and_order_plays_no_part() -> None:
    scorer = load_scorer("consensus")
    assert scorer.signature.startswith("consensus|pairs:mean|empty:0|by:[rouge")
    scores = scorer(CAPTIONS, image_id=IDS)
    order = [5, 0, 3, 2, 4, 1]
    assert scorer([CAPTIONS[i] for i in order], image_id=[IDS[i] for i in order]) == [scores[i] for i in order]
    assert scores[0] == scores[2] > scores[4]


def test_cider_takes_its_frequencies_from_the_captions_judged() -> None:
    scorer = load_scorer("consensus:cider")
    assert not scorer.needs_fit and "df:judged-captions" in scorer.signature
    scores = scorer(CAPTIONS, image_id=IDS)
    fitted = Cider().fit([[CAPTIONS[i] for i in range(6) if IDS[i] == name] for name in ("x", "y")])
    assert scores[0] == pytest.approx(
        np.mean([fitted(["a red ball"], references=[[o]])[0] for o in (CAPTIONS[2], CAPTIONS[4])])
    )
    again = ["a dog", "a dog", "a cat", "a cat"]
    scorer(again, image_id=list("aabb"))
    assert scorer(CAPTIONS, image_id=IDS) == scores, "of each call's own"


def test_an_empty_caption_agrees_with_none() -> None:
    scores = load_scorer("consensus:sbert")(["", " ", "a ball", "a ball"], image_id=list("aaaa"))
    assert scores[:2] == [0.0, 0.0] and scores[2] == pytest.approx(1 / 3)


def test_images_tell_groups_where_ids_are_missing() -> None:
    one, two = tiny.picture(0), tiny.picture(1)
    scorer = load_scorer("consensus")
    images = [one, two, one, two, one, two]
    assert scorer(CAPTIONS, image=images) == scorer(CAPTIONS, image_id=IDS)
    with pytest.raises(ScorerError, match="needs image_id, or the images"):
        scorer(CAPTIONS)


def test_one_caption_of_an_image_is_refused() -> None:
    with pytest.raises(ScorerError, match="1 of 3 images have only one, the first image 'z'.*best-of:8:consensus"):
        load_scorer("consensus")([*CAPTIONS, "a dog"], image_id=[*IDS, "z"])


def test_a_file_of_captions_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "caps.jsonl"
    file.write_text("".join(json.dumps({"image_id": str(i), "caption": "a dog"}) + "\n" for i in range(3)))
    assert main(["evaluate", str(file), "--scorers", "consensus", "--no-cache"]) == 1
    assert "not for a file of captions" in capsys.readouterr().err
    assert main(["evaluate", str(file), "--scorers", "all", "--no-cache", "--json", "--bootstrap", "0"]) == 0
    assert "a caption file has one" in json.loads(capsys.readouterr().out)["skipped"]["consensus"]


@pytest.mark.parametrize(("inner", "why"), [
    ("length", "compares with no references"), ("clip", "needs image"), ("storybook", "needs scene"),
    ("rouge:x", "takes no argument"),
])  # fmt: skip
def test_what_compares_no_texts_is_refused(inner: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        load_scorer(f"consensus:{inner}")


def test_best_of_by_consensus_is_mbr_decoding(captioner: Captioner, caplog: pytest.LogCaptureFixture) -> None:
    images = [tiny.picture(i) for i in range(2)]
    with caplog.at_level(logging.WARNING):
        made = load_decoder("best-of:4:consensus")(captioner, images, max_new_tokens=4)
    assert len(made) == 2
