"""The command line: one thin function per verb that parses, calls and prints. The work is done elsewhere.

Nothing heavy is imported before a verb is known, so that ``captune --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from captune import __version__
from captune.cli import commands as do
from captune.cli.commands import say
from captune.errors import UsageError
from captune.utils.registry import nearest

USES_SOURCES = ("caption", "vizer", "sft", "grpo", "scst", "har", "sc-captioner", "evaluate", "corpus", "demo")
SOURCES = """
Images and references are named by a source: a folder (searched recursively), a COCO or Karpathy JSON,
Flickr8k/30k text or CSV, JSONL, parquet, webdataset shards, any `datasets` name, or the embedded world:
storybook:train, :unlabelled, :val, :test, :ood, with ?n=500&seed=91 for fresh images (quote it in a shell)."""


# -------------------------------------------------------------------- parser


class Verb(NamedTuple):
    line: str
    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


VERBS = {
    "caption": Verb(
        "caption images with any model, into a JSONL file",
        "Captions every image of a source, in batches, writing each caption as it is made. Run it again after an "
        "interruption and it goes on where it stopped. Unreadable images are skipped, named and counted, and the "
        "exit code is then 1.",
        "captune caption --model storybook --images storybook:test --output caps.jsonl",
        do.add_caption,
        do.run_caption,
    ),
    "vizer": Verb(
        "improve a captioner with unlabelled images (ViZer)",
        "Fits a mapper from captions to visual features, then trains the captioner (LoRA) so that its own captions "
        "agree with the images: no label needed. --preset paper is the literal reading of the paper, --preset "
        "captune the settings that measured best.",
        "captune vizer --model storybook --images storybook:unlabelled --seed 7 --output runs/g",
        do.add_method("vizer"),
        do.run_method("vizer"),
    ),
    "sft": Verb(
        "fine-tune a captioner on references (the supervised ceiling)",
        "Plain supervised LoRA fine-tuning on images with reference captions.",
        "captune sft --model storybook --images storybook:train --seed 7 --output runs/sft",
        do.add_method("sft"),
        do.run_method("sft"),
    ),
    "grpo": Verb(
        "train a captioner with any scorer as the reward (GRPO)",
        "Samples captions of each image, scores them, and makes the better ones likelier. The reward is a scorer or a "
        "weighted sum of scorers (captune scorers lists them); its parts are logged separately.",
        "captune grpo --model storybook --images storybook:train --reward cider --output runs/cider",
        do.add_method("grpo"),
        do.run_method("grpo"),
    ),
    "scst": Verb(
        "self-critical training on references (SCST)",
        "Samples captions of each image and makes those likelier that score above the captioner's own greedy caption "
        "(or above the other samples). Usually goes on from `captune sft`'s adapter, with CIDEr-D as the reward.",
        "captune scst --model storybook --adapter runs/sft/adapter --images storybook:train --reward cider "
        "--output runs/scst",
        do.add_method("scst"),
        do.run_method("scst"),
    ),
    "har": Verb(
        "build a captioner of an image encoder and a language model (HAR)",
        "Puts a frozen image encoder, a projector and a causal language model together, trains them on references by "
        "maximum likelihood, then refines them by self-critical training on a reward.",
        "captune har --image-encoder storybook-clip --language-model storybook-lm --images storybook:train "
        "--output runs/har",
        do.add_method("har"),
        do.run_method("har"),
    ),
    "sc-captioner": Verb(
        "train a captioner to correct its own captions (SC-Captioner)",
        "The captioner writes a caption, is asked to correct it, and is rewarded for each object, attribute and "
        "relation that the correction rightly adds or removes. `--decoder self-correct` captions in two turns.",
        "captune sc-captioner --model storybook --adapter runs/sft/adapter --images storybook:train --output runs/sc",
        do.add_method("sc-captioner"),
        do.run_method("sc-captioner"),
    ),
    "evaluate": Verb(
        "score caption files, with intervals and paired tests",
        "Scores captions, made by captune or by anything else, against references and images. Captions and "
        "references are matched by image_id; what does not match is reported.",
        'captune evaluate caps.jsonl --references "storybook:test?n=500&seed=0" --scorers cider,storybook,clip --json',
        do.add_evaluate,
        do.run_evaluate,
    ),
    "scorers": Verb(
        "list the scorers and what each needs",
        "Lists the scorers; each is usable in `captune evaluate` and as a reward.",
        "captune scorers",
        do.add_scorers,
        do.run_scorers,
    ),
    "corpus": Verb(
        "build a retrieval corpus, for the scorers grc and qir",
        "`captune corpus build` encodes every caption and image of a source, piece by piece with resume, into a folder "
        "that grc:<folder> and qir:<folder> search. The exit code is 1 when images could not be read.",
        "captune corpus build --captions storybook:train --output runs/corpus",
        do.add_corpus,
        do.run_corpus,
    ),
    "report": Verb(
        "make one HTML page out of run directories",
        "One self-contained page: table with intervals, training curves, captions side by side, settings.",
        "captune report runs/g runs/sft --output report.html",
        do.add_report,
        do.run_report,
    ),
    "demo": Verb(
        "the main job on the embedded default, in minutes",
        "Captions storybook images with the embedded captioner, improves it with unlabelled images, trains the "
        "supervised ceiling, evaluates all of them and makes the report.",
        "captune demo",
        do.add_demo,
        do.run_demo,
    ),
    "doctor": Verb(
        "what is installed, what is missing, how to get it",
        "Looks at Python, libraries, embedded models, accelerators, the hub and the disk. Exit code 1 when "
        "something that captune needs is missing.",
        "captune doctor",
        do.add_doctor,
        do.run_doctor,
    ),
    "storybook": Verb(
        "rebuild the embedded models from nothing",
        "Trains the captioner, the CLIP-style encoder and the language model that are shipped with captune again, on "
        "the CPU, in about twenty-five minutes on two cores.",
        "captune storybook --output /tmp/models",
        do.add_storybook,
        do.run_storybook,
    ),
}


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser; only `verb` gets its flags, because reading a method's settings imports torch."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and logs")
    top = argparse.ArgumentParser(
        prog="captune",
        parents=[common],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Improve image captioners, with or without labels, and measure what changed.",
        epilog="`captune VERB --help` explains a verb and gives an example. To see it work: captune demo",
    )
    top.add_argument("--version", action="version", version=f"captune {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True)
    for name, v in VERBS.items():
        p = verbs.add_parser(
            name,
            help=v.line,
            description=textwrap.fill(v.about, 100),
            epilog=f"example:\n  {v.example}\n" + (SOURCES if name in USES_SOURCES else ""),
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == verb:
            v.arguments(p)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for work that failed or is incomplete, 2 for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "--debug" in argv
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: each line came twice
    if not debug:
        warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|torch|datasets|huggingface_hub)\b")
    verb = next((a for a in argv if not a.startswith("-")), None)
    try:
        if verb is not None and verb not in VERBS:
            raise UsageError(nearest(verb, VERBS, "verb"))
        args = parser(verb).parse_args(argv)
        return VERBS[args.verb].run(args)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as e:
        if debug:
            raise
        where = "" if isinstance(e, UsageError) else " (--debug shows where)"
        say(f"captune: {e or type(e).__name__}{where}")
        return 2 if isinstance(e, UsageError) else 1
