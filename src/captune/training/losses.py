"""Losses and their parts as pure functions of tensors; B captions of T tokens, G of them for each of N images."""

from __future__ import annotations

from torch import Tensor


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log p(token) of a sequence's tokens.

    Args:
        logits: (B, T, V), those that predict `ids`.
        ids: (B, T).
        temperature: what the tokens were sampled with.

    Returns:
        (B, T), with a gradient.
    """
    return (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def token_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(p || p_reference) at each token, exact over the vocabulary.

    Args:
        logits: (..., V) of the captioner, with a gradient.
        reference: (..., V) of the captioner that it is held to, without one.

    Returns:
        (...), in nats.
    """
    ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return for each of (N, G) rewards the mean of the image's other ones, NaN left out; (N, G)."""
    known = ~rewards.isnan()
    total, count = rewards.nansum(-1, keepdim=True), known.sum(-1, keepdim=True)
    return (total - rewards.nan_to_num()) / (count - known.long())


def scst_loss(logprobs: Tensor, mask: Tensor, rewards: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Return the policy gradient's loss - mean_i (R_i - b_i) sum_t log p(w_it) and the advantages R - b.

    Args:
        logprobs: (B, T) log p(w^s_t | w^s_<t, I), with a gradient.
        mask: (B, T), 1 on the tokens of the caption, its end token included.
        rewards: (B,), R(w^s); NaN where the reward cannot judge.
        baseline: (B,), b; where it or the reward is NaN the caption has no advantage.

    Returns:
        A scalar and (B,).
    """
    advantages = (rewards - baseline).nan_to_num().detach()
    return -(advantages * (logprobs * mask).sum(-1)).mean(), advantages
