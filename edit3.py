from pathlib import Path
p=Path("src/captune/utils/hashing.py"); s=p.read_text()
s=s.replace('''    ).split(" ")
)
)
''','''    ).split(" ")
)
''')
a=s.index("def _module_settings"); b=s.index("def tokenizer_settings")
s=s[:a]+'''def _module_settings(module: Any) -> Iterator[bytes]:
    for name in ("config", "generation_config"):
        if hasattr(getattr(module, name, None), "to_dict"):
            yield _json(getattr(module, name).to_dict())
    if hasattr(module, "default_prompt_name"):  # of sentence-transformers
        yield _json([module.prompts, module.default_prompt_name])
        for child in module.children():  # the transformer, its pooling, normalisation and the like
            yield _json([type(child).__name__, child.get_config_dict() if hasattr(child, "get_config_dict") else None])
            yield from _module_settings(child)


'''+s[b:]
p.write_text(s)
