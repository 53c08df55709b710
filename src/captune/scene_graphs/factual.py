"""FACTUAL's scene-graph parser (Li et al., ACL 2023 Findings): a flan-t5 that writes a sentence's graph as text.

The protocol is that of CAPTURE: each sentence by itself, beam search with 5 beams and at most 128 tokens, then
WordNet's dictionary forms; attributes with " of" in them are dropped, and an object that is no noun of the text is
dropped with all that is said of it. Where CAPTURE splits sentences and finds nouns with NLTK's models, this does both
with captune's own tagger, so graphs can differ from CAPTURE's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from captune.errors import ScorerError
from captune.models import hub
from captune.scene_graphs.graph import SceneGraph
from captune.scene_graphs.phrases import sentences
from captune.scene_graphs.tagger import tag, words
from captune.scene_graphs.wordnet import wordnet
from captune.utils.device import pick_device
from captune.utils.hashing import identity
from captune.utils.loads import check_model

DEFAULT_MODEL = "lizhuang144/flan-t5-base-VG-factual-sg"
_PROMPT = "Generate Scene Graph: "
_BEAMS, _MAX_LENGTH = 5, 128
_FACT = re.compile(r"\(([^()]*)\)")
_MARKS = re.compile(r"\bp?v:|:\d+")  # of verbs and of the several objects of one name


class FactualParser:
    """The parser ``factual``; the model loads at first use.

    Args:
        model: a folder or hub name, safetensors only; None: `DEFAULT_MODEL`.
        device: of the model; None: the accelerator, if there is one.
        batch_size: sentences per pass.
    """

    def __init__(self, model: str | None = None, *, device: str | None = None, batch_size: int = 16) -> None:
        self.name, self._device, self.batch_size = model or DEFAULT_MODEL, device, batch_size
        self._loaded: tuple[Any, Any] | None = None
        self._identity: str | None = None

    @property
    def signature(self) -> str:
        """What the graphs depend on: the model's weights, tokenizer, generation settings, and the parser's own."""
        if self._identity is None:
            self._identity = identity(*self._model())
        return f"factual/{self.name}@{self._identity}/beams-{_BEAMS}/wordnet-3.0"

    def check(self) -> None:
        """Raise ScorerError where the model is missing; load nothing."""
        hub.check(self.name, what="scene-graph parser", example=DEFAULT_MODEL, error=ScorerError)

    def parse(self, texts: Sequence[str]) -> list[SceneGraph]:
        """Return the graph of each text; each distinct sentence is parsed once."""
        split = [sentences(text) for text in texts]
        distinct = sorted({sentence.strip() for of_text in split for sentence in of_text}, key=lambda s: (len(s), s))
        written: dict[str, str] = {}
        for start in range(0, len(distinct), self.batch_size):
            batch = distinct[start : start + self.batch_size]
            written.update(zip(batch, self._write(batch), strict=True))
        return [
            kept(text, [written[sentence.strip()] for sentence in of_text])
            for text, of_text in zip(texts, split, strict=True)
        ]

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

            device = pick_device(self._device)
            otherwise = "; or use the parser 'grammar', which needs no model"
            with hub.loading("scene-graph parser", self.name, self.name, ScorerError, instead=otherwise):
                tokenizer = AutoTokenizer.from_pretrained(self.name)
                model, info = AutoModelForSeq2SeqLM.from_pretrained(
                    self.name, use_safetensors=True, output_loading_info=True
                )
            check_model(model, info, what=f"the scene-graph parser {self.name}", error=ScorerError)
            self._loaded = model.to(device).eval(), tokenizer
        return self._loaded

    def _write(self, batch: list[str]) -> list[str]:
        import torch

        model, tokenizer = self._model()
        prompts = [_PROMPT + sentence for sentence in batch]
        encoded = tokenizer(prompts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                **encoded.to(model.device),
                num_beams=_BEAMS,
                do_sample=False,
                max_length=_MAX_LENGTH,
                early_stopping=True,
                decoder_start_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.batch_decode(ids, skip_special_tokens=True)


def kept(text: str, written: Sequence[str]) -> SceneGraph:
    """Return the graph that the model wrote for a text's sentences, without objects that are not nouns of the text."""
    net = wordnet()
    nouns: set[str] = set()
    for sentence in sentences(text):
        tokens = words(sentence)
        nouns |= {net.lemma(token, "n") for token, letter in zip(tokens, tag(tokens), strict=True) if letter == "N"}
    objects: dict[str, None] = {}
    attributes: dict[tuple[str, str], None] = {}
    relations: dict[tuple[str, str, str], None] = {}

    def thing(name: str) -> str | None:
        lemma = net.lemma(name, "n")
        if lemma not in nouns and not all(part in nouns for part in lemma.split(" ")):
            return None
        objects.setdefault(lemma)
        return lemma

    for graph in written:
        for fact in _FACT.findall(_MARKS.sub("", graph.lower())):
            parts = [part.strip() for part in fact.split(",")]
            subject = thing(parts[0]) if parts[0] else None
            if len(parts) != 3 or not all(parts):
                continue
            if parts[1] != "is":
                target = thing(parts[2])
                if subject and target:
                    relations.setdefault((subject, parts[1], target))
            elif subject and not parts[2].isdigit() and " of" not in parts[2]:
                attributes.setdefault((subject, net.lemma(parts[2], "a")))
    return SceneGraph(tuple(objects), tuple(attributes), tuple(relations))
