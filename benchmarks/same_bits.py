"""Does a change keep the bits? A small fixed run of every verb and variant, and a digest of all that the runs leave.

    python benchmarks/same_bits.py --output before.json             # everything, in a temporary folder
    python benchmarks/same_bits.py --output after.json --only grpo-cider report
    python benchmarks/same_bits.py --compare before.json after.json

Captune runs as `sys.executable -m captune`, so PYTHONPATH decides which. Every file of every run is an artefact, and so
are its exit code and what it prints on stdout. Tensors count by name, shape, type and bytes, JSON and YAML by their
content, other files by theirs. What differs from run to run or says where, when and with what it was made is taken out
first: `DROPPED` keys and `SCRUBBED` texts; of `UNREAD` files it counts only that they are there. Digests of one machine
do not compare with another's. One verb is left out: `storybook` trains for minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

TRAIN, NEW, VAL = "storybook:train?n=16&seed=3", "storybook:unlabelled?n=16&seed=3", "storybook:val?n=6&seed=3"
BOTH = f"--model storybook --seed 7 --evaluation '{VAL}' --device cpu --batch-size 4"
TUNE, ZERO, AFTER = f"{BOTH} --images '{TRAIN}'", f"{BOTH} --images '{NEW}'", "--adapter sft-lora/adapter"
SAMPLE = "--max-steps 4 --num-generations 4 --temperature 0.9 --max-new-tokens 24 --learning-rate 2e-3"
FIT = "--max-steps 3 --mapper-epochs 2 --max-new-tokens 24"
PARTS = f"--image-encoder storybook-clip --language-model storybook-lm --images '{TRAIN}' --evaluation '{VAL}' --seed 7"
STAGES = "--mle-batch-size 8 --scst-steps 3 --scst-batch-size 4 --num-generations 3 --max-new-tokens 20"
CAPTION = f"--model storybook --images '{VAL}' --seed 7 --device cpu --batch-size 4"
SCORE = f"caption-greedy.jsonl caption-beams.jsonl --references '{VAL}' --bootstrap 200 --seed 7 --paired --json"
#: name -> its command; what it writes is called like it. A run that names another needs it, and comes after it.
RUNS = {
    "sft-lora": f"sft {TUNE} --max-steps 30 --learning-rate 4e-3 --warmup-steps 3 --save-steps 20 --lora-dropout 0.05",
    "sft-connector": f"sft {TUNE} --max-steps 4 --connector --image-dropout 0.3 --lora-r 8 --lora-alpha 16",
    "sft-full": f"sft --config sft.yaml --no-connector --limit 12 --evaluation '{VAL}'",
    "vizer-reward": f"vizer {ZERO} {FIT} --rounds 2 --whitened 8 --num-generations 4 --guidance 2 --mapper-samples 3 "
    "--beta 0.05 --repetition-weight 0.5 --width 64 --depth 3 --mapper-learning-rate 2e-3 --accept-reward",
    "vizer-latent": f"vizer {ZERO} {FIT} --objective latent --mapper-captions '{TRAIN}' --mapper-size 12 --no-centred "
    "--whitened 0 --feature tower --pool mean --caption-pool last --shift --beta 0.1",
    "vizer-through": f"vizer {ZERO} {FIT} --objective straight_through --blind --whitened 8 --temperature 0.8",
    "vizer-paper": f"vizer {ZERO} --preset paper --max-steps 3 --max-new-tokens 24",
    "grpo-cider": f"grpo {TUNE} {SAMPLE} {AFTER} --reward cider --watch-steps 2 --patience 0 --watch clip,-length",
    "grpo-sum": f"grpo {TUNE} {SAMPLE} --reward 'clip + 0.1*cider' --watch-steps 2 --patience 1 --beta 0.2",
    "grpo-reused": f"grpo {TUNE} {SAMPLE} --reward cider --updates-per-generation 2 --num-iterations 2 --watch none",
    "corpus-flat": f"corpus build --captions '{TRAIN}' --batch-size 8 --device cpu",
    "corpus-ivf": f"corpus build --captions '{VAL}' --index ivf --text-encoder all-MiniLM-L6-v2 --device cpu",
    "corpus-hnsw": f"corpus build --captions '{TRAIN}' --index hnsw --image-encoder storybook-clip --device cpu",
    "grpo-cim": f"grpo {ZERO} --max-steps 3 --preset cim --corpus corpus-flat --gradient-checkpointing --epochs 1",
    "grpo-latent": f"grpo {ZERO} {SAMPLE} --reward vizer:vizer-reward/mapper --latent vizer-reward/mapper "
    "--latent-weight 0.2 --keep-vision --gradient-accumulation-steps 2",
    "scst-greedy": f"scst {TUNE} {SAMPLE} {AFTER} --reward cider --baseline greedy",
    "scst-mean": f"scst {TUNE} {SAMPLE} {AFTER} --reward 'cider + 0.5*clip' --baseline mean --no-end-token --beta 0.1",
    "har-lora": f"har {PARTS} {STAGES} --mle-steps 30 --mle-learning-rate 3e-3 --num-prefix-tokens 4 --reward cider",
    "har-full": f"har {PARTS} {STAGES} --mle-steps 10 --image-feature patches --full --baseline mean",
    "sc-mean": f"sc-captioner {TUNE} {SAMPLE} {AFTER} --baseline mean --unchanged -1 --beta 0.1",
    "sc-none": f"sc-captioner {TUNE} {SAMPLE} {AFTER} --baseline none --elements grammar",
    "caption-greedy": f"caption {CAPTION} {AFTER} --limit 5 --dtype float32",
    "caption-beams": f"caption {CAPTION} --num-beams 3 --max-new-tokens 16",
    "caption-sampled": f"caption {CAPTION} {AFTER} --temperature 0.7",
    "caption-prompt": f"caption {CAPTION} --prompt 'What is to be seen here?'",
    "caption-har": f"caption --model har-lora/captioner --adapter har-lora/adapter --images '{VAL}' --device cpu",
    "caption-cfg": f"caption {CAPTION} --decoder cfg:2.0",
    "caption-contrastive": f"caption {CAPTION} --decoder 'contrastive:0.5?beta=0.2'",
    "caption-best": f"caption {CAPTION} --decoder best-of:8:clip",
    "caption-corrected": f"caption {CAPTION} --adapter sc-mean/adapter --decoder self-correct",
    "caption-zerocap": f"caption --images '{VAL}' --limit 2 --seed 7 --device cpu --max-new-tokens 8 --prompt 'a' "
    "--language-model storybook-lm --image-encoder storybook-clip --decoder 'zerocap:?steps=2&top_k=64'",
    "score-references": f"evaluate {SCORE} --no-cache --scorers 'bleu,rouge,cider,cider:?eos=1,bertscore,sbert,capture,"
    "bertscore:?layer=3&idf=1,sbert:?refs=max,objects,objects:objects.json,attributes,relations,cider + 0.5*rouge,"
    "chair,chair:objects.json?vocabulary=words.json'",
    "score-images": f"evaluate {SCORE} --cache score-images --scorers 'clip,clip:?w=1&prefix=,storybook,"
    "cycle:?seed=1,bias,self_retrieval:?n=3&seed=1&k=1,2,bias:groups.json?by=clip&margin=0.01,vizer:vizer-reward/mapper,"
    "health,length,repetition,repetition:2,diversity,self_bleu,vizer:vizer-latent/mapper,clip - 0.1*length'",
    "score-corpus": f"evaluate {SCORE} --cache score-corpus --scorers 'grc:corpus-flat,qir:corpus-flat,"
    "qir:corpus-ivf?index=ivf,grc:corpus-flat?k=3&own=1&distinct=0&index=device,grc:corpus-hnsw?index=hnsw&effort=16'",
    "score-asked": f"evaluate {SCORE} --no-cache --scorers 'judge:SERVER,judge:SERVER?reference=1,"
    "relation_qa:questions.json?model=SERVER,species:labels.csv?model=SERVER'",
    "score-all": f"evaluate caption-sampled.jsonl --images '{VAL}' --references '{VAL}' --scorers all --no-cache "
    "--json --bootstrap 200",
    "score-table": f"evaluate caption-greedy.jsonl caption-beams.jsonl --references '{VAL}' --paired",
    "scorers-json": "scorers --json",
    "scorers-list": "scorers",
    "doctor": "doctor --json",
    "demo": "demo --images 'storybook:unlabelled?n=64&seed=3' --labelled 'storybook:train?n=2&seed=3' "
    "--test 'storybook:test?n=4&seed=3' --seed 7",
    "report": "report sft-lora vizer-reward grpo-cider scst-greedy har-lora",
}
IDS = [f"val-3-{i:06d}" for i in range(6)]
#: files that the commands name
FILES = {
    "sft.yaml": f"model: storybook\nimages: {TRAIN}\nseed: 7\ndevice: cpu\nmax_steps: 4\nbatch_size: 3\nfull: true\n"
    "gradient_accumulation_steps: 2\nlearning_rate: 0.0005\nweight_decay: 0.02\ngroup_by_length: true\n"
    "prompt: Tell me.\n",
    "objects.json": json.dumps({i: ["ball", "car"] for i in IDS}),
    "words.json": json.dumps({"ball": ["sphere"], "car": ["auto"], "tree": ["palm tree"], "bird": [], "cat": []}),
    "groups.json": json.dumps({"colour": [["red", "green"], ["white", "yellow"]], "size": [["big", "small"]]}),
    "questions.json": json.dumps({i: {"Is it on the left?": "Yes", "Is it above?": "No"} for i in IDS}),
    "labels.csv": "image_id,kind,breed\n" + "".join(f"{i},{'ab'[n % 2]},{'abcd'[n % 4]}1\n" for n, i in enumerate(IDS)),
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
               "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
#: keys whose values are left out; meteor and spice need Java
DROPPED = re.compile(r"versions|\w*_version|command|base_model_name_or_path|(\w+_)?(runtime|per_second|seconds|time)|"
                     r"meteor|spice")  # fmt: skip
#: texts that are replaced: the commit, places, and what a clock says on a report's curves and in the demo's table
SCRUBBED = {
    r"\b[0-9a-f]{40}(\+changes)?\b": "COMMIT",
    r"127\.0\.0\.1:\d+": "SERVER",
    r"[\d.]+ GiB free": "N GiB free",
    r"<figure><figcaption>[^<]*(runtime|per_second|_time)\b.*?</figure>": "",
    r'<td class="num">[\d.]+</td></tr>': "</tr>",
    r"[\d.]+ minutes": "N minutes",
    r"(?<=\d) {2,}\d+$": " N",
}
PACKAGE = str(Path(str(getattr(find_spec("captune"), "origin", "captune is not there"))).parent)
#: torch's pickles, and trl's card, whose tags come in any order
UNREAD = re.compile(r"\.(pt|pth|bin)$|/round-\d+/README\.md$")
SHOWN = 20_000  # characters of an artefact's content that are kept beside its digest; scores are kept whole


class Oracle(BaseHTTPRequestHandler):
    """A chat server for the scorers that ask one: each answer's probability comes of a digest of the question."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        luck = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
        tokens = zip([*"ABCDE", "Yes", "No", "Unknown"], luck, strict=False)
        top = [{"token": token, "logprob": -1 - byte / 64} for token, byte in tokens]
        reply = json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        pass


