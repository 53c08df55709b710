from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"corpus/build.py",
('''        known = (settings[slot]["digest"], settings.get(f"{slot}_weights") if begun["format"] == 1 else None)
        if begun[slot]["digest"] not in known:
''','''        if not files.same_encoder(begun, slot, encoders[slot]):
'''),
('''        begun = _begin(folder, settings, overwrite)
''','''        encoders = {"text_encoder": text_model, "image_encoder": image_model}
        begun = _begin(folder, settings, encoders, overwrite)
'''),
('''def _begin(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
''','''def _begin(folder: Path, settings: dict[str, Any], encoders: dict[str, Any], overwrite: bool) -> dict[str, Any]:
'''),
)
sub(S+"corpus/corpus.py",
('''        if self.config["format"] == 1:  # which knew the weights alone
            if getattr(encoder, "weights", encoder.digest) == made["digest"]:
                logger.warning(
                    "%s was made before encoders were known by more than their weights: that the %s's tokenizer and "
                    "settings are those of then cannot be seen",
                    self.folder,
                    slot.replace("_", " "),
                )
                return encoder
        if encoder.digest != made["digest"]:
''','''        if not files.same_encoder(self.config, slot, encoder):
'''))
sub(S+"corpus/files.py",
('''def check_whole(''','''def same_encoder(config: dict[str, Any], slot: str, encoder: Any) -> bool:
    """Return whether an encoder is the one of the build; of format 1, which knew the weights alone, that is logged."""
    made = config[slot]["digest"]
    if config["format"] > 1 or not hasattr(encoder, "weights"):
        return bool(made == encoder.digest)
    if made != encoder.weights:
        return False
    logger.warning(
        "this corpus knows its %s by the weights alone: whether tokenizer and settings are still the same cannot be "
        "seen; a new build knows",
        slot.replace("_", " "),
    )
    return True


def check_whole('''),
('''FORMAT = 2 ''','''logger = logging.getLogger(__name__)
FORMAT = 2 '''),
("import json\nimport shutil","import json\nimport logging\nimport shutil"))
for f in ("clip","sentence","vision"):
    p=Path(S+f"models/encoders/{f}.py"); s=p.read_text()
    s=s.replace("from captune.utils.hashing import identity","from captune.utils.hashing import identity, weights_digest")
    i=s.index("    @cached_property\n    def digest")
    s=s[:i]+'''    @cached_property
    def weights(self) -> str:
        """8 hex digits of the weights alone, which corpora of format 1 know."""
        return weights_digest(self.model.state_dict())

'''+s[i:]
    p.write_text(s)
p=Path(S+"models/encoders/base.py"); s=p.read_text()
s=s.replace('''        """The first 8 hex digits of a SHA-256 of the weights."""''','''        """8 hex digits of all that decides the vectors (`captune.utils.hashing.identity`)."""''')
p.write_text(s)
# cache
p=Path(S+"evaluation/cache.py"); s=p.read_text()
s=s.replace('''    <folder>/<digest of the scorer's identity>.jsonl      a line per row: {"key": ..., "row": [...]}
''','''    <folder>/<digest of format and scorer>.jsonl      {"format": ..., "scorer": ...}, then a line per row:
                                                      {"key": ..., "row": [...]}
''')
s=s.replace('''pixels, whatever its name); the file's name is a digest of the scorer's identity, which names the model by its weights.
''','''pixels, whatever its name); the file's name is a digest of the scorer's identity, which names the model by all that
decides its answers (`captune.utils.hashing.identity`). Files of another format are not read.
''')
s=s.replace('''_CHUNK = 128''','''FORMAT = 2  # 1 knew models by their weights alone, and had no first line
_CHUNK = 128''')
s=s.replace('''        file = self.folder / f"{hashlib.sha256(scorer.identity.encode()).hexdigest()[:24]}.jsonl"
        known = self._read(file)
''','''        head = {"format": FORMAT, "scorer": redact(scorer.identity)}
        mark = hashlib.sha256(f"{FORMAT} {scorer.identity}".encode()).hexdigest()[:24]
        file = self.folder / f"{mark}.jsonl"
        known = self._read(file, head)
''')
s=s.replace('''            self._append(file, fresh)
''','''            self._append(file, head, fresh)
''')
a=s.index("    def _read"); b=s.index("def _ends_with_newline")
s=s[:a]+'''    def _read(self, file: Path, head: Mapping[str, Any]) -> dict[str, list[float]]:
        if not file.is_file():
            return {}
        known: dict[str, list[float]] = {}
        first, *lines = file.read_text(encoding="utf-8", errors="replace").split("\\n")
        if _entry(first) != head:
            if first:
                logger.warning("%s is of another format or scorer and is not read; its captions are judged again", file)
            file.unlink()
            return {}
        for line in lines:
            entry = _entry(line)
            key, row = entry.get("key"), entry.get("row")
            if isinstance(key, str) and isinstance(row, list) and all(isinstance(x, int | float) for x in row):
                known[key] = row
            elif line:
                logger.warning("%s: a torn line is left out; its caption is judged again", file)
        sizes = {len(row) for row in known.values()}
        if len(sizes) > 1:
            logger.warning("%s holds rows of %s figures and is not read", file, " and ".join(map(str, sorted(sizes))))
            file.unlink()
            return {}
        return known

    def _append(self, file: Path, head: Mapping[str, Any], rows: Mapping[str, list[float]]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as lines:
            if not lines.tell():
                lines.write(json.dumps(head).encode() + b"\\n")
            elif not _ends_with_newline(lines):
                lines.write(b"\\n")
            for key, row in rows.items():
                lines.write(json.dumps({"key": key, "row": row}).encode() + b"\\n")


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


'''+s[b:]
s=s.replace("from captune.scorers import Scorer\n","from captune.errors import redact\nfrom captune.scorers import Scorer\n")
p.write_text(s)
# errors: redact
p=Path(S+"errors.py"); s=p.read_text()
s=s.replace('''from __future__ import annotations

''','''from __future__ import annotations

import os
import re

_IN_URL = re.compile(r"(\\b[a-z][a-z0-9+.-]*://)[^\\s/?#@'\\"|]+@", re.IGNORECASE)
_IN_QUERY = re.compile(r"([?&;](?:[\\w-]*(?:key|token|secret|signature|password))=)[^&\\s#'\\"|]+", re.IGNORECASE)
_BEARER = re.compile(r"(\\bBearer\\s+)[^\\s'\\"]{4,}", re.IGNORECASE)
_SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$")
_HIDDEN = "***"


def redact(text: str) -> str:
    """Return a text without secrets: passwords and keys in URLs, bearer tokens, and what the environment calls a key.

    Every message, log line, signature and file that could hold one goes through this function.
    """
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= 8 and secret in text and _SECRET_NAMES.search(name.upper()):
            text = text.replace(secret, _HIDDEN)
    text = _IN_URL.sub(rf"\\1{_HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\\1{_HIDDEN}", text)
    return _BEARER.sub(rf"\\1{_HIDDEN}", text)

''',1)
s=s.replace('''    """The first line of an error's message; its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
''','''    """The first line of an error's message, without secrets; its kind where it has none."""
    return redact(next(iter(str(error).strip().splitlines()), type(error).__name__))
''')
s=s.replace('''    exit_code = 1

''','''    exit_code = 1

    def __str__(self) -> str:
        return redact(super().__str__())

''',1)
s=s.replace('''        return f"{self.item}: {self.why}"
''','''        return redact(f"{self.item}: {self.why}")
''')
p.write_text(s)
