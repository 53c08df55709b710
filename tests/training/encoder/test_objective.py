"""The contrastive loss and recall against what is computed one pair at a time."""

from __future__ import annotations

import math
import random

import pytest
import torch

from captune.errors import EncoderError
from captune.training.encoder.objective import LARGEST_SCALE, info_nce, mean_recall, recall


def units(rows: int, seed: int, width: int = 5) -> torch.Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def by_hand(images: torch.Tensor, texts: torch.Tensor, scale: float, excused: set[tuple[int, int]]) -> float:
    """The definition in the module, with Python's numbers."""
    number, every = len(images), len(texts)

    def similarity(image: int, text: int) -> float:
        return scale * sum(float(a) * float(b) for a, b in zip(images[image], texts[text], strict=True))

    total = 0.0
    for i in range(number):
        among = [j for j in range(number) if (j, i) not in excused]
        total += math.log(sum(math.exp(similarity(j, i)) for j in among)) - similarity(i, i)
        among = [k for k in range(every) if (i, k) not in excused]
        total += math.log(sum(math.exp(similarity(i, k)) for k in among)) - similarity(i, i)
    return total / (2 * number)


@pytest.mark.parametrize("further", [0, 3])
@pytest.mark.parametrize("pairs", [set(), {(0, 1), (1, 0), (2, 3)}])
def test_loss_equals_the_definition(further: int, pairs: set[tuple[int, int]]) -> None:
    images, texts = units(4, 1), units(4 + further, 2)
    excused = torch.zeros(4, 4 + further, dtype=torch.bool)
    for image, text in pairs:
        excused[image, text] = True
    found = float(info_nce(images, texts, torch.tensor(math.log(7.0)), excused))
    assert found == pytest.approx(by_hand(images, texts, 7.0, pairs), abs=1e-5)


def test_temperature_is_clamped_and_learned_below_the_clamp() -> None:
    images, texts, none = units(4, 1), units(4, 2), torch.zeros(4, 4, dtype=torch.bool)
    scale = torch.tensor(math.log(LARGEST_SCALE) + 3, requires_grad=True)
    loss = info_nce(images, texts, scale, none)
    assert float(loss.detach()) == pytest.approx(by_hand(images, texts, LARGEST_SCALE, set()), rel=1e-4)
    scale = torch.tensor(1.0, requires_grad=True)
    info_nce(images, texts, scale, none).backward()
    assert float(scale.grad) != 0


def test_recall_equals_sorting_one_query_at_a_time() -> None:
    chance = random.Random(3)
    owners = [image for image in range(30) for _ in range(chance.randint(1, 4))]
    images, texts = units(30, 4), units(len(owners), 5)
    texts = torch.nn.functional.normalize(texts + 0.8 * images[owners], dim=-1)
    found = recall(images, texts, owners, "x")
    similarity = (texts @ images.T).tolist()
    for k in (1, 5, 10):
        hits = [owners[t] in sorted(range(30), key=lambda i: -similarity[t][i])[:k] for t in range(len(owners))]
        assert found.text_to_image[str(k)] == pytest.approx(sum(hits) / len(hits), abs=1e-4)
        nearest = [sorted(range(len(owners)), key=lambda t: -similarity[t][i])[:k] for i in range(30)]
        hits = [any(owners[t] == i for t in nearest[i]) for i in range(30)]
        assert found.image_to_text[str(k)] == pytest.approx(sum(hits) / len(hits), abs=1e-4)
    assert found.images == 30
    assert found.captions == len(owners)
    six = [*found.text_to_image.values(), *found.image_to_text.values()]
    assert mean_recall(found) == pytest.approx(sum(six) / 6)


def test_random_level_is_what_random_vectors_get() -> None:
    owners = [i // 5 for i in range(100)]
    found = [recall(units(20, s), units(100, 1000 + s), owners, "x") for s in range(200)]
    for k in ("1", "5", "10"):
        for direction in ("text_to_image", "image_to_text"):
            mean = sum(getattr(one, direction)[k] for one in found) / len(found)
            assert getattr(found[0], f"random_{direction}")[k] == pytest.approx(mean, abs=0.02)


def test_equal_vectors_find_nothing() -> None:
    found = recall(torch.ones(20, 3), torch.ones(40, 3), [i // 2 for i in range(40)], "x")
    assert set(found.text_to_image.values()) == {0.0}
    assert set(found.image_to_text.values()) == {0.0}


def test_recall_refuses_vectors_that_are_not_finite() -> None:
    with pytest.raises(EncoderError, match="not finite"):
        recall(torch.tensor([[math.nan], [1.0]]), torch.ones(2, 1), [0, 1], "x")
