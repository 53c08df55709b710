from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import tiny

import captune
from captune.cli import train
from captune.cli.main import COMMANDS, command, main, verbs
from captune.errors import CaptuneError


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return tiny.idefics3(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/c.png")):
        tiny.picture(i).save(folder / name)
    return folder


def caption(model: Path, photos: Path, output: Path, *more: str) -> int:
    words = ["--model", model, "--images", photos, "--output", output, "--max-new-tokens", "4", *more]
    return main(["caption", *map(str, words)])


def captions(path: Path) -> dict[str, str]:
    return {row["image_id"]: row["caption"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


# ------------------------------------------------------------------ the parser


def test_help_needs_no_torch():
    code = "import sys; from captune.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env()).stdout
    assert out.splitlines()[-1] == "False"
    assert all(f"  {verb} " in out for verb in verbs())


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(captune.__file__).parents[1])}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert COMMANDS[verb].example in out


@pytest.mark.parametrize("verb", verbs())
def test_the_example_of_a_verb_starts_with_the_verb(verb):
    assert command(verb).example.split()[:2] == ["captune", verb]
    assert command(verb).summary == command(verb, load=False).summary


def test_wrong_usage_is_code_2_and_names_the_nearest_verb(capsys):
    assert main(["captoin"]) == 2
    assert "did you mean 'caption' or" in capsys.readouterr().err
    assert main(["caption"]) == 2
    assert "--model" in capsys.readouterr().err
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert captune.__version__ in capsys.readouterr().out


# ------------------------------------------------------------------ captioning


def test_caption_names_a_bad_image_and_captions_the_others(model, photos, tmp_path, capsys):
    (photos / "bad.jpg").write_text("<html>not found</html>")
    assert caption(model, photos, tmp_path / "caps.jsonl") == 1
    err = capsys.readouterr().err
    assert "skipped bad.jpg" in err and "HTML" in err and "1 bad image" in err
    assert set(captions(tmp_path / "caps.jsonl")) == {"a.png", "b.png", "more/c.png"}


def test_caption_goes_on_where_it_stopped(model, photos, tmp_path, capsys):
    output = tmp_path / "caps.jsonl"
    assert caption(model, photos, output) == 0
    whole = captions(output)
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text(lines[0] + lines[1][:9], encoding="utf-8")  # as after kill -9
    assert caption(model, photos, output) == 0
    assert captions(output) == whole
    assert "2 images captioned" in capsys.readouterr().err
    assert caption(model, photos, output) == 0
    assert "0 images captioned" in capsys.readouterr().err


def test_caption_does_not_mix_two_captioners_in_a_file(model, photos, tmp_path, capsys):
    output = tmp_path / "caps.jsonl"
    assert caption(model, photos, output) == 0
    assert caption(model, photos, output, "--num-beams", "2") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert caption(model, photos, output, "--num-beams", "2", "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (
            ["--model", "storybook", "--images", "storybook:tset", "--output", "o.jsonl"],
            "unknown storybook split 'tset'; did you mean 'test'",
        ),
        (
            ["--model", "nobody/nothing", "--images", "storybook:test?n=2", "--output", "o.jsonl"],
            "hf download nobody/noth",
        ),
        (["--model", "./nothing", "--images", "storybook:test?n=2", "--output", "o.jsonl"], "does not exist"),
    ],
)
def test_expected_failures_are_one_sentence_and_no_traceback(words, needle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["caption", *words]) == 1
    err = capsys.readouterr().err
    assert needle in err and "Traceback" not in err


@pytest.fixture
def broken(monkeypatch):
    """`broken(error)`: what `captune doctor` then raises."""

    def put(error: BaseException) -> None:
        def run(args: object) -> int:
            raise error

        monkeypatch.setitem(COMMANDS, "doctor", COMMANDS["doctor"]._replace(run=run))

    return put


