"""The shape that all scorers share: specs, needs, rewards."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from captune import scorers
from captune.errors import MissingColumn, ScorerError, UnknownScorer
from captune.evaluation import evaluate
from captune.scorers import Scorer, columns_for, completion_text, direction, load_scorer

CHEAP = ("bleu", "rouge", "cider", "health", "length")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownScorer, match="did you mean 'cider'"):
        load_scorer("cidr")
    with pytest.raises(UnknownScorer, match="known: bleu, rouge"):
        load_scorer("zzz:folder")


def test_every_line_of_the_registry_names_a_scorer_with_a_description() -> None:
    for name in scorers.SCORERS:
        cls = scorers.scorer_class(name)
        assert issubclass(cls, Scorer) and cls.name == name
        assert inspect.getdoc(cls)
        assert next(iter(inspect.signature(cls).parameters.values())).default is None
    assert [row[0] for row in scorers.describe()] == list(scorers.SCORERS)


def test_the_cheap_scorers_do_not_load_torch() -> None:
    program = (
        "import sys; from captune.scorers import load_scorer;"
        f"[load_scorer(n) for n in {CHEAP}]; print('torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "False", ran.stderr


def test_needs_are_checked_before_any_work() -> None:
    with pytest.raises(MissingColumn, match="'cider' needs references; the data have image"):
        evaluate(["a dog"], {"image": [None]}, ["health", "cider"])
    with pytest.raises(ValueError, match="2 captions but 1 entries in column 'references'"):
        evaluate(["a", "b"], {"references": [["a"]]}, ["bleu"])
    with pytest.raises(ValueError, match="no caption"):
        evaluate([], {"references": []}, ["bleu"])
    with pytest.raises(TypeError, match="caption 1 is None"):
        evaluate(["a", None], {}, ["health"])


def test_a_scorer_gets_the_context_and_the_columns_that_it_declares() -> None:
    frequencies = load_scorer("cider").fit([["a dog"], ["a cat"]]).df
    scorer = load_scorer("cider", df=frequencies, device="cpu")
    assert scorer.df is frequencies
    assert list(columns_for(scorer, {"references": [["a"]], "image": [0], "scene": ["{}"]}, 1)) == ["references"]


def test_the_name_of_a_scorer_with_an_argument_is_its_spec() -> None:
    scorer = load_scorer(" clip:some/folder ")
    assert scorer.name == scorer.__name__ == "clip:some/folder"
    assert list(scorer.from_totals(np.ones(2), 1)) == ["clip", "ref_clip"]


@pytest.mark.parametrize("name", ["bleu", "rouge", "health", "length"])
def test_trl_calls_it(name: str) -> None:
    """With the keywords that TRL's GRPOTrainer passes, text or chat, and whatever else is in the data."""
    scorer = load_scorer(name)
    references = [["a dog runs", "the dog"], ["a cat"]]
    extra: dict[str, Any] = {
        "prompts": ["", ""],
        "completion_ids": [[1], [2]],
        "trainer_state": None,
        "log_metric": print,
    }
    plain = scorer(["a dog runs on", "a cat"], references=references, **extra)
    chat = [[{"role": "assistant", "content": [{"type": "text", "text": t}]}] for t in ("a dog runs on", "a cat")]
    assert scorer(chat, references=references, **extra) == plain
    assert len(plain) == 2 and all(type(r) is float for r in plain)
    assert scorer.__name__ == name


def test_the_text_of_a_completion() -> None:
    assert completion_text("a dog") == completion_text([{"role": "assistant", "content": "a dog"}]) == "a dog"
    parts = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "dog"}]
    assert completion_text([{"role": "assistant", "content": parts}]) == "a dog"
    assert completion_text(" a dog") == completion_text([{"role": "assistant", "content": " a dog"}]) == "a dog"


def test_odd_captions_are_scored_by_all() -> None:
    captions = ["", "😀 🐕", "一只狗在海滩上", "a dog\u2028runs\ron", "a dog runs on", "(a dog)", "a dog " * 300]
    references = [["a dog runs on", "dog"]] * len(captions)
    for name in CHEAP:
        scorer = load_scorer(name)
        rows = scorer.rows(captions, **columns_for(scorer, {"references": references}, len(captions)))
        scores = scorer.per_caption(rows)
        assert rows.shape[0] == len(captions) and np.isfinite(rows).all() and np.isfinite(scores).all()
        assert scores[3] == pytest.approx(scores[4], abs=1e-12)  # a line break is a space


