from pathlib import Path
exec(open("/tmp/w/me/edit4.py").read().split("S=")[0])
S="src/captune/"
sub(S+"models/captioner.py",
('''#: Decoding follows the caller alone: a checkpoint's generation_config.json (Qwen2-VL ships top_k=1) would change it.
NEUTRAL = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
''','''#: What transformers takes for settings that nobody named is not always neutral (top_k=50).
NEUTRAL = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_new_tokens", "cache_implementation")


def neutral(config: GenerationConfig | None) -> GenerationConfig:
    """Return a generation config that changes no decoding: which tokens begin and end, and the default length, stay.

    Decoding follows the caller alone: a checkpoint's generation_config.json (Qwen2-VL ships top_k=1, others
    no_repeat_ngram_size or min_new_tokens) would change what is sampled, searched and trained on.
    """
    return GenerationConfig(**{name: getattr(config, name, None) for name in _KEPT})


def check_length(max_new_tokens: int | None) -> None:
    """Raise SettingError for a longest caption of no tokens; None is the model's own."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, not {max_new_tokens}; leave it out for the default")
'''),
('''from transformers import BatchFeature, PreTrainedModel
''','''from transformers import BatchFeature, GenerationConfig, PreTrainedModel
'''),
('''        vision_cache: what `share_vision` installed last, if anything.

    Args:
        model: of''','''        vision_cache: what `share_vision` installed last, if anything.
        checkpoint_generation: the checkpoint's generation config, which `merge` saves; the model gets a neutral one.

    Args:
        model: of'''),
('''        self.eos_ids = self._eos_ids()
''','''        self.eos_ids = self._eos_ids()
        self.checkpoint_generation = model.generation_config
        model.generation_config = neutral(model.generation_config)
'''),
('''            CaptionerError: the batch has captions.
        """
''','''            CaptionerError: the batch has captions.
            SettingError: a longest caption of no tokens.
        """
        check_length(max_new_tokens)
'''),
('''        self.merge_adapter()
        self.core.save_pretrained(output)
''','''        self.merge_adapter()
        neutral_config, self.core.generation_config = self.core.generation_config, self.checkpoint_generation
        try:
            self.core.save_pretrained(output)
        finally:
            self.core.generation_config = neutral_config
'''),
('''            images=[[image if image.mode == "RGB" else image.convert("RGB")] for image in images],
''','''            images=[[upright_rgb(image)] for image in images],
'''),
("from captune.errors import CaptionerError, SettingError\n","from captune.data.images import upright_rgb\nfrom captune.errors import CaptionerError, SettingError\n"),
)
sub(S+"data/images.py",
('''def image_size(''','''def upright_rgb(image: Any) -> Image.Image:
    """Return `open_image` of what may be an image that it has returned already, which costs nothing then."""
    plain = isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info
    return image if plain and image.getexif().get(_ORIENTATION, 1) == 1 else open_image(image)


def image_size('''),
('''_KINDS = ''','''_ORIENTATION = 0x0112  # of EXIF
_KINDS = '''))
sub(S+"decoding/zerocap.py",
("from captune.models.captioner import NEUTRAL\n","from captune.models.captioner import NEUTRAL, check_length, neutral\n"),
('''        self.language_model = language_model.eval().requires_grad_(False)
''','''        self.language_model = language_model.eval().requires_grad_(False)
        language_model.generation_config = neutral(language_model.generation_config)
'''),
('''        ids = torch.tensor([self.prompt_ids] * len(images), device=self.device)
        neutral = NEUTRAL if''','''        check_length(max_new_tokens)
        ids = torch.tensor([self.prompt_ids] * len(images), device=self.device)
        settings = NEUTRAL | settings if do_sample else settings
        neutral = NEUTRAL if'''),
)
