"""The arena in a real browser: what a rater sees, does and cannot do, and what is kept."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs captune[annotate]")

from captune.annotation import arena as arenas
from captune.annotation import web
from captune.annotation.battles import Battles
from captune.annotation.results import fought, results, tables
from captune.cli.main import main
from captune.errors import AnnotationError, CaptionFileError
from captune.evaluation.bradley_terry import fit
from tests.annotation.raters import enter, planted_key, press
from tests.browser import WIDTHS, chromium, opened, serving

N = 40
PLANTED = {"best": 1.2, "middle": 0.0, "worst": -1.2}
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "كلب يركض في الحديقة ‮ then English",
    "word " * 1000,
    "x" * 5000,
    "a dog 🐕‍🦺👩‍👩‍👧‍👦 \U0001f3f3️‍\U0001f308",
    "",
    "two\nlines &amp; {{ 7 * 7 }}",
    "\u2028 a line end of Unicode's, and a\x00nul",
)


def photos(folder: Path, n: int = N) -> Path:
    (folder / "photos").mkdir()
    for number in range(n):
        colour = tuple(np.random.default_rng(number).integers(0, 255, 3).tolist())
        Image.new("RGB", (160, 120), colour).save(folder / "photos" / f"{number}.png")
    return folder / "photos"


def write(file: Path, captions: dict[str, str]) -> Path:
    rows = [json.dumps({"image_id": image_id, "caption": text}) for image_id, text in captions.items()]
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos(tmp_path)
    for name in PLANTED:
        write(tmp_path / f"{name}.jsonl", {f"{n}.png": f"{name} says that {n} is here" for n in range(N)})
    return tmp_path


FILES = [f"{name}.jsonl" for name in PLANTED]
ARGUMENTS = ["arena", *FILES, "--images", "photos", "--seed", "0"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


# -------------------------------------------------------------------- bar 5


def test_scripted_votes_recover_a_planted_ranking(browser: Any, folder: Path) -> None:
    """Three raters, 60 votes; benchmarks/behaviour/arena_votes.py does the same with 1,000."""
    with serving(*ARGUMENTS, "--battles", "20", folder=folder) as served:
        pages = [opened(browser, served.link) for _ in range(3)]
        chance = random.Random(1)
        for number, page in enumerate(pages):
            enter(page, f"rater {number}")
        for _ in range(20):
            for page in pages:
                press(page, planted_key(page, PLANTED, 0.4, chance))
        assert [page.is_visible("text=All done, thank you.") for page in pages] == [True] * 3
        assert [page.said for page in pages] == [[]] * 3
        pages[0].goto(served.link + "results")
        shown = pages[0].locator("main table").first.locator("tbody th").all_inner_texts()
        told = httpx.get(served.link + "results.json").json()
        votes = httpx.get(served.link + "votes.csv").text
        assert served.end() == 0
    assert shown == list(PLANTED)
    assert (told["votes"], [row["votes"] for row in told["raters"]]) == (60, [20] * 3)
    assert told["agreement"]["battles"] >= 6 and len(votes.splitlines()) == 61
    found = Battles(folder / "arena.sqlite").judgements()
    names = sorted(PLANTED)
    own = fit(fought(found, names), 3)
    assert own is not None
    strengths = {row["system"]: row["strength"] for row in told["systems"]}
    assert [strengths[name] for name in names] == pytest.approx(own.strengths.tolist(), abs=1e-12)
    assert 0.2 < np.mean([row.verdict == "left" for row in found if row.winner == "a"]) < 0.8  # sides are random


def test_kill_9_of_the_server_loses_no_vote(browser: Any, folder: Path) -> None:
    with serving(*ARGUMENTS, folder=folder) as served:
        port = re.search(r":(\d+)/", served.link).group(1)  # type: ignore[union-attr]
        page = opened(browser, served.link)
        enter(page, "Ada")
        for _ in range(5):
            press(page, "ArrowLeft")
        served.kill()
        page.keyboard.press("ArrowRight")  # is kept in the page until there is a server
        page.wait_for_function("() => document.getElementById('message').textContent.includes('sent again')")
        page.keyboard.press("ArrowRight")  # does nothing meanwhile
    with serving(*ARGUMENTS, "--port", port, folder=folder) as served:
        page.wait_for_function("() => document.getElementById('count').textContent.startsWith('6 of')")
        assert page.inner_text("#message") == ""
        press(page, "t")
        assert served.end() == 0
    assert [row.verdict for row in Battles(folder / "arena.sqlite").judgements()] == ["left"] * 5 + ["right", "tie"]


# -------------------------------------------------------------------- what a rater does


def test_two_tabs_double_clicks_undo_and_reload(browser: Any, folder: Path) -> None:
    with serving(*ARGUMENTS, folder=folder) as served:
        one = opened(browser, served.link)
        enter(one, "Ada")
        other = one.context.new_page()
        other.goto(one.url)
        other.wait_for_selector("#battle:not([hidden])")
        battle = "document.body.dataset.battle"
        first = one.evaluate(battle)
        assert other.evaluate(battle) == first
        press(one, "ArrowLeft")
        press(other, "ArrowRight")  # the same battle: told, and nothing changes
        assert "in another tab" in other.inner_text("#message")
        assert other.evaluate(battle) == one.evaluate(battle)
        one.dblclick("[data-verdict=tie]")
        one.wait_for_function(
            "() => !document.body.ariaBusy && !document.getElementById('count').textContent.startsWith('1 of')"
        )
        done = int(one.inner_text("#count").split()[0])
        shown = one.evaluate(battle)
        press(one, "u")
        press(one, "x")  # what was undone is judged again, then comes what was open
        assert one.evaluate(battle) == shown and one.inner_text("#count").startswith(f"{done} of")
        one.reload()
        one.wait_for_selector("#battle:not([hidden])")
        assert one.evaluate(battle) == shown
        one.go_back()
        one.go_forward()
        one.wait_for_selector("#battle:not([hidden])")
        assert one.evaluate(battle) == shown
    found = Battles(folder / "arena.sqlite")
    verdicts = [row.verdict for row in found.judgements()]
    assert len(verdicts) == done and verdicts[0] == "left" and verdicts[-1] == "bad" and found.undone() == 1


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of systems whose captions do not name them; its raters differ."""
    folder = tmp_path_factory.mktemp("shared")
    photos(folder)
    for name in PLANTED:
        write(folder / f"{name}.jsonl", {f"{n}.png": f"text {len(name)} {n}" for n in range(N)})
    with serving(*ARGUMENTS, folder=folder) as served:
        yield served.link


