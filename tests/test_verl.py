"""The reward that verl loads by its path: called as verl's managers call it, and the parquet that it trains on."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import broken_images
import cloudpickle
import numpy as np
import pytest
import source_files
from datasets import load_dataset
from PIL import Image

from captune import verl
from captune.errors import MissingColumn, SourceError
from captune.scorers import Scorer, load_reward, load_scorer

CAPTIONS = ["a red ball on the beach", "a dog a dog a dog", "", "two fish"]
TRUTHS = [["a red ball"], ["one dog", "a dog runs"], ["a cat"], ["two fish swim", "fish"]]
REWARD = "rouge - 0.5*repetition"


def loaded(name: str = "compute_score") -> Any:
    """The function as verl finds it (verl 0.9.0, utils/import_utils.py: load_extern_object): out of a module that is
    executed under a name of its own and never enters sys.modules."""
    spec = importlib.util.spec_from_file_location("custom_module_7", verl.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def with_kwargs(function: Any, extra: dict[str, Any]) -> Any:
    """What verl makes of a function and its reward_kwargs (trainer/ppo/reward.py)."""

    def call(raw: Any, given: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return raw(*args, **{**kwargs, **given})

    return functools.partial(call, function, extra)


def expected() -> list[float]:
    return load_scorer(REWARD)(CAPTIONS, references=TRUTHS)


class Counting(Scorer):
    """Length in words, nan for the "unclear"; counts how often it is built and how many captions come at once."""

    name = "counting"
    built = 0
    batches: list[int]

    def __init__(self, argument: str | None = None) -> None:
        type(self).built += 1
        type(self).batches = []
        self.started = threading.Event()

    def rows(self, captions: Any, **columns: Any) -> np.ndarray:
        self.batches.append(len(captions))
        if "wait" in captions:
            self.started.set()
            threading.Event().wait(1)
        if "fail" in captions:
            raise RuntimeError("the model is gone")
        return np.array([[np.nan if "unclear" in c else float(len(c.split()))] for c in captions])


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    from captune import scorers

    monkeypatch.setitem(scorers.SCORERS.targets, "counting", Counting)
    verl._built.cache_clear()
    Counting.built = 0
    return Counting


def test_one_caption_as_the_naive_manager_asks() -> None:
    score = with_kwargs(loaded(), {"reward": REWARD})
    answers = [
        score(data_source="coco", solution_str=caption, ground_truth=truth, extra_info={"num_turns": None})
        for caption, truth in zip(CAPTIONS, TRUTHS, strict=True)
    ]
    assert [answer["score"] for answer in answers] == pytest.approx(expected())
    for answer, caption, truth in zip(answers, CAPTIONS, TRUTHS, strict=True):
        assert answer["rouge"] == load_scorer("rouge")([caption], references=[truth])[0]
        assert set(answer) == {"score", "rouge", "repetition"}


def test_positional_arguments_and_none_for_extra_info() -> None:
    assert loaded()("coco", CAPTIONS[0], TRUTHS[0], None, reward=REWARD)["score"] == pytest.approx(expected()[0])


def test_a_batch_as_the_batch_manager_asks() -> None:
    """Columns come as arrays of objects there, extra_infos as a list."""
    score = with_kwargs(loaded("compute_score_batch"), {"reward": REWARD})
    truths = np.empty(len(TRUTHS), dtype=object)
    truths[:] = TRUTHS
    answers = score(
        data_sources=np.array(["coco"] * 4, dtype=object),
        solution_strs=CAPTIONS,
        ground_truths=list(truths),
        extra_infos=np.array([{"rollout_reward_scores": {}} for _ in CAPTIONS], dtype=object),
    )
    one = [loaded()("coco", caption, truth, {}, reward=REWARD) for caption, truth in zip(CAPTIONS, TRUTHS, strict=True)]
    assert answers == one


def test_what_a_running_reward_model_adds_is_not_minded() -> None:
    answer = loaded()(
        "coco", CAPTIONS[0], TRUTHS[0], {}, reward=REWARD, reward_router_address="h:1", reward_model_tokenizer=object()
    )
    assert answer["score"] == pytest.approx(expected()[0])


def test_many_threads_of_the_reward_loop(counting: type[Counting]) -> None:
    """As in RewardLoopWorker.compute_score_batch: a task per caption, each in the loop's threads. The scorer is built
    once, and captions that wait while another is judged are judged together."""
    score = with_kwargs(loaded(), {"reward": "counting"})
    captions = ["wait", *("word " * n for n in range(1, 40))]

    async def everything() -> list[dict[str, float]]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(16))
        tasks = [
            loop.run_in_executor(
                None, lambda c=c: score(data_source="", solution_str=c, ground_truth="", extra_info={})
            )
            for c in captions
        ]
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(everything())
    assert [answer["score"] for answer in answers] == [1.0, *(float(n) for n in range(1, 40))]
    assert counting.built == 1
    assert sum(counting.batches) == 40 and max(counting.batches) >= 8


def test_a_failure_reaches_every_caption_that_waited_for_it(counting: type[Counting]) -> None:
    scoring = verl.scoring("counting")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(scoring.one, "wait", "", {}, None)
        scoring.parts[0][0].started.wait(5)  # the others queue up behind it
        others = [pool.submit(scoring.one, caption, "", {}, None) for caption in ("a", "fail", "b")]
        assert first.result(30)["score"] == 1.0
        failed = [future.exception(5) for future in others]
    assert any(isinstance(error, RuntimeError) for error in failed)
    assert scoring.one("a b", "", {}, None)["score"] == 2.0  # and the next ones are judged


def test_ray_can_send_the_function_to_another_process() -> None:
    """The remote manager pickles the function; its module is not importable, so by value, with all it refers to."""
    score = with_kwargs(loaded(), {"reward": REWARD})
    score(data_source="", solution_str=CAPTIONS[0], ground_truth=TRUTHS[0], extra_info={})  # scorers exist
    again = cloudpickle.loads(cloudpickle.dumps(score))
    answer = again(data_source="", solution_str=CAPTIONS[0], ground_truth=TRUTHS[0], extra_info={})
    assert answer["score"] == pytest.approx(expected()[0])


@pytest.mark.parametrize(
    ("truth", "references"),
    [
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[unclear] a dog", ["[unclear] a dog"]),
        ("a dog", ["a dog"]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        ([], None),
        ("[]", None),
        ("", None),
        (None, None),
        ('[{"raw": "a dog"}]', ["a dog"]),
        ({"raw": " a dog"}, ["a dog"]),
        ('["a dog", null, "NaN"]', ["a dog"]),
        ([None], None),
    ],
)
def test_the_references_of_ground_truth(truth: Any, references: list[str] | None) -> None:
    assert verl.read_references(truth) == references


def test_a_ground_truth_of_something_else_is_refused() -> None:
    with pytest.raises(SourceError, match="ground_truth: expected a caption or a list of captions, found int"):
        verl.read_references("[1, 2]")


@pytest.mark.parametrize("kind", ["path", "bytes", "pair", "pil"])
def test_where_the_image_may_come_from(kind: str, tmp_path: Path) -> None:
    picture = broken_images.photo(seed=3)
    data = broken_images.encode(picture, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    forms = {
        "path": str(tmp_path / "a.png"),
        "bytes": data,
        "pair": {"bytes": data, "path": None},
        "pil": Image.open(io.BytesIO(data)),
    }
    answer = loaded()("", "a red ball", "", {"image": forms[kind]}, reward="clip")
    assert answer["score"] == pytest.approx(load_scorer("clip")(["a red ball"], image=[picture])[0], abs=1e-6)


@pytest.mark.parametrize(
    ("reward", "needle"),
    [
        ("rouge", "references in ground_truth"),
        ("clip", r"image in extra_info\['image'\]"),
        ("storybook", r"scene in extra_info\['scene'\]"),
    ],
)
def test_what_is_missing_is_named(reward: str, needle: str) -> None:
    with pytest.raises(MissingColumn, match=needle + r".*; the row has index"):
        loaded()("coco", "a dog", "", {"index": 3}, reward=reward)


def test_without_a_reward() -> None:
    with pytest.raises(ValueError, match="reward_kwargs.reward"):
        loaded()("coco", "a dog", "a dog", {})


def test_cider_without_frozen_frequencies_is_refused() -> None:
    with pytest.raises(ValueError, match="frequencies"):
        loaded()("coco", "a dog", "a dog", {}, reward="cider")


def test_a_caption_that_cannot_be_judged() -> None:
    """NaN would spread over verl's batch."""
    row = ("coco", "a red dog", "dogs run")  # the reference names no attribute
    with pytest.raises(ValueError, match=r"unscorable=0\.0"):
        loaded()(*row, reward="attributes")
    answer = loaded()(*row, reward="attributes", unscorable=0.0)
    assert answer["score"] == 0.0 and np.isnan(answer["attributes"])
    assert loaded()("coco", "a red dog", "a red dog", reward="attributes")["score"] == pytest.approx(1.0)


