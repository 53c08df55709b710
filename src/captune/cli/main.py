"""The command line: a table of commands, one parser, and one place where errors become sentences.

Nothing heavy is imported before a verb is known, so that ``captune --help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captune import __version__
from captune.cli import (
    arena,
    build_storybook,
    caption,
    convert,
    corpus,
    correlate,
    curate,
    demo,
    detect,
    doctor,
    encoder,
    evaluate,
    merge,
    pairs,
    report,
    review,
    reward_model,
    scorers,
    train,
)
from captune.cli.command import SOURCES, Command, echo
from captune.errors import CaptuneError, UsageError, first_line, redact
from captune.utils import environment, processes
from captune.utils.files import refuse_address, refuse_missing
from captune.utils.registry import nearest
from captune.utils.skipped import counting, sentences

#: The verbs by the heading they stand under; the methods of `captune.cli.train` begin the second.
JUDGE = {
    "caption": caption.COMMAND,
    "evaluate": evaluate.COMMAND,
    "correlate": correlate.COMMAND,
    "arena": arena.COMMAND,
    "scorers": scorers.COMMAND,
    "convert": convert.COMMAND,
    "detect": detect.COMMAND,
    "corpus": corpus.COMMAND,
    "curate": curate.COMMAND,
    "report": report.COMMAND,
    "review": review.COMMAND,
    "pairs": pairs.COMMAND,
}
TRAIN = {"encoder": encoder.COMMAND, "reward-model": reward_model.COMMAND}
OTHERS = {
    "demo": demo.COMMAND,
    "merge": merge.COMMAND,
    "doctor": doctor.COMMAND,
    "build-storybook": build_storybook.COMMAND,
}
COMMANDS = JUDGE | TRAIN | OTHERS
#: verbs of two words: what follows the first, and the command of both
SECOND = {"curate": (curate.OPERATIONS, curate.operation)}
ALIASES = {"storybook": "build-storybook"}


class _Formatter(logging.Formatter):
    """Log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Parser(argparse.ArgumentParser):
    """Messages about the command line without secrets, which a wrong line may hold."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(redact(message), file)


def verbs() -> list[str]:
    """List the verbs in the order of the help."""
    return [*JUDGE, *train.METHODS, *TRAIN, *OTHERS]


def command(verb: str, load: bool = True) -> Command:
    """Return a verb's command; unless `load`, a method's has its summary only."""
    first, _, second = verb.partition(" ")
    if second:
        return SECOND[first][1](second)
    return COMMANDS[verb] if verb in COMMANDS else train.command(verb, load)


def joined(words: list[str]) -> list[str]:
    """Return the words from a verb on, of which a verb of two words is one."""
    if words[:2] == ["curate", "report"]:
        return words[1:]
    if words[0] in SECOND and words[1:] and words[1] in SECOND[words[0]][0]:
        return [f"{words[0]} {words[1]}", *words[2:]]
    return words


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Make the parser; only `verb` gets its flags: reading the settings of what trains takes seconds."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and logs")
    top = _Parser(
        prog="captune",
        parents=[common],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Improve image captioners, with or without labels, and measure what changed.\n\n" + _listing(),
        epilog="`captune VERB --help` explains a verb and gives an example. To see it work: captune demo",
    )
    top.add_argument("--version", action="version", version=f"captune {__version__}")
    actions = top.add_subparsers(dest="verb", metavar="VERB", required=True, help="one of the above")
    for name in verbs() if verb is None else [verb]:
        chosen = command(name, load=name == verb)
        made = actions.add_parser(
            name,
            description=textwrap.fill(chosen.description, 100),
            epilog=f"example:\n  {chosen.example}\n" + (SOURCES if chosen.reads_sources else ""),
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == verb:
            chosen.add_arguments(made)
        if chosen.reads_sources:
            made.add_argument(
                "--allow-outside",
                action="store_true",
                default=argparse.SUPPRESS,
                help="let the data files of a source name images outside of their folder",
            )
    return top


def _listing() -> str:
    """The verbs with their summaries, under three headings."""
    lines = []
    for heading, names in (
        ("caption and measure", JUDGE),
        ("train", [*train.METHODS, *TRAIN]),
        ("other", OTHERS),
    ):
        lines += [f"{heading}:", *(f"  {name:<16} {command(name, load=False).summary}" for name in names), ""]
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 for work that failed or is incomplete; 2 for wrong usage; 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(AttributeError, ValueError):  # names of files may be no text, and a terminal may be ASCII
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    debug = "--debug" in argv
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(name)s: %(message)s"))
    try:
        environment.check()
        first = not processes.rank()
    except CaptuneError as error:
        echo(f"captune: {error}")
        return error.exit_code
    level = logging.INFO if debug else logging.WARNING if first else logging.ERROR
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: each line came twice
    try:
        with contextlib.nullcontext() if debug else _short_warnings():
            return _run(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except KeyboardInterrupt:
        echo("captune: stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _interrupted(error):
            echo("captune: stopped")
            return 130
        if debug:
            raise
        echo(f"captune: {_sentence(error, argv)}")
        return error.exit_code if isinstance(error, CaptuneError) else 1


def _run(argv: list[str]) -> int:
    place = next((i for i, word in enumerate(argv) if not word.startswith("-")), None)
    verb = None if place is None else argv[place]
    if place is not None and verb in ALIASES:
        new = ALIASES[verb]
        warnings.warn(f"`captune {verb}` is now called `captune {new}`", FutureWarning, stacklevel=2)
        argv[place] = verb = new
    if verb is not None and verb not in COMMANDS and verb not in train.METHODS:
        raise UsageError(nearest(verb, verbs(), "verb"))
    _refuse_empty(argv)
    if verb is not None and place is not None:
        argv[place:] = joined(argv[place:])
        verb = argv[place]
    whole = parser(verb)
    args, strange = whole.parse_known_args(argv)
    if strange:
        word, flags = strange[0].partition("=")[0], [flag for flag in _flags(whole, args.verb) if flag.startswith("--")]
        what = nearest(word, flags, "option").partition(" (known:")[0] if word[:1] == "-" else f"what is {word!r} for"
        raise UsageError(redact(f"{what.rstrip('?')}? `captune {args.verb} --help` lists the options"))
    shared = verb in train.METHODS  # only training shares its work among processes
    if processes.rank() and not shared:
        return 0
    _refuse_absent(whole, args)
    with (
        contextlib.nullcontext() if shared else processes.alone(),
        counting() as skipped,
        _outside("allow_outside" in args),
    ):
        try:
            return command(args.verb).run(args)
        finally:
            for sentence in sentences(skipped) if not processes.rank() else ():
                echo(f"captune: {sentence}")


def _chosen(whole: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    """The parser of a verb."""
    made: argparse.ArgumentParser = next(
        a for a in whole._actions if isinstance(a, argparse._SubParsersAction)
    ).choices[verb]
    return made


def _flags(whole: argparse.ArgumentParser, verb: str) -> list[str]:
    """The options that a verb understands."""
    return list(_chosen(whole, verb)._option_string_actions)


def _refuse_absent(whole: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what is read and is not there, which a verb would find out seconds later, when torch is imported.

    So is an address in place of a path. Read are arguments that are shown as SOURCE, and those without a flag that are
    shown as FILE.
    """
    for action in _chosen(whole, args.verb)._actions:
        given = getattr(args, action.dest, None)
        names = [str(name) for name in (given if isinstance(given, list) else [given]) if name is not None]
        if action.metavar == "SOURCE" and len(names) == 1:  # `curate` refuses several in its own words
            from captune.data.naming import check_there

            check_there(names[0])
        for name in names if action.type is Path and not action.option_strings else ():
            refuse_address(name)
        read = names if action.metavar == "FILE" and not action.option_strings else []
        if "-" in read and not os.path.exists("-"):
            raise UsageError("captions are read from files, not from standard input: save them, and name that file")
        refuse_missing(read)


