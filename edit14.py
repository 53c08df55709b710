from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"utils/versions.py",('''    """Return the command that is running, as it could be typed."""''','''    """Return the command that is running, as it could be typed, without secrets."""'''),
('''    return " ".join([program, *(shlex.quote(part) for part in sys.argv[1:])])''','''    return " ".join([program, *(shlex.quote(redact(part)) for part in sys.argv[1:])])'''))
p=Path(S+"utils/versions.py"); s=p.read_text()
i=s.index("\nPACKAGES"); s=s[:i].rstrip()+"\n\nfrom captune.errors import redact\n"+s[i:]; p.write_text(s)
sub(S+"runs/run_dir.py",
('''    if value is None or isinstance(value, bool | int) or type(value) is str:
        return value
''','''    if type(value) is str:
        return redact(value)
    if value is None or isinstance(value, bool | int):
        return value
'''),
('''        replace_file(self.path / CARD, card)
''','''        replace_file(self.path / CARD, redact(card))
'''),
("from captune.errors import RunError\n","from captune.errors import RunError, redact\n"))
sub(S+"corpus/build.py",('''        "source": source if isinstance(source, str) else''','''        "source": redact(source) if isinstance(source, str) else'''),
("from captune.errors import BadImage, CorpusError\n","from captune.errors import BadImage, CorpusError, redact\n"))
sub(S+"scorers/registry.py",("    scorer.name, scorer.cache = spec, cache\n","    scorer.name, scorer.cache = redact(spec), cache\n"))
sub(S+"scorers/expression.py",("        self.name = text\n","        self.name = redact(text)\n"))
sub(S+"cli/main.py",
('''    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(name)s: %(message)s")
''','''    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[handler])
'''),
('''    warnings.formatwarning = lambda message, *_, **__: f"captune: warning: {message}\\n"
''','''    warnings.formatwarning = lambda message, *_, **__: redact(f"captune: warning: {message}\\n")
'''),
('''    text += "".join(traceback.format_exception(error))
''','''    text = redact(text + "".join(traceback.format_exception(error)))
'''),
('''def verbs() -> list[str]:''','''class _Formatter(logging.Formatter):
    """Log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Parser(argparse.ArgumentParser):
    """Messages about the command line without secrets, which a wrong line may hold."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(redact(message), file)


def verbs() -> list[str]:'''),
('''    top = argparse.ArgumentParser(
        prog="captune",''','''    top = _Parser(
        prog="captune",'''),
)
sub(S+"cli/command.py",('''    print(sentence, file=sys.stderr)
''','''    print(redact(sentence), file=sys.stderr)
'''))
