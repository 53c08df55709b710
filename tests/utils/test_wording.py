"""Numbers with their nouns."""

from captune.utils.wording import counted


def test_one_is_no_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 2000)] == ["0 images", "1 image", "2 images", "2,000 images"]
    assert [counted(n, "was", "were") for n in (1, 2)] == ["1 was", "2 were"]