def test_a_scorer_that_cannot_judge_counts_nothing_beside_one_that_can(counting: type[Counting]) -> None:
    assert loaded()("", "unclear picture", "", reward="counting + 2*length")["score"] == 4.0  # as in TRL
    assert loaded()("", "a picture", "", reward="counting + 2*length")["score"] == 6.0


def test_rows_with_and_without_what_a_scorer_merely_uses() -> None:
    scoring = verl.Scoring("clip")
    picture = broken_images.photo()
    answers = scoring.many(["a", "b"], ["", "a dog"], [{"image": picture}, {"image": picture}], None)
    alone = load_scorer("clip")(["a", "b"], image=[picture] * 2)
    assert [answer["score"] for answer in answers] == pytest.approx(alone, abs=1e-6)


def rows_of(path: Path, tmp_path: Path) -> Any:
    """As verl's RLHFDataset reads it."""
    return load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]


def test_the_parquet_of_a_source_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = source_files.images(tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "b.jpg").write_bytes(broken_images.encode(broken_images.photo(), "JPEG", exif=exif))
    (folder / "broken.jpg").write_bytes(b"<html>")
    source = source_files.write(
        folder / "captions.jsonl",
        "".join(
            json.dumps({"image": name, "image_id": name, "captions": source_files.TRUTH.get(name, [])}) + "\n"
            for name in ("a.jpg", "b.jpg", "broken.jpg")
        ),
    )
    monkeypatch.chdir(tmp_path)
    verl.main([str(source), "out.parquet", "--prompt", "What is this?"])
    assert "2 rows" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out.parquet", tmp_path)
    assert {"prompt", "images", "data_source", "reward_model", "extra_info"} <= set(rows.column_names)
    first, second = rows
    assert first["prompt"] == [{"role": "user", "content": "<image>What is this?"}]
    assert [picture.size for picture in first["images"]] == [(48, 32)]
    assert second["images"][0].size == (32, 48)  # upright already: verl's reader does not look at EXIF
    assert first["extra_info"]["image"] == {"bytes": None, "path": str((folder / "a.jpg").resolve())}
    for row, name in zip(rows, ("a.jpg", "b.jpg"), strict=True):
        info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
        assert verl.read_references(truth) == source_files.TRUTH[name] and info["image_id"] == name
        answer = loaded()(row["data_source"], "a dog", truth, info, reward="rouge + clip")
        plain = load_reward("rouge + clip")(["a dog"], references=[source_files.TRUTH[name]], image=[folder / name])
        assert answer["score"] == pytest.approx(plain[0], abs=1e-6)


def test_the_parquet_of_storybook(tmp_path: Path) -> None:
    assert verl.write_parquet("storybook:train?n=3", tmp_path / "out.parquet", limit=2) == 2
    for row in rows_of(tmp_path / "out.parquet", tmp_path):
        truth, info = row["reward_model"]["ground_truth"], row["extra_info"]
        assert info["image"]["path"] is None
        assert Image.open(io.BytesIO(info["image"]["bytes"])).tobytes() == row["images"][0].convert("RGB").tobytes()
        best = verl.read_references(truth)
        assert best is not None and loaded()("", best[0], truth, info, reward="storybook + clip")["storybook"] > 0
