"""What is loaded is whole, or refused with the names of what is wrong: the first three and a count.

One check for everything that holds weights (base models, adapters, mappers, encoders): the keys in both directions, the
shapes, and finite values. A model with one NaN answers nothing, and an adapter with other names changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from captune.errors import CaptuneError


def few(names: Iterable[Any]) -> str:
    """Return the first three of some names and how many more there are."""
    names = sorted(map(str, names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_keys(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    what: str,
    remedy: str,
    error: type[CaptuneError],
) -> None:
    """Compare what a file holds with what the model has, and see that all values are finite.

    Args:
        found: tensors by name.
        expected: tensors by name.
        what: the noun and name in the message.
        remedy: what to do.
        error: what is raised.

    Raises:
        CaptuneError: names what is missing, too many, of another shape, or not finite.
    """
    lacking, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    shapes = [
        f"{name} {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if tuple(found[name].shape) != tuple(expected[name].shape)
    ]
    refuse(what, lacking, extra, shapes, remedy=remedy, error=error)
    check_finite(found.items(), what=what, remedy=remedy, error=error)


def refuse(
    what: str,
    missing: Collection[Any] = (),
    unexpected: Collection[Any] = (),
    shapes: Collection[Any] = (),
    *,
    remedy: str,
    error: type[CaptuneError],
) -> None:
    """Raise `error` if there is any name of a missing, unexpected or misshapen tensor."""
    kinds = (("missing", missing), ("not of this model", unexpected), ("of another shape", shapes))
    problems = [f"{len(names)} tensors are {kind} ({few(names)})" for kind, names in kinds if names]
    if problems:
        raise error(f"{what} cannot be used: {'; '.join(problems)}. {remedy}")


def check_finite(tensors: Iterable[tuple[str, Any]], *, what: str, remedy: str = "", error: type[CaptuneError]) -> None:
    """Raise `error` where a tensor has NaN or infinite values; it names the tensors. One pass, without copies."""
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    bad = []
    for name, tensor in tensors:
        if tensor.dtype in plain and tensor.numel() and not tensor.is_meta:
            low, high = torch.aminmax(tensor.detach())
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                bad.append(name)
    if bad:
        remedy = remedy or "Take an older checkpoint, or save or download it again."
        raise error(f"{what} has values that are not finite in {len(bad)} tensors ({few(bad)}). {remedy}")


def check_model(
    model: Any,
    info: Mapping[str, Any] | None = None,
    *,
    what: str,
    error: type[CaptuneError],
    unused: Collection[str] = (),
) -> None:
    """Check a model that `from_pretrained(..., output_loading_info=True)` loaded: nothing missing, all finite.

    Args:
        model: of transformers.
        info: what was missing or mismatched.
        what: the noun and name in the message.
        error: what is raised.
        unused: parts of a name, such as "pooler", whose weights are not read.

    Raises:
        CaptuneError: names the tensors.
    """

    def read(name: Any) -> bool:
        return not any(part in str(name).split(".") for part in unused)

    def key(entry: Any) -> str:
        return str(entry[0] if isinstance(entry, (tuple, list)) else entry)

    info = info or {}
    refuse(
        what,
        [name for name in map(key, info.get("missing_keys", ())) if read(name)],
        shapes=[name for name in map(key, info.get("mismatched_keys", ())) if read(name)],
        remedy="It is an incomplete download, or the config of another model.",
        error=error,
    )
    check_finite(((n, p) for n, p in model.named_parameters() if read(n)), what=what, error=error)
