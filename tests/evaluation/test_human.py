"""Scorers against small synthetic judgements: the protocol, failures, images, published rows, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy.stats import kendalltau

from captune import scorers
from captune.cli.main import main
from captune.data.judgements import read_judgements
from captune.errors import EvaluationError, ScorerError
from captune.evaluation.human import correlate, published_figures, ranking, table
from captune.scorers import Scorer, load_scorer

WORDS = [
    "a",
    "red",
    "dog",
    "runs",
    "on",
    "the",
    "green",
    "grass",
    "near",
    "two",
    "small",
    "children",
    "who",
    "watch",
    "it",
    "play",
]


class Fake(Scorer):
    """Scores by a caption's letters; fails, or has no score for some, as its argument says."""

    name = "fake"
    higher_is_better = {"fake": True}  # noqa: RUF012
    cached = True

    def __init__(self, argument: str | None = None) -> None:
        self.argument = argument
        if argument == "image":
            self.required_columns = ("image",)

    def check(self) -> None:
        if self.argument == "absent":
            raise ScorerError("its jar is missing: pip install jar")

    def rows(self, captions, **columns):
        if self.argument == "breaks":
            raise ScorerError("the server went away")
        if self.argument == "bug":
            raise KeyError("nothing there")
        if self.argument == "equal":
            return np.zeros((len(captions), 1))
        if "image" in columns:
            return np.array([[float(np.asarray(image).mean())] for image in columns["image"]])
        known = [float(len(text)) for text in captions]
        if self.argument == "holes":
            known = [math.nan if value % 2 else value for value in known]
        return np.array(known).reshape(-1, 1)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("bleu", "rouge", "cider", "length", "repetition", "clip")
    targets = {name: scorers.SCORERS.targets[name] for name in kept}
    monkeypatch.setattr(scorers.SCORERS, "targets", {**targets, "fake": Fake})


def data(folder: Path, images: int = 30) -> tuple[Path, Path]:
    """Flickr8k-Expert in small: captions of other images, graded by how many words of the references they share."""
    rng = np.random.default_rng(0)
    captions = {f"{i}.jpg": [" ".join(rng.choice(WORDS, 6, replace=False)) for _ in range(5)] for i in range(images)}
    lines = []
    for i in range(images):
        for other in ((i + 1) % images, (i + 7) % images, (i + 11) % images):
            k = int(rng.integers(0, 5))
            shared = len(set(captions[f"{other}.jpg"][k].split()) & set(captions[f"{i}.jpg"][0].split()))
            grades = np.clip(shared - 1 + rng.integers(0, 2, 3), 1, 4)
            lines.append("\t".join([f"{i}.jpg", f"{other}.jpg#{k}", *map(str, grades)]))
        lines.append(f"{i}.jpg\t{i}.jpg#0\t4\t4\t4")
    judgements, tokens = folder / "ExpertAnnotations.txt", folder / "Flickr8k.token.txt"
    judgements.write_text("\n".join(lines) + "\n")
    tokens.write_text("".join(f"{n}#{k}\t{text}\n" for n, own in captions.items() for k, text in enumerate(own)))
    return judgements, tokens


def test_the_protocol_is_that_of_the_published_script(tmp_path: Path) -> None:
    """As CLIPScore's script: a row for each grade, all of them in one call of the metric, tau-c of the two lists."""
    judgements, tokens = data(tmp_path)
    result = correlate(judgements, captions=[tokens], scorers=["bleu", "rouge", "cider"], bootstrap=0)
    by_key = dict(line.split("\t") for line in tokens.read_text().splitlines())
    captions: dict[str, list[str]] = {}
    for key, text in by_key.items():
        captions.setdefault(key.split("#")[0], []).append(text)
    texts, references, grades = [], [], []
    for line in judgements.read_text().splitlines():
        image, key, *own = line.split("\t")
        if by_key[key] not in captions[image]:
            for grade in own:
                texts.append(by_key[key])
                references.append(captions[image])
                grades.append(float(grade))
    assert result["used"] == len(texts) and result["left_out"] == {
        "captions that are one of their image's references": 90
    }
    for name in ("bleu", "rouge", "cider"):
        scorer = load_scorer(name)
        values = scorer.per_caption(scorer.measure(texts, {"references": references}))
        wanted = kendalltau(values, grades, variant="c").statistic
        assert result["scores"][name]["values"]["tau_c"] == pytest.approx(wanted, abs=1e-9)
        assert result["scores"][name]["n"] == len(texts)
    assert f"({len(texts)} images)" in result["scores"]["cider"]["signature"]  # each judgement is a document
    assert result["primary"] == "tau_c" and next(iter(result["scores"])) == max(
        result["scores"], key=lambda key: result["scores"][key]["values"]["tau_c"]
    )


def test_the_same_command_gives_the_same_result(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)

    def run(**others: object) -> dict[str, object]:
        result = correlate(judgements, captions=[tokens], scorers=["rouge", "length", "fake"], bootstrap=60, **others)
        for own in result["scores"].values():
            own.pop("seconds")
        return result

    assert run() == run() == run(cache=tmp_path / "cache") == run(cache=tmp_path / "cache")
    assert run(seed=1)["scores"]["rouge"]["interval"] != run()["scores"]["rouge"]["interval"]


