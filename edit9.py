from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"decoding/zerocap.py",
('''        settings = NEUTRAL | settings if do_sample else settings
        neutral = NEUTRAL if do_sample else {"repetition_penalty": 1.0}
''',''),
('''            **{**neutral, **settings,''','''            **{**(NEUTRAL if do_sample else {}), **settings,'''))
sub(S+"inference/settings.py",
('''    return {
        "model": str(getattr''','''    tokenizer = getattr(captioner, "tokenizer", getattr(processor, "tokenizer", None))
    return {
        "model": str(getattr'''),
('''        "weights": weights_mark(model) if isinstance(model, torch.nn.Module) else None,
''','''        "weights": weights_mark(model) if isinstance(model, torch.nn.Module) else None,
        "tokenizer": settings_digest(tokenizer) if hasattr(tokenizer, "get_vocab") else None,
'''),
('''        "decoder": None if decoder is None else decoder.signature,
''','''        "decoder": None if decoder is None else redact(decoder.signature),
'''),
('''    changed = [key for key in new if key != "model" and old.get(key) != new[key]]
''','''    if not isinstance(old, dict):
        raise CaptionFileError(f"{path} is no JSON object but {type(old).__name__}; {remedy}")
    old = {"tokenizer": new.get("tokenizer"), **old}  # files from before captions' settings knew it
    changed = [key for key in new if key != "model" and old.get(key) != new[key]]
'''),
("from captune.errors import CaptionFileError\n","from captune.errors import CaptionFileError, redact\nfrom captune.utils.hashing import settings_digest, weights_mark\n"),
)
p=Path(S+"inference/settings.py"); s=p.read_text()
a=s.index("def weights_mark"); b=s.index("def _mark(")
s=s[:a]+s[b:]
s=s.replace("    return str(source).replace(where, os.path.abspath(path), 1) if path.exists() else str(source)","    return redact(str(source).replace(where, os.path.abspath(path), 1) if path.exists() else str(source))")
p.write_text(s)
