from pathlib import Path
def sub(path, *pairs):
    p=Path(path); s=p.read_text()
    for a,b in pairs:
        assert a in s, (path, a)
        s=s.replace(a,b)
    p.write_text(s)
S="src/captune/"
sub(S+"models/captioner.py",
('''    def identity(self) -> str:
        """Return 8 hex digits of what decides the captions: weights, tokenizer, image processor, template, prompt."""
        images = getattr(self.processor, "image_processor", None)
        template = getattr(self.processor, "chat_template", None)
        return hashing.identity(self.core, self.tokenizer, images, unused=(), template=template, prompt=self.prompt)
''','''    def identity(self, *, base: bool = False) -> str:
        """Return 8 hex digits of what decides the captions: weights, tokenizer, image processor, template, prompt.

        Args:
            base: of the captioner without its adapter, by a digest of some of the weights.
        """
        weights = self.base_digest() if base else self.core
        images = getattr(self.processor, "image_processor", None)
        template = getattr(self.processor, "chat_template", None)
        return hashing.identity(weights, self.tokenizer, images, unused=(), template=template, prompt=self.prompt)

    def base_digest(self) -> str | None:
        """Return a digest of the base's weights, which adapters and mappers remember; None where it is not known."""
        if isinstance(self.model, PeftModel):
            return (getattr(self.model, "base_record", None) or {}).get("digest")
        return loading.base_record(self.core)["digest"]
'''))
sub(S+"models/vizer_mapper.py",
('''SIZES = ("hidden_size", "feature_size", "captioner_name")  # what a saved mapper's config holds beside MapperConfig
''','''#: what a saved mapper's config holds beside MapperConfig
SIZES = ("hidden_size", "feature_size", "captioner_name", "captioner_digest")
'''),
('''        captioner_name: the captioner whose f_psi it reads, as `Captioner.load` takes it.
    """
''','''        captioner_name: the captioner whose f_psi it reads, as `Captioner.load` takes it.
        captioner_digest: of that captioner's weights without an adapter; None: not known.
    """
'''),
('''    def __init__(self, config: MapperConfig, hidden_size: int, feature_size: int, captioner_name: str = "") -> None:
''','''    def __init__(
        self,
        config: MapperConfig,
        hidden_size: int,
        feature_size: int,
        captioner_name: str = "",
        captioner_digest: str | None = None,
    ) -> None:
'''),
('''        self.captioner_name = captioner_name
''','''        self.captioner_name, self.captioner_digest = captioner_name, captioner_digest
'''),
('''            CaptionerError: names the file that is missing.
''','''            CaptionerError: names the file that is missing, or what is wrong with it.
'''),
('''        settings = json.loads((folder / "config.json").read_text())
        sizes = {name: settings.pop(name) for name in SIZES}
        known = {key: value for key, value in settings.items() if key in MapperConfig.__dataclass_fields__}
        mapper = cls(MapperConfig(**known), **sizes)
        mapper.load_state_dict(load_file(folder / "mapper.safetensors"))
        return mapper.eval().requires_grad_(False)
''','''        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            sizes = {name: settings.pop(name) for name in SIZES[:3]}
            sizes["captioner_digest"] = settings.pop("captioner_digest", None)
            known = {key: value for key, value in settings.items() if key in MapperConfig.__dataclass_fields__}
            mapper = cls(MapperConfig(**known), **sizes)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
            raise CaptionerError(
                f"{folder / 'config.json'} is not the config of a mapper ({type(error).__name__}: {first_line(error)}). "
                + _FIT_AGAIN
            ) from error
        file = folder / "mapper.safetensors"
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CaptionerError(f"the mapper's file {file} is damaged: {first_line(error)}. {_FIT_AGAIN}") from error
        check_keys(tensors, mapper.state_dict(), what=f"mapper {folder}", remedy=_FIT_AGAIN, error=CaptionerError)
        mapper.load_state_dict(tensors)
        return mapper.eval().requires_grad_(False)

    def check_captioner(self, captioner: Captioner) -> None:
        """Raise CaptionerError if the captioner has other weights than the one that the mapper was fitted on."""
        if self.captioner_digest is None:
            return
        digest = captioner.base_digest()
        if digest is not None and digest != self.captioner_digest:
            raise CaptionerError(
                f"the mapper was fitted on {self.captioner_name} with other weights (digest {self.captioner_digest}) "
                f"than those of {captioner.name} ({digest}): its number would mean nothing. {_FIT_AGAIN}"
            )

    @property
    def digest(self) -> str:
        """8 hex digits of the weights."""
        return identity(self.state_dict_digestible())
'''),
('''from safetensors.torch import load_file, save_file
''','''from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
'''),
('''from captune.errors import CaptionerError, SettingError
''','''from captune.errors import CaptionerError, SettingError, first_line
from captune.utils.hashing import weights_digest
from captune.utils.loads import check_keys
'''),
('''#: what a saved''','''_FIT_AGAIN = "Name another mapper, or fit it again with `captune vizer`."
#: what a saved'''),
('''        return identity(self.state_dict_digestible())
''','''        return weights_digest(self.state_dict(), types=True, unused=())
'''),
)
sub(S+"training/vizer/mapper_fit.py",("probe.shape[-1], captioner.name).to(captioner.device)","probe.shape[-1], captioner.name, captioner.base_digest())\n    mapper.to(captioner.device)"))
sub(S+"scorers/image/vizer_mapper.py",
('''        return Captioner.load(self.mapper.captioner_name)
''','''        captioner = Captioner.load(self.mapper.captioner_name)
        self.mapper.check_captioner(captioner)
        return captioner
'''),
('''        if self.mapper.captioner_name == captioner.name:
            self.captioner = captioner
''','''        if self.mapper.captioner_name == captioner.name:
            self.mapper.check_captioner(captioner)
            self.captioner = captioner
'''),
('''            f"vizer|captioner:{self.mapper.captioner_name}|{read}|''','''            f"vizer|captioner:{self.mapper.captioner_name}@{self.captioner.identity(base=True)}"
            f"|mapper:{self.mapper.digest}|{read}|'''),
)
sub(S+"training/grpo/train.py",('''        latent = (Mapper.load(config.latent_mapper).to(captioner.device), config.latent_weight)
''','''        mapper = Mapper.load(config.latent_mapper)
        mapper.check_captioner(captioner)
        latent = (mapper.to(captioner.device), config.latent_weight)
'''))
sub(S+"training/vizer/train.py",('''        return Mapper.load(folder).to(captioner.device)
''','''        mapper = Mapper.load(folder)
        mapper.check_captioner(captioner)
        return mapper.to(captioner.device)
'''))
# corpora
sub(S+"corpus/files.py",
('''FORMAT = 1
''','''FORMAT = 2  # 1: an encoder's digest was that of its weights alone
_FORMATS = (1, 2)
'''),
('''    if config.get("format") != FORMAT:
        raise CorpusError(f"{folder} has format {config.get('format')}; this captune reads {FORMAT}: {_AGAIN}")
    return config
''','''    if config.get("format") not in _FORMATS:
        raise CorpusError(f"{folder} has format {config.get('format')}; this captune reads up to {FORMAT}: {_AGAIN}")
    for slot in ("text_encoder", "image_encoder"):
        if not isinstance(config[slot], dict) or not {"name", "digest"} <= config[slot].keys():
            raise CorpusError(f"{folder / CONFIG} does not say what its {slot} is; {_AGAIN}")
    return config
'''),
('''        raise CorpusError(f"{folder} is not finished; run its `captune corpus build` again, which resumes")
    return config
''','''        raise CorpusError(f"{folder} is not finished; run its `captune corpus build` again, which resumes")
    if lacking := [key for key in ("entries", "images", "digest") if key not in config]:
        raise CorpusError(f"{folder / CONFIG} lacks {', '.join(lacking)}; {_AGAIN}")
    return config


def check_whole(folder: Path, owners: np.ndarray, images: int, *vectors: tuple[str, np.ndarray]) -> None:
    """Check that every entry has an image and every vector is finite; one pass over the files.

    Raises:
        CorpusError: names the file and how many of its rows are wrong, and the first.
    """
    wrong = np.flatnonzero((owners < 0) | (owners >= images))
    if len(wrong):
        raise CorpusError(f"{folder / 'owners.npy'}: {len(wrong)} entries have no image, first {wrong[0]}; {_AGAIN}")
    for name, array in vectors:
        bad = [
            start + int(row)
            for start in range(0, len(array), _ROWS)
            if not np.isfinite(array[start : start + _ROWS].sum())
            for row in np.flatnonzero(~np.isfinite(array[start : start + _ROWS]).all(axis=1))
        ]
        if bad:
            raise CorpusError(
                f"{folder / name}: {len(bad)} vectors are not finite, in the rows "
                f"{', '.join(map(str, bad[:3]))}{' ...' if len(bad) > 3 else ''}; {_AGAIN}"
            )
'''),
('''SHARDS = "shards"
''','''SHARDS = "shards"
_ROWS = 8192  # vectors checked at once
'''))
sub(S+"corpus/corpus.py",
('''        self.index = index
        self._index: Any = None
''','''        vectors = ("texts.npy", self.text_vectors), ("images.npy", self.image_vectors)
        files.check_whole(self.folder, self.owners, images, *vectors)
        self.index = index
        self._index: Any = None
'''),
('''        return [row["caption"] for row in read_jsonl(self.folder / "entries.jsonl")]
''','''        rows = [row.get("caption") for row in read_jsonl(self.folder / "entries.jsonl")]
        if len(rows) != len(self) or not all(isinstance(caption, str) for caption in rows):
            raise CorpusError(
                f"{self.folder / 'entries.jsonl'} has not the {len(self)} captions that the corpus is made of; build "
                "it again with --overwrite"
            )
        return cast(list[str], rows)
'''),
("from typing import TYPE_CHECKING, Any\n","from typing import TYPE_CHECKING, Any, cast\n"),
('''        made = self.config[slot]
        if encoder.digest != made["digest"]:
''','''        made = self.config[slot]
        if self.config["format"] == 1:  # which knew the weights alone
            if getattr(encoder, "weights", encoder.digest) == made["digest"]:
                logger.warning(
                    "%s was made before encoders were known by more than their weights: that the %s's tokenizer and "
                    "settings are those of then cannot be seen",
                    self.folder,
                    slot.replace("_", " "),
                )
                return encoder
        if encoder.digest != made["digest"]:
'''),
)
sub(S+"corpus/build.py",
('''        if begun[slot]["digest"] != settings[slot]["digest"]:
''','''        known = (settings[slot]["digest"], settings.get(f"{slot}_weights") if begun["format"] == 1 else None)
        if begun[slot]["digest"] not in known:
'''),
)