def needed(names: list[str]) -> list[str]:
    """The runs of these names and those whose results they use, in the order of `RUNS`."""
    wanted, left = set[str](), list(names)
    while left:
        name = left.pop()
        wanted.add(name)
        left += [other for other in re.findall(r"[\w-]+", RUNS[name]) if other in RUNS and other not in wanted]
    return [name for name in RUNS if name in wanted]


def run(name: str, folder: Path, server: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; where the verb writes, it writes to the run's name."""
    words = shlex.split(RUNS[name].replace("SERVER", server))
    ending = {"caption": ".jsonl", "report": ".html", "evaluate": None, "scorers": None, "doctor": None}
    if (suffix := ending.get(words[0], "")) is not None:
        words += ["--output", name + suffix]
    done = subprocess.run([sys.executable, "-m", "captune", *words], cwd=folder, env={**os.environ, **ENVIRONMENT},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def record(names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The artefacts of runs, made in an empty folder."""
    for file, text in FILES.items():
        (folder / file).write_text(text, encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Oracle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found: dict[str, Any] = {}
    print(f"captune of {PACKAGE}", file=sys.stderr)
    for place, name in enumerate(names, 1):
        start = time.perf_counter()
        code, out, err = run(name, folder, f"http://127.0.0.1:{server.server_port}/v1#oracle")
        found |= {f"{name}.exit": code, f"{name}.stdout": parsed(out)}
        print(f"{place}/{len(names)} {name}: exit {code}, {time.perf_counter() - start:.1f} s", file=sys.stderr)
        if code:
            print(*err.splitlines()[-5:], sep="\n", file=sys.stderr)
    server.shutdown()
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in FILES)
    found |= {path.relative_to(folder).as_posix(): content(path) for path in paths}
    return {name: entry(name, plain(found[name], folder)) for name in sorted(found)}


def content(path: Path) -> Any:
    """What of a file counts."""
    if UNREAD.search(path.as_posix()):
        return "there"
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = {name: about for name, about in json.loads(data[8:start]).items() if name != "__metadata__"}
        places = {name: slice(*(start + end for end in about["data_offsets"])) for name, about in header.items()}
        return {n: f"{header[n]['dtype']} {header[n]['shape']} {sha256(data[places[n]])}" for n in sorted(header)}
    if path.suffix in (".yaml", ".json", ".jsonl", ".md", ".html"):
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text) if path.suffix == ".yaml" else parsed(text)
    return sha256(path.read_bytes())


def parsed(text: str) -> Any:
    """JSON, lines of JSON, or lines of text."""
    try:
        return json.loads(text)
    except ValueError:
        lines = text.splitlines()
        return [json.loads(line) if re.match(r"\{.*\}$", line) else line for line in lines]


def plain(value: Any, folder: Path) -> Any:
    """The value without what `DROPPED` and `SCRUBBED` take out, and without the folder's own path."""
    if isinstance(value, dict):
        items = sorted((str(plain(str(key), folder)), item) for key, item in value.items())
        return {key: plain(item, folder) for key, item in items if not DROPPED.fullmatch(key)}
    if isinstance(value, list):
        return [plain(item, folder) for item in value]
    if isinstance(value, str):
        for pattern, instead in {re.escape(str(folder)): "FOLDER", re.escape(PACKAGE): "PACKAGE", **SCRUBBED}.items():
            value = re.sub(pattern, instead, value)
    return value


def entry(name: str, value: Any) -> dict[str, Any]:
    """A digest, and the value itself where it is short or holds scores."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    keep = len(text) <= SHOWN or name.endswith(("scores.json", ".stdout"))
    return {"sha256": sha256(text.encode()), **({"value": value} if keep else {})}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, scalar) of everything in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    for key, item in items or ():
        yield from leaves(item, f"{path}/{key}")


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Prints the artefacts of the runs in both that differ, with the first places where they do; how many there are."""
    a_only, b_only = ({name for name in RUNS if f"{name}.exit" not in other} for other in (new, old))
    names = [n for n in sorted(old.keys() | new.keys()) if re.split("[./]", n)[0] not in a_only | b_only]
    count = 0
    for name in names:
        a, b = old.get(name), new.get(name)
        if a and b and a["sha256"] == b["sha256"]:
            continue
        count += 1
        print(f"{name}: " + ("differs" if a and b else "is new" if b else "is gone"))
        if a and b and "value" in a and "value" in b:
            then, now = dict(leaves(a["value"])), dict(leaves(b["value"]))
            places = [p for p in (then | now) if p not in then or p not in now or then[p] != now[p]]
            for place in places[:5]:
                print(f"    {place}: {str(then.get(place, '-'))[:70]} | {str(now.get(place, '-'))[:70]}")
            if len(places) > 5:
                print(f"    and {len(places) - 5} places more")
    print(f"{count} of {len(names)} artefacts of {len(RUNS) - len(a_only | b_only)} runs differ")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help="these runs and what they need")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in and keep (default: a temporary one)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two such files")
    args = parser.parse_args()
    if args.compare:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in args.compare)
        for name in old["versions"]:
            if old["versions"][name] != new["versions"].get(name):
                print(f"versions differ: {name} {old['versions'][name]} and {new['versions'].get(name)}")
        return int(compare(old["artefacts"], new["artefacts"]) > 0)
    if not args.output:
        parser.error("--output or --compare is needed")
    with tempfile.TemporaryDirectory() as temporary:
        artefacts = record(needed(args.only or list(RUNS)), (args.folder or Path(temporary)).resolve())
    known = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "numpy", "faiss-cpu")}
    args.output.write_text(json.dumps({"versions": known, "artefacts": artefacts}, indent=1, sort_keys=True) + "\n")
    failed = [name for name, own in artefacts.items() if name.endswith(".exit") and own["value"]]
    print(f"{len(artefacts)} artefacts in {args.output}; failed: {', '.join(failed) or 'none'}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
