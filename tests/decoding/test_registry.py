"""From a spec to a decoder, and the sentences that answer a wrong one."""

from __future__ import annotations

import pytest

from captune.decoding import DECODERS, load_decoder
from captune.errors import UnknownDecoder, UnknownScorer


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ("cfg", {"scale": 2.0}),
        ("cfg:1.5", {"scale": 1.5}),
        ("contrastive:0.5", {"alpha": 0.5, "beta": 0.1}),
        ("contrastive:0.5?beta=0.3", {"alpha": 0.5, "beta": 0.3}),
        ("contrastive:?beta=0", {"alpha": 1.0, "beta": 0.0}),
        ("best-of:8:clip", {"n": 8, "scorer": "clip"}),
        ("best-of:4:clip:storybook-clip?w=1 - 0.1*length", {"n": 4, "scorer": "clip:storybook-clip?w=1 - 0.1*length"}),
        ("zerocap", {"steps": 5, "fluency": 0.2, "step_size": 0.3, "norm_exponent": 0.9}),
        ("zerocap:?steps=2&fluency=0.5", {"steps": 2, "fluency": 0.5}),
    ],
)
def test_a_spec_gives_a_decoder_its_settings(spec: str, fields: dict) -> None:
    decoder = load_decoder(spec)
    assert {name: getattr(decoder, name) for name in fields} == fields


def test_every_decoder_of_the_list_loads_from_its_own_example() -> None:
    signatures = {load_decoder(load_decoder(name).example).signature for name in DECODERS}
    assert len(signatures) == len(DECODERS)


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("cgf:2", "did you mean 'cfg'"),
        ("bestof:8:clip", "did you mean 'best-of'"),
        ("cfg:strong", "'strong' is not a number, as in 'cfg:2.0'"),
        ("cfg:0", "must be more than 0"),
        ("cfg:nan", "is not a finite number"),
        ("contrastive:-1", "alpha: .* must be at least 0"),
        ("contrastive:1?beta=2", "beta: .* must be at most 1"),
        ("contrastive:1?gamma=2", "unknown setting 'gamma'"),
        ("best-of:0:clip", "n: .* must be at least 1"),
        ("best-of:many:clip", "'many' is not a whole number"),
        ("zerocap:3", "takes no argument"),
        ("zerocap:?step=3", "did you mean 'steps'"),
        ("zerocap:?temperature=0", "must be more than 0"),
    ],
)
def test_a_wrong_spec_is_answered_with_what_to_write(spec: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        load_decoder(spec)


def test_unknown_names_have_errors_of_their_own() -> None:
    with pytest.raises(UnknownDecoder, match="known: cfg, contrastive, best-of, self-correct, zerocap"):
        load_decoder("nucleus")
    with pytest.raises(UnknownScorer, match="did you mean 'clip'"):
        load_decoder("best-of:8:clop")
    with pytest.raises(ValueError, match="takes no argument, but was given '2'"):
        load_decoder("self-correct:2")


def test_whatever_decides_the_captions_is_in_the_signature() -> None:
    specs = ["cfg:2", "cfg:3", "contrastive:1", "contrastive:2", "contrastive:1?beta=0.2", "best-of:2:length",
             "best-of:3:length", "best-of:2:length - repetition", "zerocap", "zerocap:?top_k=8"]  # fmt: skip
    assert len({load_decoder(spec).signature for spec in specs}) == len(specs)
