"""Caption a folder of images from Python, resumably.

    python examples/caption_folder.py PHOTOS captions.jsonl [--model HuggingFaceTB/SmolVLM-Base]

Run it again after an interruption: images that have a caption are not captioned again.
"""

from __future__ import annotations

import argparse
from collections.abc import Container
from pathlib import Path

from captune import Captioner
from captune.data import BadImage, CaptionWriter, load_images


def main() -> None:
    """Caption every readable image of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a folder, or any source that captune knows")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="storybook")
    args = parser.parse_args()

    captioner = Captioner.load(args.model)
    images = load_images(args.images)

    def unfinished(done: Container[str]):
        for index, image_id in enumerate(images["image_id"]):
            if image_id not in done:
                try:
                    yield image_id, images[index]["image"]
                except BadImage as error:
                    print(f"skipped {error}")

    with CaptionWriter(args.output) as writer:
        for image_id, caption in captioner.caption(unfinished(writer.done), max_new_tokens=40):
            writer.write([{"image_id": image_id, "caption": caption}])
    print(f"{len(writer.done)} captions in {args.output}")


if __name__ == "__main__":
    main()