@contextlib.contextmanager
def _outside(allowed: bool) -> Iterator[None]:
    """Inside, sources may name images anywhere, if that is allowed; the room of the sources is not cheap to import."""
    if not allowed:
        yield
        return
    from captune.data.paths import outside_allowed

    with outside_allowed():
        yield


def _refuse_empty(argv: Sequence[str]) -> None:
    """An empty path is the current folder to Python: what is given as nothing is a slip of the shell."""
    for before, word in zip(["captune", *argv], argv, strict=False):
        flag, equals, value = word.partition("=")
        if equals and flag.startswith("--") and not value.strip():
            before, word = flag, ""
        if not word.strip() and before != "--prompt":  # a prompt may be empty: the image alone
            raise UsageError(f"{before if before.startswith('--') else 'an argument'} is empty: give it a value")


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Inside, a warning is one line without its place in the code, and those of other libraries are hidden."""
    whole = warnings.formatwarning
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|torch|datasets|huggingface_hub)\b")
    warnings.formatwarning = lambda message, *_, **__: redact(f"captune: warning: {message}\n")
    try:
        yield
    finally:
        warnings.formatwarning = whole


def _interrupted(error: BaseException) -> bool:
    """Whether an error came of Ctrl-C, which Python or a library made into one of its own."""
    chain: list[BaseException] = [error]
    for one in chain:
        chain += [of for of in (one.__cause__, one.__context__) if of is not None and of not in chain]
    return any(isinstance(one, KeyboardInterrupt) for one in chain)


def _sentence(error: Exception, argv: Sequence[str]) -> str:
    """What went wrong, in a sentence: captune's own errors as they are, the machine's in words, the rest as a bug."""
    if isinstance(error, CaptuneError):
        return str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and not (error.name or "captune").startswith("captune"):
        return f"the Python package {error.name!r} is not installed; `captune doctor` says how to get what is missing"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "there is not enough memory; use a smaller --batch-size or a smaller model"
    if type(error).__name__ == "OutOfMemoryError":  # torch's: of the accelerator
        return "the accelerator's memory is full; use a smaller --batch-size, --dtype bfloat16 or a smaller model"
    if isinstance(error, OSError):
        file = f": {error.filename}" if error.filename else ""
        known = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission denied",
            errno.EPERM: "not permitted",
            errno.EROFS: "the file system is read-only",
            errno.ENOENT: "no such file or folder",
        }
        return f"{known.get(error.errno or 0) or error.strerror or first_line(error)}{file}"
    log = _write_log(error, argv)
    return f"internal error ({type(error).__name__}: {first_line(error)}); please report it with the log {log}"


def _write_log(error: Exception, argv: Sequence[str]) -> str:
    """Write the traceback to a file in the folder for temporary files; return its path."""
    import tempfile
    import traceback

    text = f"captune {__version__}, Python {sys.version}\ncaptune {' '.join(argv)}\n\n"
    text = redact(text + "".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="captune-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
        return file.name
    except OSError:
        return "of --debug"
