"""Self-correction: a caption, and the captioner's own correction of it (SC-Captioner, Zhang et al., ICCV 2025).

The second turn is one of the chat template: image and prompt, the caption as the assistant's, the request. A base model
has no turns and follows no request, but it writes a caption after an image: it is shown the caption, then the image.
`captune.training.sc_captioner.train` trains the second turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from captune.models.plain_text import plain

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature

    from captune.models.captioner import Captioner

REQUEST = (
    "Check this caption against the image: its objects, their attributes, the relations between them. Leave out what "
    "is not in the image and add what is missing. Answer with the corrected caption alone."
)


def second_turn(captioner: Captioner, images: Sequence[Image.Image], captions: Sequence[str]) -> BatchFeature:
    """Return a prompt batch, left padded, that asks for the correction of each image's caption."""
    turns, texts = captioner.has_turns(), []
    for caption in captions:
        messages, caption = captioner.conversation(), " ".join(plain(captioner.tokenizer, caption).split())
        if turns:
            for role, text in (("assistant", caption), ("user", REQUEST)):
                messages.append({"role": role, "content": [{"type": "text", "text": text}]})
        else:
            messages[0]["content"].insert(0, {"type": "text", "text": f"{caption}\n"})
        texts.append(captioner.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return captioner.encode(texts, images)


def correct(captioner: Captioner, images: Sequence[Image.Image], captions: Sequence[str], **settings: Any) -> list[str]:
    """Return the captions as the captioner corrects them; settings are those of `Captioner.generate`."""
    if not hasattr(captioner, "core"):  # an engine elsewhere, which has the chat template
        turns = [[("assistant", " ".join(caption.split())), ("user", REQUEST)] for caption in captions]
        return captioner.generate(images, turns=turns, **settings)
    return captioner.generate(second_turn(captioner, images, captions), **settings)


@dataclass(frozen=True)
class SelfCorrection:
    """Two turns, "self-correct": a caption, and its correction."""

    positional: ClassVar[tuple[str, ...]] = ()
    example: ClassVar = "self-correct"
    samples: ClassVar = False
    needs_model: ClassVar = False
    required_columns: ClassVar[tuple[str, ...]] = ()
    signature: ClassVar = f"self-correct|request:{REQUEST}"

    def __call__(self, captioner: Captioner, images: Sequence[Any], **settings: Any) -> list[str]:
        """Return one caption per image."""
        with captioner.share_vision() if hasattr(captioner, "core") else nullcontext():
            return correct(captioner, images, captioner.generate(images, **settings), **settings)
