"""The contrastive objective of an encoder pair, and the recall that judges it.

    L = 1/2 mean_i -log softmax_j(s t_i . v_j)_i  +  1/2 mean_i -log softmax_k(s v_i . t_k)_i

v_j are the images of a batch (j <= B), t_k their captions and further ones (k > B), s = exp(a) a learned inverse
temperature, at most 100 (Radford et al., ICML 2021). A caption that is also written of another image of the batch is no
negative for it. The further captions are hard negatives: of images elsewhere in the training data, near to a caption of
the batch in the frozen text encoder (after Faghri et al., BMVC 2018, who take the hardest of the batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from captune.errors import EncoderError
from captune.models.encoders.pair import Recall

LARGEST_SCALE = 100.0
RANKS = (1, 5, 10)
_DECIMALS = 6  # of a similarity, as in self-retrieval: what rounding can change is a tie


def info_nce(images: Tensor, texts: Tensor, log_scale: Tensor, excused: Tensor) -> Tensor:
    """Return L of the module, a scalar.

    Args:
        images: (B, D) unit vectors.
        texts: (B + M, D) unit vectors; text i < B is a caption of image i.
        log_scale: a, a scalar.
        excused: (B, B + M), whether text k is a caption of image i besides k = i, and so no negative.
    """
    logits = log_scale.clamp(max=math.log(LARGEST_SCALE)).exp() * images @ texts.T
    logits = logits.masked_fill(excused, float("-inf"))
    own = torch.arange(len(images), device=images.device)
    return (cross_entropy(logits[:, : len(images)].T, own) + cross_entropy(logits, own)) / 2


def recall(images: Tensor, texts: Tensor, owners: Sequence[int], source: str) -> Recall:
    """Measure retrieval among captioned images; a tie counts against.

    Args:
        images: (N, D) unit vectors.
        texts: (M, D) unit vectors.
        owners: of each text, the number of its image; each image has one text at least.
        source: what the images are.

    Raises:
        EncoderError: a vector is not finite, for which no comparison would count.
    """
    if not (bool(images.isfinite().all()) and bool(texts.isfinite().all())):
        raise EncoderError(f"recall on {source} cannot be measured: some vectors are not finite")
    owner = torch.as_tensor(owners)
    similarity = (texts @ images.T).double().round(decimals=_DECIMALS)  # (M, N)
    own = similarity.gather(1, owner[:, None])
    text_rank = (similarity >= own).sum(dim=1)  # itself counts: the best has rank 1
    best = torch.full((len(images),), -math.inf, dtype=torch.float64).scatter_reduce(0, owner, own[:, 0], "amax")
    others = owner[:, None] != torch.arange(len(images))[None]
    image_rank = 1 + ((similarity >= best[None]) & others).sum(dim=0)
    number, total = torch.bincount(owner, minlength=len(images)).tolist(), len(texts)
    return Recall(
        source=source,
        images=len(images),
        captions=total,
        text_to_image={str(k): _share(text_rank <= k) for k in RANKS},
        image_to_text={str(k): _share(image_rank <= k) for k in RANKS},
        random_text_to_image={str(k): round(min(1.0, k / len(images)), 4) for k in RANKS},
        random_image_to_text={
            str(k): round(
                sum(1 - math.comb(total - n, k) / math.comb(total, min(k, total)) for n in number) / len(number), 4
            )
            for k in RANKS
        },
    )


def mean_recall(found: Recall) -> float:
    """Return the mean of the six recalls, by which a step is chosen."""
    values = [*found.text_to_image.values(), *found.image_to_text.values()]
    return sum(values) / len(values)


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)