def test_the_page_says_nothing_of_the_systems(browser: Any, link: str) -> None:
    page = opened(browser, link)
    bodies: list[str] = []
    named = re.compile("/(judge|state|vote)")
    page.on("response", lambda answer: bodies.append(answer.text()) if named.search(answer.url) else None)
    enter(page, "Bob")
    for key in ("ArrowLeft", "s", "t"):
        press(page, key)
    assert bodies and not any(name in body for body in bodies for name in PLANTED)


def test_hostile_captions_at_every_width(browser: Any, tmp_path: Path) -> None:
    photos(tmp_path, len(HOSTILE))
    for name, turn in (("a", 0), ("b", 1)):
        texts = HOSTILE[turn:] + HOSTILE[:turn]
        write(tmp_path / f"{name}.jsonl", {f"{n}.png": text for n, text in enumerate(texts)})
    (tmp_path / "told.md").write_text("# Read <script>alert(1)</script>\n[x](javascript:alert(1)) ![y](http://z/)")
    with serving(
        "arena", "a.jsonl", "b.jsonl", "--images", "photos", "--guidelines", "told.md", folder=tmp_path
    ) as served:
        page = opened(browser, served.link)
        assert page.locator("main script, main img, main a[href^=javascript]").count() == 0
        fits(page)
        enter(page, "<b>Ada</b>")
        seen = set()
        for n in range(len(HOSTILE)):
            seen |= {page.evaluate(f"document.getElementById('{side}').textContent") for side in ("left", "right")}
            fits(page)
            if n < len(HOSTILE) - 1:
                press(page, "s")
        assert seen == {text if text.strip() else "(an empty caption)" for text in HOSTILE}
        assert page.title() == "Which caption is better?"
        press(page, "t")
        page.goto(served.link + "results")
        fits(page)
        assert "<b>Ada</b>" in page.inner_text("main")
        assert page.said == []


