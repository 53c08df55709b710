"""Training an encoder pair: what is learned, that it resumes exactly, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_pair
import torch

from captune.cli.main import main
from captune.errors import EncoderError, RunError, SettingError, SourceError
from captune.models.encoders import load_encoder
from captune.models.encoders.pair import PairEncoder, read_config
from captune.training import heads
from captune.training.encoder import train
from captune.training.encoder.train import Batches, Training, fresh_heads, run
from captune.utils.files import lock_folder
from captune.utils.skipped import counting

RESULT = ("config.json", "model.safetensors", "metrics.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pair.prepare(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return run(tiny_pair.config(folder, folder / "trained")).path


def result(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in RESULT}


def vectors(folder: Path, name: str = "train", **changes: Any) -> Any:
    from captune.models.encoders import load_image_encoder, load_text_encoder
    from captune.training.features import vectors_of

    config = tiny_pair.config(folder, folder / "none", **changes)
    encoders = load_image_encoder(config.image_encoder, "cpu"), load_text_encoder(config.text_encoder, "cpu")
    data = train.captioned(str(folder / name / "captions.jsonl"))
    kept = folder / f"vectors-{name}-{config.image_views}"
    return vectors_of(kept, data, *encoders, whole=True, views=config.image_views)


def test_captions_that_the_text_encoder_cuts_are_counted(tmp_path: Path) -> None:
    tiny_pair.prepare(tmp_path)
    file = tmp_path / "train" / "captions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["references"][0] += " and a ball" * 60
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with counting() as counts:
        vectors(tmp_path)
    [(told, items)] = [(what, own) for what, own in counts.items() if "cut behind" in what]
    assert "tokens of the text encoder" in told and list(items.values()) == [1]


def test_leaves_a_folder_that_states_its_recall_and_holds_no_encoder(trained: Path) -> None:
    config = read_config(trained)
    assert config.recall is not None
    assert (config.recall.images, config.recall.captions) == (7, 14)
    assert config.recall.random_text_to_image["1"] == pytest.approx(1 / 7, abs=1e-4)
    assert "7 images with 14 captions" in (trained / "README.md").read_text()
    left = {path.name for path in trained.iterdir()}
    assert left >= {"config.yaml", "versions.json", "finished.json", *RESULT}
    assert not any(name.startswith(("checkpoint", "features")) for name in left)
    assert (trained / "model.safetensors").stat().st_size < 20_000


def test_same_seed_same_bytes_other_seed_others(folder: Path, trained: Path) -> None:
    assert result(run(tiny_pair.config(folder, folder / "again")).path) == result(trained)
    other = result(run(tiny_pair.config(folder, folder / "other", seed=1)).path)
    assert other["model.safetensors"] != result(trained)["model.safetensors"]


def test_stated_recall_is_that_of_the_loaded_pair(folder: Path, trained: Path) -> None:
    from captune.training.encoder.objective import recall

    unseen = train.captioned(str(folder / "unseen" / "captions.jsonl"))
    pair = load_encoder(trained, "cpu")
    assert isinstance(pair, PairEncoder)
    texts = [text for own in unseen.captions for text in own]
    owners = [i for i, own in enumerate(unseen.captions) for _ in own]
    found = recall(
        pair.encode_images([unseen.rows[i]["image"] for i in range(len(unseen))]),
        pair.encode_texts(texts),
        owners,
        unseen.source,
    )
    assert found == pair.config.recall


def test_what_is_trained_comes_to_fit(folder: Path) -> None:
    config = tiny_pair.config(folder, folder / "none", max_steps=150, batch_size=24, dropout=0.0, learning_rate=1e-2)
    data = vectors(folder)
    training = Training(fresh_heads(data, config), config)
    before = train.measured(training.heads, data, "x").text_to_image["1"]
    batches = Batches(data, config)
    losses = [training.advance(*batches.draw(step)) for step in range(config.max_steps)]
    after = train.measured(training.heads, data, "x").text_to_image["1"]
    assert losses[-1] < 0.6 * losses[0]
    assert before < 0.3 < 0.6 < after


def test_batches_hold_own_captions_and_no_false_negative(folder: Path) -> None:
    data = vectors(folder)
    data.captions[2] = data.captions[0].upper() + " "  # image 1 is captioned as image 0 is
    config = tiny_pair.config(folder, folder / "none", batch_size=24, hard_negatives=3)
    batches = Batches(data, config)
    place = {tuple(v.tolist()): i for i, v in enumerate(data.texts)}
    further = 0
    for step in range(6):
        images, texts, excused = batches.draw(step)
        rows = [int((data.images[:, 0] == image).all(dim=1).nonzero()[0, 0]) for image in images]
        drawn = [place[tuple(text.tolist())] for text in texts]
        assert len(set(rows)) == 24
        assert [data.owners[text] for text in drawn[:24]] == rows
        assert len(set(drawn)) == len(drawn)
        further += len(drawn) - 24
        for i, row in enumerate(rows):
            own = {" ".join(c.lower().split()) for c, o in zip(data.captions, data.owners, strict=True) if o == row}
            for k, text in enumerate(drawn):
                said = " ".join(data.captions[text].lower().split())
                assert bool(excused[i, k]) == (k != i and said in own)
    assert further > 0


def test_hard_negatives_are_the_nearest_captions_of_other_images(folder: Path) -> None:
    data = vectors(folder)
    batches = Batches(data, tiny_pair.config(folder, folder / "none", hard_negatives=4))
    for text in range(0, len(data.captions), 5):
        others = [t for t in range(len(data.captions)) if data.owners[t] != data.owners[text]]
        similarity = data.texts[others] @ data.texts[text]
        expected = similarity.sort(descending=True).values[:4]
        assert batches.nearest is not None
        torch.testing.assert_close(data.texts[batches.nearest[text]] @ data.texts[text], expected)


def test_kept_vectors_serve_other_settings(folder: Path, trained: Path, tmp_path: Path) -> None:
    kept = tmp_path / "vectors"
    assert result(run(tiny_pair.config(folder, tmp_path / "a", features=kept)).path) == result(trained)
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npy")}
    assert len(files) == 6
    run(tiny_pair.config(folder, tmp_path / "b", features=kept, seed=1))
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.npy")} == files
    held = lock_folder(next(kept.iterdir()))
    assert held is not None
    with pytest.raises(RunError, match="another process is encoding"):
        run(tiny_pair.config(folder, tmp_path / "c", features=kept))
    os.close(held)


def test_views_of_an_image_are_kept_and_drawn(folder: Path) -> None:
    data = vectors(folder, image_views=3)
    assert data.images.shape[:2] == (24, 3)
    assert not torch.allclose(data.images[:, 0], data.images[:, 1], atol=1e-3)
    torch.testing.assert_close(data.images[:, 0], vectors(folder).images[:, 0])
    batches = Batches(data, tiny_pair.config(folder, folder / "none", image_views=3))
    images, _, _ = batches.draw(0)
    views = {int((data.images == image).all(dim=2).nonzero()[0, 1]) for image in images}
    assert len(views) > 1


@pytest.fixture(scope="module")
def in_fives(folder: Path) -> dict[str, bytes]:
    """Of a run that encodes five images at a time and is never stopped."""
    from captune.training import features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "CHUNK", 5)
        return result(run(tiny_pair.config(folder, folder / "fives")).path)


@pytest.mark.parametrize("when", ["images", "texts", "training", "saving", "pair"])
def test_killed_anywhere_and_resumed_gives_the_same_bytes(
    folder: Path, in_fives: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What is on the disk at the moment of the fault is all that the second run has."""
    from captune.training import features

    class Killed(BaseException):
        pass

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    config = tiny_pair.config(folder, tmp_path / "run")
    monkeypatch.setattr(features, "CHUNK", 5)
    with monkeypatch.context() as patch:
        if when in ("images", "texts"):
            left = [3]
            true = features.replace_file

            def replace(path: Path, text: str) -> None:
                true(path, text)
                left[0] -= path.parent.name == when
                if left[0] <= (0 if when == "images" else 2):
                    raise Killed

            patch.setattr(features, "replace_file", replace)
        elif when == "training":
            true_step = Training.advance

            def advance(self: Training, *args: Any) -> float:
                return stop() if self.step == 6 else true_step(self, *args)

            patch.setattr(Training, "advance", advance)
        elif when == "saving":
            patch.setattr(heads.checkpoints, "complete", stop)
        else:
            patch.setattr(heads, "save_head", stop)
        with pytest.raises(Killed):
            run(config)
    if when == "images":
        (index,) = config.output.glob("features/*/images/index.json")
        assert 0 < json.loads(index.read_text())["done"] < 24
    assert not (config.output / "config.json").exists()
    assert result(run(config).path) == in_fives
    assert not list(config.output.glob("*checkpoint-*"))


