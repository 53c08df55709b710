"""Every kind of file that an image folder really holds: opened upright in RGB, or refused by name with a reason."""

from __future__ import annotations

import io
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from broken_images import BAD, GOOD, encode, photo, write_all
from PIL import Image, ImageFile

from captune.data import image_size, images, load_images, open_image
from captune.data.columns import Chosen, bounded
from captune.errors import BadImage

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    write_all(path)
    return path


@pytest.mark.parametrize("name", GOOD)
def test_good_files_open_as_loaded_rgb(folder: Path, name: str) -> None:
    image = open_image(folder / name)
    assert image.mode == "RGB"
    assert np.asarray(image).dtype == np.uint8
    assert open_image((folder / name).read_bytes()).tobytes() == image.tobytes()
    assert open_image({"bytes": None, "path": str(folder / name)}).tobytes() == image.tobytes()


@pytest.mark.parametrize(("name", "reason"), BAD.items())
def test_bad_files_are_refused_by_name(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        open_image(folder / name, item="7")
    assert re.search(reason, caught.value.why)
    assert (caught.value.item, str(caught.value)) == ("7", f"7: {caught.value.why}")


def test_exif_rotation_is_applied_and_not_left_to_be_applied_again() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 0, 20, 20))  # left half blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left half comes to the top
    upright = open_image(encode(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == BLUE
    assert upright.getpixel((10, 35)) == RED
    assert upright.getexif().get(0x0112, 1) == 1


def test_damaged_exif_does_not_make_an_image_bad() -> None:
    data = encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert open_image(data).size == photo().size


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    opened = np.asarray(open_image(encode(Image.fromarray(ramp), "PNG")))[..., 0]
    assert np.array_equal(opened.ravel(), np.arange(256))
    dark = np.full((4, 4), 300, np.uint16)  # a dark picture stays dark
    assert np.asarray(open_image(encode(Image.fromarray(dark), "PNG"))).max() == 1


def test_floating_point_greys() -> None:
    def opened(values: list[float]) -> list[int]:
        image = Image.fromarray(np.array([values], np.float32))
        return np.asarray(open_image(encode(image, "TIFF")))[0, :, 0].tolist()

    assert opened([0.0, 0.5, 1.0]) == [0, 128, 255]
    assert opened([0.0, 128.0, 255.0]) == [0, 128, 255]
    assert opened([-1000.0, 0.0, 1000.0]) == [0, 128, 255]
    assert opened([float("nan"), 0.5, 1.0]) == [0, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    if mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 4, 8))
        data = encode(image.convert(mode), "PNG")
    else:  # one colour of the palette, one grey, one RGB colour is declared transparent
        image = Image.new("RGB", (8, 8), RED)
        image.paste((0, 0, 0), (0, 0, 4, 8))
        image = image.convert(mode)
        right = image.getpixel((7, 0))
        data = encode(image, "PNG", transparency=right)
    opened = open_image(data)
    assert opened.getpixel((7, 4)) == WHITE
    assert opened.getpixel((0, 4)) == (0, 0, 0)


def test_cmyk_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    assert open_image(encode(image, "TIFF")).getpixel((8, 8)) == RED
    r, g, b = open_image(encode(image, "JPEG", quality=100)).getpixel((8, 8))
    assert (r > 250, g < 5, b < 5) == (True, True, True)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert open_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_in_half_is_refused_in_every_format(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(BadImage):
        open_image(data[: len(data) // 2], item="half")


def test_any_damage_is_a_bad_image_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        data = np.frombuffer(encode(photo(), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 12)] = rng.integers(0, 255, 12)
            try:
                assert open_image(damaged.tobytes()).mode == "RGB"
            except BadImage as error:
                assert error.why


def test_pixel_limit() -> None:
    data = encode(Image.new("L", (200, 100)), "PNG")
    assert open_image(data, max_pixels=20_000).size == (200, 100)
    with pytest.raises(BadImage, match="200 x 100 pixels, over the limit of 19,999"):
        open_image(data, max_pixels=19_999)


def test_a_bomb_is_refused_before_its_pixels_are_made(folder: Path) -> None:
    with pytest.raises(BadImage, match="bomb"):
        image_size(folder / "bomb.png")


def test_size_needs_only_the_header(folder: Path) -> None:
    assert image_size(folder / "truncated.jpg") == photo().size  # its header is whole
    assert image_size(photo()) == photo().size
    with pytest.raises(BadImage, match="empty"):
        image_size(folder / "empty.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        open_image(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadImage, match="not a regular file"):
        open_image(tmp_path / "folder.jpg")
    with pytest.raises(BadImage, match="holds no image"):
        open_image({"bytes": None, "path": None}, item="row 7")
    with pytest.raises(BadImage, match="got int"):
        open_image(7)


def test_bad_image_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "is empty")))
    assert (error.item, error.why, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")


def test_pil_images_pass_through_and_are_converted() -> None:
    assert open_image(Image.new("L", (3, 3), 7)).getpixel((0, 0)) == (7, 7, 7)
    lazy = Image.open(io.BytesIO(encode(photo(), "JPEG")[:-100]))
    with pytest.raises(BadImage, match="truncated"):
        open_image(lazy, item="lazy")


def test_c4_a_very_large_image_is_reduced_while_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (13_377, 13_377), 1).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 60_000
    opened = open_image(tmp_path / "bomb.png")
    assert opened.width * opened.height <= images.REDUCED_PIXELS and opened.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_c4_what_is_reduced_looks_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    quarters = Image.new("L", (64, 40), 0)
    quarters.paste(255, (32, 0, 64, 20))
    image = Image.fromarray(np.asarray(quarters).astype(np.uint16) * 257) if mode == "I;16" else quarters.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.tif", exif=exif)
    whole = open_image(tmp_path / "a.tif")
    monkeypatch.setattr(images, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(images, "REDUCED_PIXELS", 640)
    small = open_image(tmp_path / "a.tif")
    assert small.size == (20, 32) and whole.size == (40, 64)
    expected, got = (np.asarray(im.resize((4, 4), Image.Resampling.BOX)).astype(int) for im in (whole, small))
    assert np.abs(expected - got).max() <= 2


@pytest.mark.parametrize(("mode", "most"), [("I;16", 65535), ("I", 3_000_000), ("F", 1.0), ("F", 1000.0)])
def test_deep_pixels_are_averaged_too_on_the_scale_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, most: float
) -> None:
    board = (np.indices((60, 60)).sum(axis=0) % 2) * float(most)
    board[:30] /= 2  # what a strip of the upper half alone would be stretched from
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    Image.fromarray(board.astype(kind)).save(tmp_path / "a.tif")
    whole = np.asarray(open_image(tmp_path / "a.tif")).astype(float)
    monkeypatch.setattr(images, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(images, "REDUCED_PIXELS", 100)
    small = np.asarray(open_image(tmp_path / "a.tif")).astype(float)
    assert abs(whole.mean() - 95.6) < 1 and abs(small.mean() - whole.mean()) < 1
    assert abs(small[:4].mean() - whole[:24].mean()) < 2 and small[:4].mean() < small[-4:].mean() / 1.9


@pytest.mark.parametrize(
    ("head", "kind", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC", "pillow-heif"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL", "pillow-jxl-plugin"),
    ],
)
def test_kinds_of_plugins_name_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, kind: str, package: str
) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    (tmp_path / "a.jxl").write_bytes(head * 20)
    for image in (head * 20, tmp_path / "a.jxl"):
        with pytest.raises(BadImage, match=rf"is {kind}, which Pillow reads with a plugin: pip install {package}"):
            open_image(image, "a")
    with pytest.raises(BadImage, match=package):
        image_size(tmp_path / "a.jxl")


def test_a_plugin_is_registered_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pillow-heif whose opener reads PNG behind a HEIC head."""
    head = b"\0\0\0\x18ftypheic"
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")

    class Plugin(ImageFile.ImageFile):
        format = "HEIC"

        def _open(self) -> None:
            self.fp.seek(len(head))
            self.inner = Image.open(io.BytesIO(self.fp.read()))
            self._size, self._mode = self.inner.size, "RGB"

        def load(self) -> Any:
            self.im = self.inner.convert("RGB").im
            return self.im

    def register_heif_opener() -> None:
        Image.register_open("HEIC", Plugin, lambda start: start[4:8] == b"ftyp")

    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    assert image_size(head + file.getvalue()) == (3, 2)


def test_c4_batches_of_large_images_are_smaller(tmp_path: Path) -> None:
    """What corpus, scorers and mappers read: at most so many images, and at most so many pixels, opened as needed."""
    made = [Image.new("RGB", size) for size in ((10, 10), (10, 10), (10, 10), (30, 10), (5, 5), (60, 60), (5, 5))]
    assert [len(batch) for batch in images.opened(made, 3, pixels=300)] == [3, 1, 1, 1, 1]
    assert [len(batch) for batch in images.opened(made, 3)] == [3, 3, 1]
    assert [len(batch) for batch in images.opened([made[0]] * 7, 4, pixels=150)] == [4, 3]  # one image, of 7 captions
    assert [len(batch) for batch in images.opened(Chosen(made, [5, 0]), 4, pixels=150)] == [1, 1]


def test_c4_images_that_are_learned_from_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3000, 2000)).save(tmp_path / "a.png")
    dataset = load_images(str(tmp_path))
    assert bounded(dataset, 32)[0]["image"].size == (3000, 2000)
    assert bounded(dataset, 90)[0]["image"].size == (1500, 1000)  # 90 of them are 540 megapixels
    assert bounded(dataset, 10**6)[0]["image"].size == (1500, 1000)  # 2,048 x 2,048 is never reduced