def fits(page: Any) -> None:
    """At every width nothing is wider than the window, and what is to be clicked is inside."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_keyboard_alone_with_a_visible_focus(browser: Any, link: str, scheme: str) -> None:
    page = opened(browser, link, color_scheme=scheme, viewport={"width": 390, "height": 844})
    focused: list[str] = []
    while page.evaluate("document.activeElement.id") != "rater":
        page.keyboard.press("Tab")
    page.keyboard.type(f"Ada {scheme}")
    page.keyboard.press("Enter")
    page.wait_for_selector("#battle:not([hidden])")
    press(page, "ArrowLeft")  # undo can be used from here on
    page.evaluate("document.activeElement.blur()")
    for _ in range(12):
        page.keyboard.press("Tab")
        name, style = page.evaluate(
            """() => { const own = document.activeElement;
            return [own.textContent.trim(), getComputedStyle(own).outlineStyle] }"""
        )
        if page.evaluate("document.activeElement === document.body"):
            break
        focused.append(name)
        assert style == "solid", name
    text = " ".join(focused)
    assert all(word in text for word in ("Guidelines", "A is better", "Tie", "B is better", "Both bad", "Skip", "Undo"))
    page.focus("[data-verdict=right]")
    before = page.evaluate("document.body.dataset.battle")
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.body.dataset.battle !== before", arg=before)
    assert contrast(page, "#message, .eyebrow, kbd, .option h2, .verdicts .other button") >= 4.5


def contrast(page: Any, selector: str) -> float:
    """The smallest contrast of text and the page behind it (WCAG 2)."""
    colours = page.eval_on_selector_all(
        selector,
        """parts => parts.map(part => {
            const clear = "rgba(0, 0, 0, 0)", of = each => getComputedStyle(each).backgroundColor;
            let behind = part;
            while (of(behind) === clear) behind = behind.parentElement;
            return [getComputedStyle(part).color, of(behind)].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number));
        })""",
    )

    def luminance(colour: list[float]) -> float:
        channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    pairs = [sorted(map(luminance, both)) for both in colours]
    return min((high + 0.05) / (low + 0.05) for low, high in pairs)


# -------------------------------------------------------------------- without a browser


@pytest.fixture
def arena(folder: Path) -> arenas.Arena:
    images = web.ImagesById(str(folder / "photos"))
    systems, said = arenas.read_systems([folder / file for file in FILES], images)
    assert said == []
    return arenas.Arena(Battles(folder / "arena.sqlite"), systems, images, seed=0)


def test_results_of_nothing_and_of_one_vote(arena: arenas.Arena) -> None:
    found = results(arena.file)
    assert (found["votes"], found["systems"]) == (0, [])
    battle = arena.next("Ada")
    assert battle is not None and arena.next("Ada") == battle
    arena.file.vote("vote-0001", battle.id, "Ada", "left")
    found = results(arena.file)
    assert found["prior"] and "normal prior" in found["notes"][0]
    assert found["systems"][0]["system"] == battle.left_system and found["systems"][0]["interval"] is None
    assert len(tables(found)) == 3
    json.dumps(found, allow_nan=False)


def test_votes_and_open_battles_of_other_images_do_not_count(folder: Path) -> None:
    """One file of votes, first for some of the images, then for the others."""
    file, images = Battles(folder / "arena.sqlite"), web.ImagesById(str(folder / "photos"))
    first, second = (
        arenas.Arena(file, {name: {f"{n}.png": f"{name} says {n}" for n in own} for name in PLANTED}, images)
        for own in (range(3), range(3, 6))
    )
    for n in range(3):
        battle = first.next("Ada")
        assert battle is not None and file.vote(f"vote-000{n}", battle.id, "Ada", "left")
    left = first.next("Bob")  # open when the arena ends
    assert first.state("Ada") == {"battle": None, "done": 3, "of": 3, "last": "vote-0002"}
    state = second.state("Ada")
    assert state["battle"] is not None and (state["done"], state["of"], state["last"]) == (0, 3, None)
    battle = second.next("Bob")
    assert left is not None and battle is not None and battle.image_id not in first.systems["best"]
    assert file.vote("vote-0003", battle.id, "Bob", "tie") and second.done("Bob") == 1
    assert first.next("Bob") == left
    captions = {f"{n}.png": f"third says {n}" for n in range(3)}
    others = arenas.Arena(file, {"third": captions, "best": first.systems["best"]}, images)
    battle = others.next("Ada")  # the same images, another system
    assert battle is not None and "third" in (battle.left_system, battle.right_system)
    assert (others.done("Ada"), others.most) == (0, 3)


def test_agreement_is_of_what_two_raters_said_of_the_same_captions(arena: arenas.Arena) -> None:
    said = [("left", "left"), ("tie", "bad"), ("right", "left"), ("left", "skip")]
    for n, verdicts in enumerate(said):
        for rater, verdict, turned in zip("AB", verdicts, (False, True), strict=True):
            sides = [("best", "x"), ("worst", "y")]
            battle = arena.file.issue(rater, f"{n}.png", *(sides[::-1] if turned and verdict != "tie" else sides))
            arena.file.vote(f"vote-{n}{rater}00", battle.id, rater, verdict)
    found = results(arena.file)["agreement"]  # best/worst, tie/tie, worst/worst
    assert found["pairs"] == [
        {
            "a": "A",
            "b": "B",
            "battles": 3,
            "agreement": pytest.approx(2 / 3),
            "kappa": pytest.approx((2 / 3 - 1 / 3) / (2 / 3)),
        }
    ]


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "model: gpt", "a\u202eb", None, 3])
def test_odd_names_are_refused(arena: arenas.Arena, name: Any) -> None:
    with pytest.raises(AnnotationError):
        arena.vote({"rater": name, "id": "vote-0001", "battle": "x", "verdict": "left"})
    assert arena.file.raters() == {}


def test_an_image_that_does_not_open_is_not_shown(folder: Path) -> None:
    for n in range(N - 1):
        (folder / "photos" / f"{n}.png").write_bytes(b"broken")
    images = web.ImagesById(str(folder / "photos"))
    systems, _ = arenas.read_systems([folder / file for file in FILES], images)
    arena = arenas.Arena(Battles(folder / "arena.sqlite"), systems, images)
    battle = arena.next("Ada")
    assert battle is not None and battle.image_id == f"{N - 1}.png"
    arena.file.vote("vote-0001", battle.id, "Ada", "skip")
    assert arena.next("Ada") is None and len(arena.unusable) == N - 1


def test_what_cannot_be_compared_is_refused(folder: Path) -> None:
    images = web.ImagesById(str(folder / "photos"))
    (folder / "more").mkdir()
    twin = write(folder / "more" / "best.jsonl", {"1.png": "x"})
    systems, _ = arenas.read_systems([folder / "best.jsonl", twin], images)
    assert list(systems) == [f"{folder.name}/best", "more/best"]
    with pytest.raises(CaptionFileError, match="would name both by it"):
        arenas.read_systems([twin, twin], images)
    with pytest.raises(CaptionFileError, match=r"none of its images, such as 'other'"):
        arenas.read_systems([write(folder / "x.jsonl", {"other": "x"})], images)
    with pytest.raises(CaptionFileError, match="half a character"):
        arenas.read_systems([write(folder / "y.jsonl", {"1.png": "\ud800"})], images)
    some, said = arenas.read_systems([write(folder / "z.jsonl", {"1.png": "x", "gone": "y"})], images)
    assert some == {"z": {"1.png": "x"}} and "left out 1 caption of" in said[0]
    alike = {name: {"1.png": "same"} for name in ("a", "b")}
    with pytest.raises(AnnotationError, match="nothing to judge"):
        arenas.Arena(Battles(folder / "arena.sqlite"), alike, images)


def test_a_model_that_cannot_tell_votes_for_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "storybook:test?n=3&seed=3"
    from captune.data import load_references
    from captune.scorers.questions.preference import Preference

    references = load_references(source)
    for name in ("one", "two"):
        write(tmp_path / f"{name}.jsonl", {image_id: f"{texts[0]} {name}" for image_id, texts in references.items()})
    monkeypatch.setattr(Preference, "rows", lambda *a, **k: np.array([[0.5, 0.0, 1.0, 1.0, 0.8]]))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    assert main(["arena", *files, "--images", source, "--battles", "3", "--rater-model", "storybook"]) == 0
    assert [vote.winner for vote in Battles(tmp_path / "arena.sqlite").judgements()] == ["tie"] * 3


def test_a_model_rates_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "storybook:test?n=8&seed=3"
    from captune.data import load_references

    references = load_references(source)
    write(tmp_path / "right.jsonl", {image_id: texts[0] for image_id, texts in references.items()})
    write(tmp_path / "wrong.jsonl", dict.fromkeys(references, "a blue whale under a pink car at night"))
    arguments = ["arena", *(str(tmp_path / f"{n}.jsonl") for n in ("right", "wrong")), "--images", source]
    for battles, cast in (("5", "5 votes"), ("8", "3 votes"), ("8", "0 votes")):
        assert main([*arguments, "--battles", battles, "--rater-model", "storybook"]) == 0
        assert cast in capsys.readouterr().err
    assert main(["arena", "--results", str(tmp_path / "arena.sqlite"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rater"] for row in found["raters"]] == ["model: storybook"]
    assert found["systems"][0] | {"system": "right", "wins": 8, "losses": 0} == found["systems"][0]
    export = tmp_path / "votes.csv"
    for form, text in (("table", "at equal length"), ("csv", "system,strength,interval_low")):
        assert (
            main(["arena", "--results", str(tmp_path / "arena.sqlite"), "--format", form, "--export", str(export)]) == 0
        )
        assert text in capsys.readouterr().out
    assert len(export.read_text().splitlines()) == 9
    assert main(["correlate", str(export.with_name("arena.sqlite")), "--scorers", "length", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "arena"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["best.jsonl"], "two caption files"),
        (["best.jsonl", "worst.jsonl"], "--images SOURCE"),
        (["a.jsonl", "b.jsonl", "--images", "photos"], "cannot be read"),
        (["best.jsonl", "worst.jsonl", "--images", "photos", "--output", "votes.txt"], "written as .sqlite"),
        (["best.jsonl", "worst.jsonl", "--images", "photos", "--guidelines", "no.md"], "no.md is no file"),
        (["--results", "none.sqlite"], "is not there"),
        (["best.jsonl", "--results", "x.sqlite"], "leave out"),
        (["a.jsonl", "b.jsonl", "--images", "photos", "--overlap", "2"], "--overlap"),
        (["best.jsonl", "worst.jsonl", "--images", "photos", "--export", "x.csv"], "--results"),
    ],
)
def test_refusals(
    folder: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["arena", *arguments]) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_without_starlette_the_package_is_named(folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None\n"
        "from captune.cli.main import main\n"
        "code = main(['arena', 'best.jsonl', 'worst.jsonl', '--images', 'photos'])\n"
        "assert code == 1 and 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "pip install 'captune[annotate]'" in run.stderr, run.stderr