def test_a_killed_process_resumes(folder: Path, tmp_path: Path) -> None:
    config = tiny_pair.config(folder, tmp_path / "run", max_steps=400, eval_steps=10, patience=10_000)
    flags = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in ("images", "choice_images", "eval_images", "image_encoder", "text_encoder", "output", "batch_size",
                     "max_steps", "eval_steps", "warmup_steps", "width", "device", "patience")
    ]  # fmt: skip
    code = "from captune.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, "encoder", "train", *flags], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(config.output.glob("checkpoint-*/complete.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (config.output / "finished.json").exists()
    resumed = result(run(config).path)
    assert resumed == result(run(tiny_pair.config(folder, tmp_path / "whole", max_steps=400, eval_steps=10,
                                                  patience=10_000)).path)  # fmt: skip


def test_stops_when_recall_no_longer_rises_and_keeps_the_best(folder: Path) -> None:
    config = tiny_pair.config(folder, folder / "patient", max_steps=400, eval_steps=2, patience=3, learning_rate=0.3)
    path = run(config).path
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    best = max(row["recall"] for row in rows)
    first = next(i for i, row in enumerate(rows) if row["recall"] == best)
    assert len(rows) == first + 1 + 3
    pair = load_encoder(path, "cpu")
    assert isinstance(pair, PairEncoder)
    choice = vectors(folder, "choice")
    assert train.mean_recall(train.measured(pair.heads, choice, "x")) == pytest.approx(best)