@pytest.mark.parametrize("how", ["absent", "breaks", "bug"])
def test_a_scorer_that_fails_costs_no_other(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    judgements, tokens = data(tmp_path)
    argv = ["correlate", str(judgements), "--captions", str(tokens), "--scorers", f"fake:{how},rouge", "--no-cache",
            "--bootstrap", "20", "--json"]  # fmt: skip
    assert main(argv) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert list(result["scores"]) == ["rouge"] and list(result["failed"]) == [f"fake:{how}"]
    assert f"fake:{how} failed: " in printed.err
    with pytest.raises(EvaluationError, match="no scorer could work"):
        correlate(judgements, captions=[tokens], scorers=[f"fake:{how}"])


def test_scores_that_are_missing_are_counted_and_compared_on_what_both_have(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)
    result = correlate(judgements, captions=[tokens], scorers=["fake:holes", "rouge"], bootstrap=50)
    n = result["scores"]["fake:holes"]["n"]
    assert 0 < n < result["scores"]["rouge"]["n"] == result["used"] == 270
    assert f"fake:holes has a score for {n} of the 270 judgements; it is compared on those" in result["warnings"]
    found = read_judgements(judgements, captions=[tokens])  # the test of the two is on the same judgements
    even = [(c, grade) for c, grade in found.ratings if len(found.candidates[c].caption) % 2 == 0]
    texts, refs = ([getattr(found.candidates[c], name) for c, _ in even] for name in ("caption", "references"))
    rouge = load_scorer("rouge")
    scores = (rouge.per_caption(rouge.measure(texts, {"references": [list(r) for r in refs]})), [len(t) for t in texts])
    taus = {"rouge": 0.0, "fake:holes": 0.0}
    for name, own in zip(taus, scores, strict=True):
        taus[name] = kendalltau(own, [grade for _, grade in even], variant="c").statistic
    (test,) = result["tests"]
    assert test["difference"] == pytest.approx(taus[test["a"]] - taus[test["b"]])


def test_equal_scores_have_no_figure(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)
    result = correlate(judgements, captions=[tokens], scorers=["fake:equal", "rouge"], bootstrap=50)
    own = result["scores"]["fake:equal"]
    assert own["values"]["tau_c"] is None and own["values"]["pairwise_accuracy"] == 0.5 and not result["tests"]
    assert list(result["scores"]) == ["rouge", "fake:equal"]
    assert any("fake:equal has no tau-b" in said for said in result["warnings"])
    json.dumps(result, allow_nan=False)
    assert "-" in table(result)


def test_lower_is_better_is_turned_round(tmp_path: Path) -> None:
    rows = [{"image_id": i, "caption": f"{'very ' * i}good dog", "rating": -i} for i in range(1, 9)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows))
    result = correlate(file, scorers=["repetition", "length"], bootstrap=0)
    assert result["scores"]["repetition"]["negated"] and result["scores"]["repetition"]["values"]["tau_b"] > 0.8
    assert result["scores"]["length"]["values"]["tau_b"] == pytest.approx(-1.0)
    assert "repetition is negated: a lower figure is better" in result["warnings"]


def test_every_figure_has_a_row(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)
    result = correlate(judgements, captions=[tokens], scorers=["bleu"], every_figure=True, bootstrap=0)
    assert set(result["scores"]) == {"bleu", "bleu bleu_1", "bleu bleu_2", "bleu bleu_3"}
    assert result["scores"]["bleu bleu_1"]["label"] == "BLEU-1"
    papers = {row["key"]: row["published"] for row in ranking(result)}
    assert papers["bleu"] == 30.8 and papers["bleu bleu_1"] == 32.3 and papers["RefCLIP-S"] == 53.0


def test_battles(tmp_path: Path) -> None:
    rows = [
        {
            "image_id": i % 6,
            "caption_a": "dog " * (i + 1),
            "caption_b": "cat " * (9 - i),
            "winner": "a" if i > 4 else "b" if i < 4 else "tie",
            "category": "HC" if i < 5 else "MM",
        }
        for i in range(9)
    ]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows))
    result = correlate(file, scorers=["length", "fake"], bootstrap=30)
    own = result["scores"]["length"]
    assert result["kind"] == "battles" and result["primary"] == "pairwise_accuracy"
    assert own["values"] == {"pairwise_accuracy": 1.0, "agreement": 1.0}
    assert own["categories"] == {"HC": {"value": 1.0, "n": 4}, "MM": {"value": 1.0, "n": 4}}
    assert "right pairs, HC: length 100.0" in table(result)
    with pytest.raises(EvaluationError, match="gives the figures pairwise_accuracy, agreement, not 'tau_c'"):
        correlate(file, scorers=["length"], primary="tau_c")


def pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        tiny.picture(i).save(folder / name)
    return folder


