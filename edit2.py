from pathlib import Path
def sub(path, *pairs):
    p=Path(path); s=p.read_text()
    for a,b in pairs:
        assert a in s, (path, a)
        s=s.replace(a,b)
    p.write_text(s)
S="src/captune/"
sub(S+"utils/hashing.py",
('''def identity(*parts: Any, **settings: Any) -> str:''','''def identity(*parts: Any, unused: tuple[str, ...] = ("pooler",), **settings: Any) -> str:'''),
('''        settings: what else decides: a prompt, a layer, a pooling.
    """
    return hashlib.sha256(b"\\0".join(map(_described, (*parts, settings)))).hexdigest()[:8]


def _described(part: Any) -> bytes:
''','''        unused: parts of weights' names that are not read: a pooler that was not saved is initialised at random.
        settings: what else decides: a prompt, a layer, a pooling.
    """
    return hashlib.sha256(b"\\0".join(_described(part, unused) for part in (*parts, settings))).hexdigest()[:8]


def _described(part: Any, unused: tuple[str, ...] = ()) -> bytes:
'''),
('''        return b"\\n".join([weights_digest(part.state_dict(), types=True).encode(), *_module_settings(part)])
''','''        weights = weights_digest(part.state_dict(), types=True, unused=unused)
        return b"\\n".join([weights.encode(), *_module_settings(part)])
'''),
('''def weights_digest(state: Mapping[str, Any], *, types: bool = False) -> str:
    """Return the first 8 hex digits of a SHA-256 of a model's weights (its `state_dict`).

    A pooler's weights do not count unless `types`: one that was not saved is initialised at random at every load.

    Args:
        state: tensors by name.
        types: whether shapes and types count, too.
    """''','''def weights_digest(
    state: Mapping[str, Any], *, types: bool = False, unused: tuple[str, ...] = ("pooler",)
) -> str:
    """Return the first 8 hex digits of a SHA-256 of a model's weights (its `state_dict`).

    Args:
        state: tensors by name.
        types: whether shapes and types count, too.
        unused: parts of names that do not count.
    """'''),
('''        if "pooler" in key.split("."):
            continue
''','''        if any(part in key.split(".") for part in unused):
            continue
'''),
)
sub(S+"models/encoders/clip.py",
("from captune.utils.hashing import weights_digest\n","from captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
('''            model = AutoModel.from_pretrained(source, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, SafetensorError) as error:
            reason = first_line(error).rstrip(".") + how_to_get(name, source)
            raise EncoderError(f"encoder {name!r} cannot be loaded: {reason}") from error
''','''            model, info = AutoModel.from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = first_line(error).rstrip(".") + how_to_get(name, source)
            raise EncoderError(f"encoder {name!r} cannot be loaded: {reason}") from error
        check_model(model, info, what=f"encoder {name!r}", error=EncoderError)
'''),
('''        """The first 8 hex digits of a SHA-256 of the weights, since names of folders say little."""
        return weights_digest(self.model.state_dict())
''','''        """8 hex digits of weights, tokenizer, image processor and configuration: names of folders say little."""
        return identity(self.model, self.tokenizer, self.image_processor, unused=())
'''))
sub(S+"models/encoders/vision.py",
("from captune.utils.hashing import weights_digest\n","from captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
("from captune.errors import EncoderError, first_line\n","from captune.data.images import open_image\nfrom captune.errors import EncoderError, first_line\n"),
('''            model = AutoModel.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = first_line(error).rstrip(".") + how_to_get(name, source)
            raise EncoderError(f"image encoder {name!r} cannot be loaded: {reason}") from error
''','''            model, info = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            reason = first_line(error).rstrip(".") + how_to_get(name, source)
            raise EncoderError(f"image encoder {name!r} cannot be loaded: {reason}") from error
        check_model(model, info, what=f"image encoder {name!r}", error=EncoderError)
'''),
('''        """The first 8 hex digits of a SHA-256 of the weights."""
        return weights_digest(self.model.state_dict())
''','''        """8 hex digits of weights, image processor and configuration."""
        return identity(self.model, self.processor, unused=())
'''),
('''        """Encode PIL images: (N, D) float32 unit vectors on the CPU."""
''','''        """Encode images, PIL's or anything that `open_image` reads: (N, D) float32 unit vectors on the CPU."""
'''),
("images=list(images), return","images=[open_image(image) for image in images], return"))
sub(S+"models/encoders/sentence.py",
("from captune.utils.hashing import weights_digest\n","from captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
('''        return cls(model, name=name)

    @staticmethod''','''        check_model(model, what=f"text encoder {name!r}", error=EncoderError, unused=("pooler",))
        return cls(model, name=name)

    @staticmethod'''),
('''        """The first 8 hex digits of a SHA-256 of the weights."""
        return weights_digest(self.model.state_dict())
''','''        """8 hex digits of weights, tokenizer, pooling, prompts and configuration."""
        tokenizer = self.model.tokenizer
        return identity(self.model, tokenizer if hasattr(tokenizer, "get_vocab") else {}, length=self.context_length)
'''))
sub(S+"models/encoders/token.py",
("from captune.utils.hashing import weights_digest\n","from captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
('''        absent = sorted(key for key in found["missing_keys"] if "pooler" not in key.split("."))
        if absent:
            raise EncoderError(f"text encoder {name!r} lacks {len(absent)} weights, such as {absent[0]}")
''','''        check_model(model, found, what=f"text encoder {name!r}", error=EncoderError, unused=("pooler",))
'''),
('''        """The first 8 hex digits of a SHA-256 of the weights up to the layer."""
        return weights_digest(self.model.state_dict())
''','''        """8 hex digits of the weights up to the layer, the tokenizer and the configuration."""
        return identity(self.model, self.tokenizer, layer=self.layer)
'''))
sub(S+"models/answerers/vision.py",
("from captune.utils.hashing import weights_digest\n",""),
('''        """The name and a digest of the weights."""
        return f"{self.name}@{weights_digest(self.captioner.core.state_dict())}"
''','''        """The name, and a digest of weights, tokenizer, image processor and template."""
        return f"{self.name}@{self.captioner.identity()}"
'''))
sub(S+"models/answerers/local.py",
("from captune.utils.hashing import weights_digest\n","from captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
('''        """The name and a digest of the weights."""
        return f"{self.name}@{weights_digest(self._model.state_dict())}"
''','''        """The name, and a digest of weights, tokenizer and template."""
        return f"{self.name}@{identity(self._model, self._vocabulary.tokenizer)}"
'''),
('''            model, info = loaded
            if lacking := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
                raise ValueError(f"{len(lacking)} tensors are missing or have another shape, such as {lacking[0]}")
''','''            model, info = loaded
'''),
('''            raise self._unloadable("weights (*.safetensors)", error) from error
        return model''','''            raise self._unloadable("weights (*.safetensors)", error) from error
        check_model(model, info, what=f"answering model {self.name!r}", error=ScorerError)
        return model'''))
sub(S+"models/captioner.py",
('''    # -- text ----''','''    def identity(self) -> str:
        """Return 8 hex digits of what decides the captions: weights, tokenizer, image processor, template, prompt."""
        images = getattr(self.processor, "image_processor", None)
        template = getattr(self.processor, "chat_template", None)
        return hashing.identity(self.core, self.tokenizer, images, unused=(), template=template, prompt=self.prompt)

    # -- text ----'''),
("from captune.models.families import Family, attribute, family_for, lora_targets\n","from captune.models.families import Family, attribute, family_for, lora_targets\nfrom captune.utils import hashing\n"),
)
sub(S+"scene_graphs/factual.py",
('''        from captune.utils.hashing import weights_digest

        return f"factual/{self.name}@{weights_digest(self._model()[0].state_dict())}/beams-{_BEAMS}/wordnet-3.0"
''','''        if self._identity is None:
            self._identity = identity(*self._model())
        return f"factual/{self.name}@{self._identity}/beams-{_BEAMS}/wordnet-3.0"
'''),
('''        """What the graphs depend on: the model's weights and the settings."""''','''        """What the graphs depend on: the model's weights, tokenizer, generation settings, and the parser's own."""'''),
('''        self._loaded: tuple[Any, Any] | None = None
''','''        self._loaded: tuple[Any, Any] | None = None
        self._identity: str | None = None
'''),
("from captune.utils.device import pick_device\n","from captune.utils.device import pick_device\nfrom captune.utils.hashing import identity\nfrom captune.utils.loads import check_model\n"),
('''                model = AutoModelForSeq2SeqLM.from_pretrained(self.name, use_safetensors=True)
            except (OSError, ValueError, KeyError, ImportError) as error:''','''                model, info = AutoModelForSeq2SeqLM.from_pretrained(
                    self.name, use_safetensors=True, output_loading_info=True
                )
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:'''),
('''            self._loaded = model''','''            check_model(model, info, what=f"the scene-graph parser {self.name}", error=ScorerError)
            self._loaded = model'''),
('''            from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
''','''            from safetensors import SafetensorError
            from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
'''),
)
sub(S+"scorers/image/cycle.py",
('''                self._weights = _weights(self.pipeline)''','''                self._weights = _identity(self.pipeline)'''),
)
p=Path(S+"scorers/image/cycle.py"); s=p.read_text()
a=s.index("def _weights(pipeline"); b=s.index("def _version(")
s=s[:a]+'''def _identity(pipeline: Any) -> str:
    """A digest of all that decides what the pipeline draws: weights, tokenizers, schedulers and their settings."""
    parts: Mapping[str, Any] = getattr(pipeline, "components", {})
    known = {name: part for name, part in sorted(parts.items()) if part is not None}
    settings = {name: _settings(part) for name, part in known.items()}
    whole = [part for part in known.values() if hasattr(part, "state_dict") or hasattr(part, "get_vocab")]
    return identity(*whole, unused=(), settings=settings, own=_settings(pipeline))


def _settings(part: Any) -> Any:
    config = getattr(part, "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return [type(part).__name__, dict(config) if isinstance(config, Mapping) else None]


'''+s[b:]
s=s.replace("from captune.utils.device import pick_device\n","from captune.utils.device import pick_device\nfrom captune.utils.hashing import identity\n")
p.write_text(s)
# zerocap, prefix assembly
sub(S+"decoding/zerocap.py",
('''            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CaptionerError(f"language model {name!r} cannot be loaded: {first_line(error)}") from error
''','''            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CaptionerError(f"language model {name!r} cannot be loaded: {first_line(error)}") from error
        model, info = loaded
        check_model(model, info, what=f"language model {name!r}", error=CaptionerError)
'''),
("from captune.utils.device import pick_device\n","from captune.utils.device import pick_device\nfrom captune.utils.loads import check_model\n"))
sub(S+"models/prefix_captioner/assembly.py",
('''        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
''','''        lm, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
'''),
('''        raise CaptionerError(f"language model {name!r} cannot be loaded: {reason}") from error
''','''        raise CaptionerError(f"language model {name!r} cannot be loaded: {reason}") from error
    check_model(lm, info, what=f"language model {name!r}", error=CaptionerError)
'''),
('''    missing = sorted(map(str, info["missing_keys"])) or ([] if hasattr(tower.config, "patch_size") else ["patch_size"])
    if missing:
        raise CaptionerError(
            f"image encoder {name!r} ({type(tower).__name__}) cannot be used: no {', '.join(missing[:3])}"
        )
''','''    if not hasattr(tower.config, "patch_size"):
        raise CaptionerError(f"image encoder {name!r} ({type(tower).__name__}) cannot be used: no patch_size")
    check_model(whole, info, what=f"image encoder {name!r} ({type(tower).__name__})", error=CaptionerError)
'''),
("from captune.models.prefix_captioner.processing import PrefixProcessor\n","from captune.models.prefix_captioner.processing import PrefixProcessor\nfrom captune.utils.loads import check_model\n"))
s=Path(S+"models/prefix_captioner/assembly.py").read_text().replace("except (OSError, ValueError, KeyError, SafetensorError)","except (OSError, ValueError, KeyError, RuntimeError, SafetensorError)")
Path(S+"models/prefix_captioner/assembly.py").write_text(s)
