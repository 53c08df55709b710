"""The processor of a prefix captioner."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin


class PrefixProcessor(ProcessorMixin):
    """The encoder's image processor and the language model's tokenizer; an image becomes k image tokens.

    Args:
        image_processor: of the encoder.
        tokenizer: of the language model, with the image token.
        num_prefix_tokens: k.
        image_token: the placeholder.
        chat_template: of prompts.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_prefix_tokens: int = 16,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_prefix_tokens, self.image_token = num_prefix_tokens, image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the k image tokens of an image; transformers calls it."""
        return self.image_token * self.num_prefix_tokens