def test_scorers_that_look_at_images(tmp_path: Path) -> None:
    rows = [{"image_id": f"{i}.png", "caption": f"dog {i}", "rating": i} for i in range(6)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows))
    photos = pictures(tmp_path / "photos", [f"{i}.png" for i in range(5)])
    (photos / "4.png").write_bytes(b"no image")
    result = correlate(file, scorers=["fake:image", "length"], images=str(photos), bootstrap=10)
    assert result["bad_images"].keys() == {"4.png", "5.png"}
    assert result["scores"]["fake:image"]["n"] == 4 and result["scores"]["length"]["n"] == 6
    with pytest.raises(EvaluationError, match="needs the image of each caption: add --images"):
        correlate(file, scorers=["fake:image"])
    with pytest.raises(EvaluationError, match=r"none of the judged images, such as '0\.png', is in"):
        correlate(file, scorers=["fake:image"], images=str(pictures(tmp_path / "others", ["z.png"])))


def test_a_name_that_several_images_have_is_not_guessed(tmp_path: Path) -> None:
    rows = [{"image_id": f"{i}.png", "caption": f"dog {i}", "rating": i} for i in range(4)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows))
    photos = tmp_path / "photos"
    photos.mkdir()
    pictures(photos / "a", ["0.png", "1.png", "2.png", "3.png"])
    pictures(photos / "b", ["3.png"])
    result = correlate(file, scorers=["fake:image"], images=str(photos), bootstrap=10)
    assert result["bad_images"] == {"3.png": "several images have this name"}
    assert result["scores"]["fake:image"]["n"] == 3


def test_judgements_without_references(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"image_id": i, "caption": f"dog {'very ' * i}", "rating": i} for i in range(4)]))
    with pytest.raises(EvaluationError, match="names no references, and 'rouge' needs them"):
        correlate(file, scorers=["rouge"])
    assert correlate(file, scorers=["length"], bootstrap=0)["used"] == 4
    result = correlate(file, scorers=["all"], bootstrap=0)
    assert "needs references" in result["skipped"]["rouge"] and "length" in result["scores"]


@pytest.mark.parametrize("suffix", ["yaml", "json", "csv"])
def test_a_file_of_published_figures(tmp_path: Path, suffix: str) -> None:
    rows = [{"label": "CIDEr", "scorer": "cider", "figure": "tau_c", "value": 43.9, "source": "a paper"},
            {"label": "Other", "scorer": "", "figure": "tau_b", "value": 1, "source": "another"}]  # fmt: skip
    file = tmp_path / f"published.{suffix}"
    if suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines))
    else:
        file.write_text(json.dumps(rows))  # YAML reads JSON
    read = published_figures(file, "plain")
    assert [row["value"] for row in read] == [43.9, 1.0] and read[1]["scorer"] == ""
    judgements, tokens = data(tmp_path)
    result = correlate(judgements, captions=[tokens], scorers=["cider", "rouge"], published=file, bootstrap=0)
    assert [row["label"] for row in result["published"]] == ["CIDEr"]  # the primary figure's
    assert "43.9" in table(result) and "published: a paper" in table(result)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "x", "figure": "tau", "value": 1, "source": "s"}, "row 1: the figure is 'tau'"),
        ({"label": "x", "figure": "tau_c", "value": "high", "source": "s"}, "'value' is 'high'"),
        ({"label": "x", "figure": "tau_c", "value": 439, "source": "s"}, "from -100 to 100"),
        ({"label": "x", "figure": "tau_c", "value": 1}, "a source"),
        ("x", "expected label"),
    ],
)
def test_published_figures_are_read_strictly(tmp_path: Path, row: object, said: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(EvaluationError, match=said):
        published_figures(file, "plain")


@pytest.mark.parametrize("format", ["flickr8k-expert", "flickr8k-crowdflower", "caparena"])
def test_the_published_figures_that_come_with_captune(format: str) -> None:
    rows = published_figures("auto", format)
    assert len(rows) > 5 and all(row["source"] and abs(row["value"]) > 1 for row in rows)
    assert published_figures("auto", "plain") == published_figures(None, format) == []


def test_the_command_prints_a_table_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judgements, tokens = data(tmp_path)
    with judgements.open("ab") as file:
        file.write(b"\xff.jpg\t1.jpg#0\t1\t1\t1\n")
    page = tmp_path / "out" / "people.html"
    argv = ["correlate", str(judgements), "--captions", str(tokens), "--scorers", "rouge,cider,length",
            "--bootstrap", "50", "--output", str(page), "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "line 121: a byte that is not UTF-8 text (0xff)" in printed.err and str(page) in printed.err
    assert "270 of 363 judgements" in printed.out and "(RefCLIP-S)" in printed.out
    assert "rouge: rouge-l|" in printed.out
    assert "Scorers against people: Flickr8k-Expert" in page.read_text()
    assert main(["correlate", str(judgements), "--captions", str(tokens), "--scorers", ","]) == 2
    assert main(["correlate", str(tmp_path / "none.txt")]) != 0


def test_what_was_read_can_be_given_in_python(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)
    found = read_judgements(judgements, captions=[tokens])
    assert correlate(found, scorers=["rouge"], bootstrap=0)["used"] == found.used