@pytest.mark.parametrize("name", CHEAP)
def test_rows_do_not_depend_on_their_neighbours(name: str, golden: dict) -> None:
    items = golden["flickr8k"]["items"][:30]
    captions, references = [i["caption"] for i in items], [i["references"] for i in items]
    scorer = load_scorer(name)
    if name == "cider":
        scorer.fit(references)
    rows = scorer.rows(captions, **columns_for(scorer, {"references": references}, 30))
    parts = [
        scorer.rows(
            captions[i : i + 7], **columns_for(scorer, {"references": references[i : i + 7]}, len(captions[i : i + 7]))
        )
        for i in range(0, 30, 7)
    ]
    columns = slice(0, 4) if name == "health" else slice(None)  # its last column: words new to the corpus
    np.testing.assert_allclose(np.concatenate(parts)[:, columns], rows[:, columns], atol=1e-12)


def test_a_file_is_called_as_its_scorer_or_their_family() -> None:
    families = {"health": {"health", "length", "repetition"}, "diversity": {"diversity", "self_bleu"},
                "scene_graph_f1": {"objects", "attributes", "relations"}, "retrieval": {"grc", "qir"},
                "sentence_similarity": {"sbert"}, "classification": {"species"}, "vlm_judge": {"judge"},
                "vizer_mapper": {"vizer"}}  # fmt: skip
    files: dict[str, set[str]] = {}
    for name, target in scorers.SCORERS.builtin.items():
        files.setdefault(target.partition(":")[0].rpartition(".")[2], set()).add(name)
    assert {file: names for file, names in files.items() if names != {file}} == families


def test_no_scorer_imports_another_and_none_what_is_above() -> None:
    folder = Path(scorers.__file__).parent
    above = ("captune.training", "captune.storybook", "captune.evaluation", "captune.report", "captune.cli")
    for path in folder.glob("[a-z]*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            assert not module.startswith(above), path
            inner = module.removeprefix("captune.scorers.").split(".")
            sibling = module.startswith("captune.scorers.") and len(inner) > 1 and not inner[0].startswith("_")
            assert not sibling or inner[1] in ("base", "scene_graphs"), f"{path} imports {module}"


def test_every_setting_says_its_type_default_and_meaning() -> None:
    for about in scorers.describe():
        for setting in about.settings:
            assert setting.help and "Annotated" not in setting.type, (about.name, setting)
    assert {setting.name for setting in scorers.describe_scorer("clip").settings} == {"model", "w", "prefix"}


def test_the_primary_figure_is_the_first_with_a_direction() -> None:
    """So that a lower-is-better scorer of a stranger is watched the right way round."""

    class Marks(Scorer):
        name = "marks"
        higher_is_better: ClassVar = {"marks": False, "all": True}

    assert Marks.primary == "marks"
    assert direction(Marks()) is False
    assert direction(scorers.load_reward("self_bleu")) is False, "a sum of one part stands for that part"


@pytest.mark.parametrize("body", ["raise ZeroDivisionError('no')", "return ['a'] * len(completions)"])
def test_a_faulty_reward_is_its_owners_fault(tmp_path: Path, body: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def reward(completions, **columns):\n    {body}\n")
    with pytest.raises(ScorerError, match=r"mine\.py:reward fails: (ZeroDivision|Value)Error"):
        load_scorer(f"{file}:reward").rows(["a dog"])


def test_a_scorer_class_with_other_code_is_another_scorer(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    signatures = []
    for value in (1.0, 2.0):
        file.write_text(
            "import numpy as np\nfrom captune.scorers import Scorer\n\n\nclass Mine(Scorer):\n    primary = 'mine'\n"
            f"    def rows(self, captions, **columns):\n        return np.full((len(captions), 1), {value})\n"
        )
        signatures.append(load_scorer(f"{file}:Mine").signature)
    assert signatures[0] != signatures[1] and all("@" in signature for signature in signatures)


def test_a_list_inside_a_setting_does_not_end_a_spec() -> None:
    assert scorers.split_specs("bleu,self_retrieval:m?k=1,5&n=99,cider") == [
        "bleu",
        "self_retrieval:m?k=1,5&n=99",
        "cider",
    ]
