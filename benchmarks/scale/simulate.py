"""What a large captioning job takes: a cost model, and a simulation of lost workers; docs/scale.md holds its tables.

    python -m benchmarks.scale.simulate                  # the tables, as docs/scale.md has them
    python -m benchmarks.scale.simulate --gpu-hour 1.20 --peak 312 --images 5e7

Everything is a formula of a model's numbers (FLOPs) and of parameters that are named; nothing was measured. The
simulation draws the life of every worker and lets it make parts as `captune caption --engine ray` does: a lost worker
loses the part that it was making, starts again (the model is loaded), and makes the part again. The formula beside it
is what one would expect; the two have to agree.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from dataclasses import dataclass, replace

TERA = 1e12
BATCHED, PLAIN = "vLLM or a server", "in the process"


@dataclass(frozen=True)
class Model:
    """A captioner's numbers, from its published configuration.

    Attributes:
        vision: parameters of the vision tower.
        language: parameters of the language model that a token goes through (embeddings left out).
        patches: patches of an image.
        image_tokens: tokens that the language model reads of an image.
    """

    name: str
    vision: float
    language: float
    patches: int
    image_tokens: int

    def tera_flops(self, prompt: int, caption: int) -> float:
        """10^12 operations an image: 2 for each parameter that each patch or token goes through."""
        tower = 2 * self.vision * self.patches
        text = 2 * self.language * (self.image_tokens + prompt + caption)
        return (tower + text) / TERA


MODELS = (
    Model("0.25B (SmolVLM-256M, one 512-pixel tile)", 93e6, 106e6, 1024, 64),
    Model("2B (Qwen2-VL-2B, 448 x 448)", 665e6, 1.31e9, 1024, 256),
    Model("7B (Qwen2-VL-7B, 448 x 448)", 665e6, 6.53e9, 1024, 256),
)


@dataclass(frozen=True)
class Plan:
    """The parameters; prices and speeds are those of nobody in particular: put in your own.

    Attributes:
        peak: of a GPU, in 10^12 operations a second (bfloat16, dense).
        batched: the share of it that a server or vLLM reaches with full batches. An assumption.
        plain: the share that batches of 32 in the process reach. An assumption.
        gpu_hour: dollars.
        terabyte_month: dollars for a terabyte in an object store for a month.
        thousand_puts: dollars for 1,000 objects written.
        prompt: tokens beside the image.
        caption: tokens written.
        image_bytes: of an image.
        caption_bytes: of a caption with its id in a part.
        lost_every: hours that a preemptible worker lives on average.
        start: seconds until a worker makes captions (process, weights).
        days: in which a job has to be done, which gives the number of GPUs.
    """

    peak: float = 312.0
    batched: float = 0.35
    plain: float = 0.10
    gpu_hour: float = 2.0
    terabyte_month: float = 23.0
    thousand_puts: float = 0.005
    prompt: int = 20
    caption: int = 40
    image_bytes: float = 100e3
    caption_bytes: float = 160.0
    lost_every: float = 6.0
    start: float = 120.0
    days: float = 7.0


def speed(model: Model, plan: Plan, engine: str) -> float:
    """Images a second and GPU."""
    share = plan.batched if engine == BATCHED else plan.plain
    return plan.peak * share / model.tera_flops(plan.prompt, plan.caption)


def part_size(images: float) -> int:
    """Images of a part, as `captune.inference.ray_engine.part_rows` chooses them at a batch size of 32."""
    window = 16 * 32
    return window * min(16, max(1, int(images) // (1000 * window)))


def expected_loss(part_seconds: float, plan: Plan) -> float:
    """The share of GPU time that lost workers cost, by formula.

    Lives are exponential with mean M. A part of T seconds that is made until it is made once takes M (e^(T/M) - 1)
    seconds of work on average, and each of the e^(T/M) - 1 losses takes a start of S seconds besides.
    """
    mean = plan.lost_every * 3600
    losses = math.expm1(part_seconds / mean)
    spent = mean * losses + losses * plan.start
    return 1 - part_seconds / spent


def simulate(parts: int, part_seconds: float, workers: int, plan: Plan, seed: int = 0) -> tuple[float, float, float]:
    """Let workers make parts, each lost at random times, until all are made.

    Returns:
        The share of the workers' time that was lost, the hours that the job took, and how many workers were lost.
    """
    draw = random.Random(seed)
    mean = plan.lost_every * 3600
    left = parts
    lost = 0
    spent = 0.0
    end = 0.0
    queue = [(plan.start, worker, plan.start + draw.expovariate(1 / mean)) for worker in range(workers)]
    heapq.heapify(queue)
    while queue:
        now, worker, dies = heapq.heappop(queue)
        if not left:
            continue
        left -= 1
        finish = now + part_seconds
        while finish > dies:  # the part is handed out again; here to the worker that takes the lost one's place
            lost += 1
            spent += dies - now + plan.start
            now = dies + plan.start
            dies = now + draw.expovariate(1 / mean)
            finish = now + part_seconds
        spent += part_seconds
        end = max(end, finish)
        heapq.heappush(queue, (finish, worker, dies))
    return 1 - parts * part_seconds / spent, end / 3600, lost


def number(value: float) -> str:
    """Three digits that can be read."""
    if value >= 1e6:
        return f"{value / 1e6:,.3g} million" if value < 1e9 else f"{value / 1e9:,.3g} billion"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Bytes that can be read."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def costs(plan: Plan) -> str:
    """What an image takes, by model and engine."""
    rows = []
    for model in MODELS:
        work = model.tera_flops(plan.prompt, plan.caption)
        rows.append(
            [
                model.name,
                f"{work:.2f}",
                *(number(speed(model, plan, engine)) for engine in (PLAIN, BATCHED)),
                number(1e6 / speed(model, plan, BATCHED) / 3600),
                number(cost(model, plan, 1e6)),
            ]
        )
    head = ["model", "10^12 FLOPs an image", f"images/s, {PLAIN}", f"images/s, {BATCHED}"]
    return table([*head, "GPU hours a million", "dollars a million"], rows)


def cost(model: Model, plan: Plan, images: float) -> float:
    """Dollars of GPU time by the engine with full batches, without losses."""
    return images / speed(model, plan, BATCHED) / 3600 * plan.gpu_hour


def plans(plan: Plan, totals: tuple[float, ...]) -> str:
    """GPU hours, GPUs, money and storage of whole jobs."""
    rows = []
    for images in totals:
        for model in MODELS:
            hours = images / speed(model, plan, BATCHED) / 3600
            gpus = max(1, math.ceil(hours / (plan.days * 24)))
            storage = images * plan.image_bytes / 1e12 * plan.terabyte_month
            rows.append(
                [
                    *(number(images), model.name.split(" ")[0], number(hours), number(gpus)),
                    *(number(hours / gpus / 24), number(hours * plan.gpu_hour), number(storage)),
                ]
            )
    head = ["images", "model", "GPU hours", f"GPUs for {plan.days:.0f} days", "days", "dollars of GPU"]
    return table([*head, "dollars a month for the images"], rows)


MANIFEST_LINE = 190  # bytes of a part's entry in the manifest, without bad images
JOB_LIMIT = 10**8  # images of one job: its driver keeps 8 bytes for each id, and a line of the manifest for each part


def files(plan: Plan, totals: tuple[float, ...]) -> str:
    """Parts and files of whole jobs."""
    rows = []
    for images in totals:
        jobs = math.ceil(images / JOB_LIMIT)
        per_job = images / jobs
        length = part_size(per_job)
        parts = math.ceil(per_job / length) * jobs
        rows.append(
            [
                *(number(images), number(jobs), number(length), number(parts), size(images * plan.image_bytes)),
                *(size(images * plan.caption_bytes), size(parts / jobs * MANIFEST_LINE), size(8 * per_job)),
                number(2 * parts / 1000 * plan.thousand_puts),
            ]
        )
    head = ["images", "jobs", "images a part", "parts", "images stored", "captions stored", "a job's manifest"]
    return table([*head, "a job's ids in memory", "dollars of puts"], rows)


def losses(plan: Plan) -> str:
    """What preemption costs: formula and simulation."""
    rows = []
    for model in MODELS:
        for images, length in ((1e6, 512), (1e6, 8192), (1e8, 8192)):
            seconds = length / speed(model, plan, BATCHED)
            hours = images / speed(model, plan, BATCHED) / 3600
            workers = max(1, math.ceil(hours / (plan.days * 24)))
            parts = math.ceil(images / length)
            runs = [simulate(parts, seconds, workers, plan, seed) for seed in range(max(1, 200_000 // parts))]
            share, took, lost = (sum(values) / len(runs) for values in zip(*runs, strict=True))
            rows.append(
                [
                    *(model.name.split(" ")[0], number(images), number(length), f"{seconds / 60:.2g} min"),
                    *(number(workers), number(lost), f"{expected_loss(seconds, plan):.2%}", f"{share:.2%}"),
                    number(took / 24),
                ]
            )
    head = ["model", "images", "images a part", "a part takes", "GPUs", "workers lost", "lost time, formula"]
    return table([*head, "lost time, simulated", "days"], rows)


def page(plan: Plan, totals: tuple[float, ...] = (1e6, 1e8, 1e10)) -> dict[str, str]:
    """All tables by name, as docs/scale.md marks them."""
    return {
        "costs": costs(plan),
        "plans": plans(plan, totals),
        "files": files(plan, totals),
        "losses": losses(plan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--images", type=float, nargs="+", default=[1e6, 1e8, 1e10])
    args = parser.parse_args()
    plan = replace(Plan(), **{name: getattr(args, name) for name in vars(Plan())})
    for name, text in page(plan, tuple(args.images)).items():
        print(f"<!-- {name} -->\n{text}\n")


if __name__ == "__main__":
    main()
