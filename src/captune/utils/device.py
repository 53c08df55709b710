"""Where a model runs when nobody says."""

from __future__ import annotations

from typing import Any

from captune.errors import SettingError


def pick_device(device: Any = None) -> Any:
    """Return `device`, or "cuda" if there is a GPU, else "cpu".

    Raises:
        SettingError: there is no such device.
    """
    import torch

    if device:
        try:
            asked = torch.device(device)
        except RuntimeError as error:
            raise SettingError(f"there is no device {device!r}: write cpu, cuda, cuda:1 or mps") from error
        if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
            raise SettingError(
                f"there is no {device} here, but {torch.cuda.device_count()} GPUs; `captune doctor` looks"
            )
        if (asked.type == "mps" and not torch.backends.mps.is_available()) or asked.type == "meta":
            raise SettingError(f"nothing can run on {device} here; leave the device out for the best there is")
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