def test_finished_run_is_left_and_overwritten_on_request(folder: Path, tmp_path: Path) -> None:
    config = tiny_pair.config(folder, tmp_path / "run")
    path = run(config).path
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert run(config).done
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="seed"):
        run(tiny_pair.config(folder, tmp_path / "run", seed=3))
    run(tiny_pair.config(folder, tmp_path / "run", seed=3, overwrite=True))
    assert (path / "model.safetensors").stat().st_mtime_ns != before


def test_other_data_under_the_same_name_is_refused_when_a_run_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_pair.source(tmp_path / "own")
    config = tiny_pair.config(folder, tmp_path / "run", images=source)
    with monkeypatch.context() as patch:
        patch.setattr(heads, "save_head", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    tiny_pair.source(tmp_path / "own", 1)
    with pytest.raises(RunError, match="other images, captions or encoders"):
        run(config)


def test_an_image_that_was_replaced_under_its_name_is_encoded_again(folder: Path, tmp_path: Path) -> None:
    source, kept = tiny_pair.source(tmp_path / "own"), tmp_path / "vectors"
    before = result(run(tiny_pair.config(folder, tmp_path / "a", images=source, features=kept)).path)
    tiny.picture(900, (60, 64)).save(tmp_path / "own" / "3.png")
    after = result(run(tiny_pair.config(folder, tmp_path / "b", images=source, features=kept)).path)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after == result(run(tiny_pair.config(folder, tmp_path / "c", images=source)).path)


def test_an_image_that_was_replaced_is_no_image_of_the_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_pair.config(folder, tmp_path / "run", images=tiny_pair.source(tmp_path / "own"))
    with monkeypatch.context() as patch:
        patch.setattr(heads, "save_head", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    tiny.picture(900, (60, 64)).save(tmp_path / "own" / "3.png")
    with pytest.raises(RunError, match="other images, captions or encoders"):
        run(config)


@pytest.mark.parametrize("what", ["vectors.npy", "checkpoint-4"])
def test_a_full_disk_is_said_with_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def failed(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos 64 vs 0")

    from captune.training import features

    config = tiny_pair.config(folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        if what == "vectors.npy":
            patch.setattr(features, "os", SimpleNamespace(**{**vars(os), "fsync": full}))
        else:
            patch.setattr(torch, "save", failed)
        with pytest.raises((OSError, RunError)) as error:
            run(config)
    assert what in str(error.value)
    assert "No space left" in str(error.value)
    assert result(run(config).path) == result(run(tiny_pair.config(folder, tmp_path / "whole")).path)


def test_images_that_are_held_out_too_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    tiny_pair.source(both, 200, 24)  # the first seven are those of "unseen"; as pixels alone, once renamed
    text = (both / "captions.jsonl").read_text().replace('"i200"', '"renamed"')
    (both / "captions.jsonl").write_text(text)
    config = tiny_pair.config(folder, tmp_path / "run", images=str(both / "captions.jsonl"))
    with counting() as skipped:
        run(config)
    (items,) = skipped.values()
    assert set(items) == {"renamed", *(f"i{i}" for i in range(201, 207))}


def test_recall_counts_a_photo_once_whatever_it_is_called(folder: Path, tmp_path: Path) -> None:
    """Of two equal images neither is found first: recall of a table with a row a caption would be 0."""
    once, twice = (tiny_pair.source(tmp_path / name, 400, 6) for name in ("once", "twice"))
    lines = [json.loads(line) for line in Path(twice).read_text().splitlines()]
    rows = [{**line, "references": line["references"][:1]} for line in lines]
    rows += [{**line, "image_id": f"{line['image_id']} (1)", "references": line["references"][1:]} for line in lines]
    Path(twice).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recalls = []
    for source in (once, twice):
        config = tiny_pair.config(folder, tmp_path / f"run {Path(source).parent.name}", eval_images=str(source))
        with counting() as skipped:
            recalls.append(read_config(run(config).path).recall)
    assert recalls[0] is not None and recalls[1] is not None
    assert recalls[1].model_dump(exclude={"source"}) == recalls[0].model_dump(exclude={"source"})
    assert {reason: len(items) for reason, items in skipped.items()} == {"copies of other images to state recall on": 6}


def test_holds_images_out_where_none_are_named(folder: Path, tmp_path: Path) -> None:
    source = tiny_pair.source(tmp_path / "many", 300, 45)
    config = tiny_pair.config(folder, tmp_path / "run", images=source, choice_images=None, eval_images=None)
    found = read_config(run(config).path).recall
    assert found is not None
    assert found.images == 2
    parts = train.three_parts(config)
    assert [len(part) for part in parts] == [41, 2, 2]
    assert len({image_id for part in parts for image_id in part.ids}) == 45


def refusal(folder: Path, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(SourceError) as error:
        run(tiny_pair.config(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing was begun
    return str(error.value)


def test_refuses_what_cannot_be_trained_on(folder: Path, tmp_path: Path) -> None:
    bare = tiny_pair.source(tmp_path / "bare", captions=False)
    assert "no caption" in refusal(folder, tmp_path, images=bare)
    one = tiny_pair.source(tmp_path / "one", 0, 1)
    assert "1 image to learn from" in refusal(folder, tmp_path, images=one)
    assert "1 image to state recall on" in refusal(folder, tmp_path, eval_images=one)
    assert "too few can be held out" in refusal(folder, tmp_path, eval_images=None, choice_images=None)


def test_fewer_images_than_a_batch_are_all_in_each_step(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = tiny_pair.source(tmp_path / "few", 0, 7)
    made = [run(tiny_pair.config(folder, tmp_path / f"{size}", images=few, batch_size=size)) for size in (7, 256)]
    assert "7 images to learn from: each step takes them all, not 256" in caplog.text
    assert result(made[0].path)["model.safetensors"] == result(made[1].path)["model.safetensors"]


def test_refuses_to_stand_on_another_pair(folder: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="stands on plain encoders"):
        run(tiny_pair.config(folder, tmp_path / "run", image_encoder=str(trained)))


def test_refuses_to_choose_on_what_recall_is_stated_on(folder: Path, tmp_path: Path) -> None:
    unseen = str(folder / "unseen" / "captions.jsonl")
    with pytest.raises(SourceError, match="choose the step on others"):
        run(tiny_pair.config(folder, tmp_path / "run", choice_images=unseen))


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"learning_rate": -1.0}, {"dropout": 1.0}, {"hard_negatives": -1}, {"images": " "}]
)
def test_refuses_settings(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        tiny_pair.config(folder, tmp_path / "run", **changes)


def test_the_command_says_how_well_it_retrieves(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_pair.config(folder, trained)
    flags = [f"--{n.replace('_', '-')}={getattr(config, n)}" for n in
             ("images", "choice_images", "eval_images", "image_encoder", "text_encoder", "output", "batch_size",
              "max_steps", "eval_steps", "warmup_steps", "width", "device")]  # fmt: skip
    assert main(["encoder", "train", *flags]) == 0
    said = capsys.readouterr()
    assert "R@1 on 7 unseen images with 14 captions" in said.err
    assert said.out == f"encoder: {trained}\n"
    assert (
        main(["encoder", "train", "--images", "x", "--image-encoder", "y", "--output", "z", "--batch-size", "1"]) == 2
    )