def test_a_bug_is_called_one_and_its_traceback_goes_to_a_file(broken, capsys):
    broken(ValueError("too many values to unpack\nand more"))
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "captune: internal error (ValueError: too many values to unpack); please report it with the log " in err
    assert err.count("\n") == 1
    log = Path(err.split("the log ")[1].strip())
    assert "Traceback" in log.read_text() and "captune doctor" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (CaptuneError("no such thing"), 1, "no such thing"),
        (OSError(28, "No space left on device", "/data/x"), 1, "the disk is full: /data/x"),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "permission denied: /root/x"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, "no such file or folder: /x"),
        (MemoryError(), 1, "there is not enough memory; use a smaller --batch-size or a smaller model"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(broken, capsys, error, code, sentence):
    broken(error)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"captune: {sentence}\n"


def test_sidecars_that_stay_without_the_prefix_of_now_are_said(model, photos, capsys):
    words = ["--model", model, "--images", photos, "--sidecar", ".txt", "--max-new-tokens", "4"]
    assert main(["caption", *map(str, words)]) == 0 and "as they were" not in capsys.readouterr().err
    assert main(["caption", *map(str, words), "--prefix", "ohwx, "]) == 0
    said = capsys.readouterr()
    assert ".txt files that were there are as they were" in said.out + said.err
    assert "--overwrite" in said.out + said.err
    assert not (photos / "a.txt").read_text().startswith("ohwx")


def test_standard_input_is_no_file_and_that_is_said(capsys):
    assert main(["convert", "-", "out.csv"]) == 2
    assert "from files, not from standard input" in capsys.readouterr().err


def test_ctrl_c_that_a_library_made_into_an_error_is_still_ctrl_c(broken, capsys):
    error = CaptuneError("the package is damaged")
    error.__context__ = RuntimeError("Error calling __set_name__ on 'cached_property'")
    error.__context__.__cause__ = KeyboardInterrupt()
    broken(error)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "captune: stopped\n"


def test_a_missing_package_and_a_full_accelerator_are_sentences(broken, capsys):
    import torch

    broken(ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"))
    assert main(["doctor"]) == 1
    assert "the Python package 'bitsandbytes' is not installed" in capsys.readouterr().err
    broken(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert main(["doctor"]) == 1
    assert "the accelerator's memory is full" in capsys.readouterr().err


def test_a_reward_that_needs_java_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    words = ["--model", "storybook", "--images", "storybook:train?n=16", "--output", str(tmp_path / "run")]
    assert main(["grpo", "--reward", "meteor", "--device", "cpu", *words]) == 1
    err = capsys.readouterr().err
    assert "ava" in err and "Traceback" not in err and "internal error" not in err


def test_a_former_verb_works_and_warns(capsys):
    with pytest.warns(FutureWarning, match="`captune storybook` is now called `captune build-storybook`"):
        assert main(["storybook", "--help"]) == 0
    assert "captune build-storybook" in capsys.readouterr().out


def test_a_warning_is_one_line(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "captune", "storybook", "--help"], capture_output=True, text=True, check=True, env=_env()
    )
    assert out.stderr == "captune: warning: `captune storybook` is now called `captune build-storybook`\n"


def test_debug_raises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown storybook split"):
        main(["caption", "--debug", "--model", "storybook", "--images", "storybook:tset", "--output", "o.jsonl"])


# ------------------------------------------------------------------- a method


@dataclass
class Config:
    model: str = field(metadata={"help": "what to improve"})
    output: Path = field(metadata={"help": "where to"})
    preset: Literal["paper", "captune"] = field(default="captune", metadata={"help": "named settings"})
    rate: float = field(default=0.1, metadata={"help": "how fast"})
    blind: bool = field(default=False, metadata={"help": "no image"})


@pytest.fixture
def method(monkeypatch):
    """A method that remembers the config it was run with."""
    ran: list[Config] = []
    found = SimpleNamespace(
        summary="fit", description="Fits.", example="captune sft --model m", config=Config, ran=ran,
        presets={"paper": {"rate": 0.5}, "captune": {"blind": True}},
        run=lambda config: ran.append(config) or SimpleNamespace(path=Path(config.output)),
    )  # fmt: skip
    monkeypatch.setitem(train.METHODS.targets, "sft", found)
    return found


def test_a_method_gets_its_config_from_preset_file_and_flags(method, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("model: storybook\nrate: 0.2\n")
    assert (
        main(["sft", "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "run"), "--preset", "paper"]) == 0
    )
    assert main(["sft", "--model", "m", "--output", "o"]) == 0
    assert method.ran == [Config("storybook", tmp_path / "run", "paper", 0.2), Config("m", Path("o"), blind=True)]
    assert str(tmp_path / "run" / "adapter") in capsys.readouterr().out


def test_a_methods_help_is_made_from_its_config(method, capsys):
    assert main(["sft", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--no-blind" in out and "how fast (default: 0.1)" in out


def test_a_wrong_setting_is_code_2(method, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("modle: storybook\n")
    assert main(["sft", "--config", str(tmp_path / "c.yaml"), "--output", "o"]) == 2
    assert "did you mean 'model'?" in capsys.readouterr().err
    assert main(["sft", "--output", "o"]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["sft", "--output", "o", "--model", "m", "--rate", "quick"]) == 2
    assert "--rate: 'quick' is not a number" in capsys.readouterr().err


def test_a_package_adds_a_method_by_an_entry_point(tmp_path):
    """An installed package is a folder of modules and one of metadata; `pip install` writes just these."""
    (tmp_path / "their_method.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from types import SimpleNamespace\n"
        "@dataclass\n"
        "class Config:\n"
        "    model: str = field(metadata={'help': 'what to improve'})\n"
        "    rate: float = field(default=0.1, metadata={'help': 'how fast', 'group': 'optimiser'})\n"
        "def run(config):\n"
        "    return SimpleNamespace(path=__import__('pathlib').Path(f'{config.model}-{config.rate}'))\n"
        "METHOD = SimpleNamespace(name='theirs', summary='their method', description='It trains.', presets={},\n"
        "    example='captune theirs --model m', config=Config, run=run)\n"
    )
    (tmp_path / "their_method-1.0.dist-info").mkdir()
    (tmp_path / "their_method-1.0.dist-info" / "METADATA").write_text("Name: their-method\nVersion: 1.0\n")
    (tmp_path / "their_method-1.0.dist-info" / "entry_points.txt").write_text(
        "[captune.methods]\ntheirs = their_method:METHOD\n"
    )
    env = _env() | {"PYTHONPATH": f"{_env()['PYTHONPATH']}:{tmp_path}"}

    def captune(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "captune", *words], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "theirs           a method of another package" in captune("--help")
    assert "optimiser:\n  --rate X" in captune("theirs", "--help")
    assert captune("theirs", "--model", "m", "--rate", "0.5").startswith("adapter: m-0.5")


# ------------------------------------------------------------------ evaluation


@pytest.fixture
def evaluated(tmp_path) -> tuple[Path, Path, Path]:
    """References of three images, a good caption file and a poor one."""
    said = {"x": "a red ball on the beach", "y": "two green fish in the sea", "z": "a small house on a hill"}
    references, good, poor = tmp_path / "references.json", tmp_path / "good.jsonl", tmp_path / "poor.json"
    references.write_text(json.dumps({k: [v, v.replace("a ", "the ")] for k, v in said.items()}))
    good.write_text("".join(json.dumps({"image_id": k, "caption": v}) + "\n" for k, v in said.items()))
    poor.write_text(json.dumps([{"image_id": k, "caption": "my favourite photo"} for k in said]))
    return references, good, poor


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_evaluate_prints_one_json_object(evaluated, capsys):
    references, good, _ = evaluated
    assert evaluate(good, "--references", references, "--scorers", "cider,bleu", "--bootstrap", "50", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]) == {"cider", "bleu"}
    assert result["matched"] == 3
    for score in result["scores"].values():
        assert score["value"] == next(iter(score["values"].values()))
        assert set(score["interval"]) <= set(score["values"]) and score["signature"]
    assert result["scores"]["bleu"]["values"]["bleu_1"] == pytest.approx(1.0)


def test_evaluate_compares_two_systems(evaluated, capsys):
    references, good, poor = evaluated
    words = [good, poor, "--references", references, "--scorers", "cider", "--bootstrap", "50"]
    assert evaluate(*words, "--paired", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"]["cider"]["value"] > result["others"][0]["scores"]["cider"]["value"]
    assert "cider" in result["others"][0]["paired"]
    assert evaluate(*words, "--paired") == 0
    out = capsys.readouterr().out
    assert "good.jsonl" in out and "poor.json" in out
    assert evaluate(good, "--paired", "--references", references) == 2


def test_evaluate_says_what_does_not_match(evaluated, tmp_path, capsys):
    references, good, _ = evaluated
    rows = good.read_text().splitlines(keepends=True)
    good.write_text("".join(rows[:2]) + json.dumps({"image_id": "q", "caption": "a cat"}) + "\n")
    assert evaluate(good, "--references", references, "--scorers", "bleu", "--bootstrap", "10") == 0
    err = capsys.readouterr().err
    assert "only 2 of the 3" in err and "1 of the 3 captions" in err

    good.write_text(json.dumps({"image_id": "test-0-000004", "caption": "a cat"}))
    assert evaluate(good, "--references", "storybook:test?n=3&seed=91", "--scorers", "bleu") == 1
    err = capsys.readouterr().err
    assert (
        "test-0-000004" in err
        and "test-91-000000" in err
        and 'captune caption --model … --images "storybook:test' in err
    )


def test_evaluate_checks_needs_before_it_works(evaluated, capsys):
    references, good, _ = evaluated
    assert evaluate(good, "--scorers", "cider") == 1
    assert "--references" in capsys.readouterr().err
    assert evaluate(good, "--references", references, "--scorers", "cidre") != 0
    assert "cider" in capsys.readouterr().err
    assert evaluate(good, "--references", references, "--scorers", "storybook") == 1
    assert "scene" in capsys.readouterr().err


def test_an_address_is_refused_before_anything_is_loaded(evaluated, tmp_path, capsys):
    references, good, _ = evaluated
    for words in (
        ["evaluate", "s3://bucket/x.jsonl", "--references", references],
        ["convert", "what://x.jsonl", tmp_path / "o.jsonl"],
        ["report", "s3://bucket/x.jsonl"],
        ["pairs", "s3://bucket/x.jsonl", "--output", tmp_path / "p.jsonl"],
        ["arena", good, "s3://bucket/x.jsonl", "--images", tmp_path],
        ["review", tmp_path, "s3://bucket/x.jsonl"],
        ["evaluate", good, "--references", "s3://bucket/x.jsonl"],
        ["evaluate", good, "--references", "what://x"],
    ):
        assert main(list(map(str, words))) == 2
        assert "address" in capsys.readouterr().err


def test_an_output_without_a_suffix_is_refused_and_a_format_serves_it(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = str(evaluated[1])
    images = ["--images", "storybook:test?n=1"]
    for words in (["caption", "--model", "storybook", *images, "--output", "caps"], ["convert", good, "caps"]):
        assert main(words) == 2 and not Path("caps").exists()
        err = capsys.readouterr().err
        assert ".parquet" in err and "name the output caps.jsonl, or say --format" in err
    assert main(["convert", good, "caps", "--format", "csv"]) == 0
    assert Path("caps").read_text().startswith("image_id,caption\n")


def test_evaluate_and_report_read_sidecars_in_a_tree_of_their_own(tmp_path, capsys):
    (tmp_path / "photos/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        tiny.picture(len(name), (16, 16)).save(tmp_path / f"photos/{name}.png")
        (tmp_path / f"tree/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tree/{name}.txt").write_text(f"a ball {name}\n")
        (tmp_path / f"photos/{name}.txt").write_text(f"a ball {name}\n")
    tree, photos = str(tmp_path / "tree"), str(tmp_path / "photos")
    assert evaluate(tree, "--references", photos, "--scorers", "rouge", "--json", "--no-cache") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matched"] == 2 and found["scores"]["rouge"]["value"] == pytest.approx(1)
    assert evaluate(tree, "--scorers", "length") == 1
    assert "--images SOURCE" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert main(["report", tree, "--images", photos, "--output", str(page)]) == 0
    assert "a ball sub/b" in page.read_text()
    assert main(["pairs", tree, "--output", str(tmp_path / "p.jsonl")]) == 1
    assert f"captune convert {tree} captions.jsonl --images SOURCE" in capsys.readouterr().err
    assert main(["review", photos, tree]) == 2
    assert f"captune convert {tree} captions.jsonl --images {photos}" in capsys.readouterr().err


def test_evaluate_names_a_broken_file(tmp_path, capsys):
    (tmp_path / "caps.jsonl").write_text('{"image_id": "x"\n{"image_id": "y", "caption": "a"}\n')
    assert evaluate(tmp_path / "caps.jsonl", "--scorers", "length") == 1
    assert "caps.jsonl, line 1" in capsys.readouterr().err
    assert evaluate(tmp_path / "absent.jsonl", "--scorers", "length") == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_report_and_doctor(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["torch"]["state"] == checks["python"]["state"] == "ok"
    assert "HF_HUB_OFFLINE" in checks["hub"]["found"]


# --------------------------------------------------------------------- scorers


def test_the_scorers_are_listed_by_group(capsys):
    from captune.scorers import SCORERS

    assert main(["scorers"]) == 0
    out = capsys.readouterr().out
    assert out.index("reference: compare") < out.index("  cider ") < out.index("image: compare") < out.index("  clip ")
    assert all(f"  {name} " in out for name in SCORERS)
    assert main(["scorers", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(SCORERS)


def test_one_scorer_is_described(capsys):
    assert main(["scorers", "health"]) == 0
    out = capsys.readouterr().out
    assert "bad_endings  bad endings" in out and "lower" in out and "captions only" in out
    assert main(["scorers", "health", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert {"name": "empty", "label": "empty captions", "higher_is_better": False} in about["figures"]
    assert main(["scorers", "clip", "--json"]) == 0
    settings = {row["name"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["w"]["default"] == "2.5" and settings["w"]["type"] == "a number" and settings["w"]["help"]
    assert main(["scorers", "cidre"]) == 2
    assert "did you mean 'cider'" in capsys.readouterr().err.lower()


# ----------------------------------------------------------------------- merge


def test_merge_writes_a_plain_folder(model, photos, tmp_path, capsys):
    import torch

    from captune import Captioner

    captioner = Captioner.load(model, device="cpu")
    torch.manual_seed(3)
    captioner.add_lora(4, 8, 0.0)
    for name, weight in captioner.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    captioner.save_adapter(tmp_path / "adapter")
    words = ["--model", model, "--adapter", tmp_path / "adapter", "--output", tmp_path / "merged"]
    assert main(["merge", *map(str, words)]) == 0
    assert f"model: {tmp_path / 'merged'}" in capsys.readouterr().out
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert caption(model, photos, tmp_path / "a.jsonl", "--adapter", str(tmp_path / "adapter")) == 0
    assert caption(tmp_path / "merged", photos, tmp_path / "b.jsonl") == 0
    assert caption(model, photos, tmp_path / "c.jsonl") == 0
    assert captions(tmp_path / "a.jsonl") == captions(tmp_path / "b.jsonl") != captions(tmp_path / "c.jsonl")


def test_doctor_knows_an_installation_that_is_older_than_the_code(monkeypatch, capsys):
    import importlib.metadata
    import tomllib

    from captune.cli import doctor

    listed = tomllib.loads((Path(captune.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {group: set(names) for group, names in listed["entry-points"].items()} == doctor.ENTRY_POINTS
    points = [
        importlib.metadata.EntryPoint("storybook", "x:y", group) for group in ("captune.sources", "captune.models")
    ]
    old = SimpleNamespace(version=captune.__version__, entry_points=points)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: old)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "without storybook, storybook-clip, storybook-lm" in said and "pip install -e ." in said


def test_correlate_refuses_a_scorer_before_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from captune.cli.main import main; code = main(['correlate', 'none.csv', '--scorers', 'bleuu']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"] and "did you mean 'bleu'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "caption --model storybook --images nosuch --output z.jsonl",
        "caption --model storybook --images nosuch/photos --output z.jsonl",
        "caption --model storybook --images photos/a.csv?images=nosuch --output z.jsonl",
        "evaluate nosuch.jsonl --scorers length",
        "evaluate photos/a.csv --references ~/nosuch.json",
        "evaluate photos/a.csv --images nosuch/*.png --scorers length",
        "caption --model storybook --images nosuch-{00..09}.tar --output z.jsonl",
        "curate filter ./nosuch --by clip --keep 0.3 --output z",
        "curate ./nosuch --steps photos/a.csv --output z",
        "review nosuch photos/a.csv --export z.jsonl",
        "review photos nosuch.jsonl",
        "arena photos/a.csv photos/a.csv --images nosuch",
        "report photos/a.csv --images nosuch",
        "pairs photos/a.csv --images nosuch --output z.jsonl",
        "convert nosuch.jsonl z.csv",
        "detect --model yolo.onnx --images nosuch --output z.jsonl",
        "corpus build --captions nosuch --output z",
        "encoder train --images nosuch --image-encoder storybook-clip --output z",
        "sft --model storybook --images nosuch --output z",
        "sft --config photos/sft.yaml --output z",
        "grpo --model storybook --images photos --eval-images nosuch --reward clip --output z",
    ],
)
def test_what_is_not_there_is_refused_before_torch(words: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.csv").write_text("image,caption\na.jpg,a dog\n")
    (tmp_path / "photos" / "sft.yaml").write_text("model: storybook\nimages: nosuch\n")
    code = (
        "import sys; from captune.cli.main import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()\nsys.exit(code)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "nosuch" in done.stderr and any(
        said in done.stderr for said in ("does not exist", "cannot be read", "has a name like", "there is no")
    )
