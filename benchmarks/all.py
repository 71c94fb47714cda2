"""Every measurement of a machine in one command: `python benchmarks/all.py --cpu` (hours) or `--gpu` (ten minutes).

Each step is a script of this folder, which leaves its result file. What is done is noted in results/all_DEVICE_TORCH.json, so
that the same command goes on where it was stopped; a step whose command has changed is done again. A step that fails does not
end the others, and the status is then 1. `--dry-run` lists the steps; `--toy` runs them at a size that measures nothing.

On a CPU, photographs and published weights are read from the folder named by GROUPCAM_DATA. On a GPU none are needed, nor
jsonargparse: images and weights are random there, for only time and memory are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from common import RESULTS, filed

HERE = Path(__file__).parent
LIBRARIES = "pytorch_grad_cam torchcam captum"
CHECKED = "--methods groupcam,paper,paper-weights,gradcam"
QUICK = "--precision bf16 --channels-last"
ONE_THREAD = "--threads 1 --compile --only maps --repeats 7 --tag one_thread"
LITE = "--network timm/tf_efficientnet_lite0 --compile --only steps --repeats 5 --tag efficientnet"
SMALL = "--network resnet18 --size 64 --batch 2 --repeats 2"
TOY_ROWS = shlex.quote(str(Path(tempfile.gettempdir()) / "groupcam_toy_rows"))  # not where a measurement would find them
FEW = f"--images 2 --steps 2 --sanity-images 1 --methods gradcam,fast,centre --rows {TOY_ROWS} --restart"
PEERS = "--images 2 --groups 4 --repeats 1 --no-dear"
PROBES = "--images 32 --probes 2 --size 64 --epochs 2"


class Step(NamedTuple):
    """One script with its arguments, and those that make it toy-sized."""

    name: str
    words: str
    toy: str
    minutes: float  # about, on the machine it is for
    needs: str = ""  # modules beyond the package's own


CPU = [
    Step("maps", "speed.py --channels-last --batch 7 --compile --only maps profile --repeats 7", SMALL, 6),
    Step("maps on one thread", f"speed.py --channels-last --batch 7 {ONE_THREAD}", SMALL, 7),
    Step("steps", "speed.py --channels-last --batch 16 --compile --only steps --repeats 5", SMALL, 12),
    Step("steps of EfficientNet", f"speed.py --channels-last --batch 16 {LITE}", "--size 64 --batch 2 --repeats 2", 4),
    Step("in bf16", f"speed.py {QUICK} --batch 16 --compile --only maps steps --repeats 5", SMALL, 8),
    Step("scaling", "scaling.py --channels-last", "--batch 2 --size 32 --groups 4 --repeats 1", 6),
    Step("peers", "peers.py --channels-last --images 4 --repeats 3", PEERS, 6, LIBRARIES),
    Step(
        "peers on ResNet-50",
        "peers.py --channels-last --network resnet50 --images 4 --no-dear",
        f"--network resnet18 {PEERS}",
        6,
        LIBRARIES,
    ),
    Step("real input", "real_input.py --batch 8 --channels-last", "--batch 2 --steps 3 --rounds 1", 8),
    Step("insertion", "insertion_speed.py", "--images 1 --steps 2 --repeats 1", 5),
    Step("isolation", "isolation.py", "--steps 8 --warm-up 2", 1),
    Step("monitor", "monitor_cost.py", PROBES, 3),
    Step("memory", "memory.py", "--groups 4 --images 2 --size 64", 5),
    Step("pairs", "pairs.py", "--pairs 2", 5),
    Step(
        "fidelity",
        "fidelity.py --channels-last --threads 1",
        "--networks squeezenet efficientnet --photographs 4 --curves 2 --steps 2 --batch 4",
        60,
    ),
    Step("compiled maps", "agreement.py --channels-last --threads 1", "--images 2 --batch 2", 4),
    Step("ordering", "ordering.py --threads 1", FEW, 60),
    Step("ordering on EfficientNet", "ordering.py --threads 1 --network efficientnet --images 75 --sanity-images 1", FEW, 25),
    Step(
        "ordering beside other libraries",
        "ordering.py --threads 1 --images 24 --compare --rise 500 --tag peers "
        "--methods groupcam,paper-weights,fast,gradcam,centre",
        FEW,
        40,
        LIBRARIES,
    ),
    Step("re-initialised networks", f"ordering.py --only-sanity --threads 1 --sanity-images 40 {CHECKED}", FEW, 10),
    Step("fine-tuning", "cifar_finetune.py", "--images 64 --batch 32", 10, "jsonargparse"),
]
GPU = [
    Step(
        "tests",
        f"-m pytest -q -m gpu --rootdir {shlex.quote(str(HERE.parent))} {shlex.quote(str(HERE.parent / 'tests'))}",
        "",
        1,
        "pytest",
    ),
    Step(
        "maps and steps",
        f"speed.py {QUICK} --batch 32 128 256 --repeats 10 --compile",
        f"{SMALL} --precision fp32",
        4,
    ),
    Step(
        "of a network in fp32",
        "speed.py --channels-last --batch 32 --repeats 5 --compile --only maps steps --tag fp32",
        SMALL,
        1.5,
    ),
    Step(
        "images per pass",
        f"speed.py {QUICK} --batch 32 --repeats 10 --chunk 32 64 128 256 --only maps --tag chunks",
        f"{SMALL} --precision fp32 --chunk 2 4",
        1,
    ),
    Step(
        "scaling",
        f"scaling.py {QUICK} --network resnet50 --batch 32 64 128 256 --processes 1",
        "--network resnet18 --batch 2 --size 32 --groups 4 --repeats 1 --precision fp32",
        1,
    ),
    Step(
        "insertion",
        "insertion_speed.py --networks resnet50 --random --images 32",
        "--networks resnet18 --images 1 --steps 2 --repeats 1",
        1,
    ),
    Step("monitor", "monitor_cost.py --images 2048", PROBES, 0.5),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cpu", action="store_true", help="the measurements of docs/evidence.md")
    which.add_argument("--gpu", action="store_true", help="tests and speed on one GPU")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps")
    parser.add_argument("--again", action="store_true", help="do again what is done")
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run none")
    parser.add_argument(
        "--toy", action="store_true", help="run all on the CPU at a size that measures nothing, results in a temporary folder"
    )
    options = parser.parse_args()
    steps = GPU if options.gpu else CPU
    if options.only:
        if unknown := set(options.only) - {step.name for step in steps}:
            parser.error(f"no step {sorted(unknown)[0]!r}; there are {', '.join(step.name for step in steps)}")
        steps = [step for step in steps if step.name in options.only]
    on_gpu = options.gpu and not options.toy
    if on_gpu and not options.dry_run and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --toy runs the same steps on the CPU, to see that they work")
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    # Figures that measure nothing must not take the place of those that do.
    results = (
        Path(tempfile.gettempdir()) / "groupcam_toy_results" if options.toy and "GROUPCAM_RESULTS" not in os.environ else RESULTS
    )
    notes = results / f"{filed('all_gpu' if options.gpu else 'all', device)}.json"
    done = json.loads(notes.read_text()) if notes.is_file() else {}
    commands = {step.name: shlex.split(step.words + (f" {step.toy}" if options.toy else "")) for step in steps}
    rest = [step for step in steps if options.again or done.get(step.name, {}).get("command") != commands[step.name]]
    print(f"{len(rest)} of {len(steps)} steps to do, about {sum(step.minutes for step in rest):.0f} minutes ({notes.name})")
    failed = []
    for step in rest:
        words = commands[step.name]
        print(f"\n== {step.name}, about {step.minutes:g} min: python {' '.join(words)}", flush=True)
        if options.dry_run:
            continue
        if missing := [module for module in step.needs.split() if importlib.util.find_spec(module) is None]:
            print(f"skipped: {', '.join(missing)} not installed")
            failed.append(step.name)
            continue
        began = time.perf_counter()
        script = words if words[0] == "-m" else [str(HERE / words[0]), *words[1:]]
        status = subprocess.run([sys.executable, *script], env={**os.environ, "GROUPCAM_RESULTS": str(results)}).returncode
        seconds = round(time.perf_counter() - began)
        print(f"== {step.name}: {'done' if status == 0 else f'failed with status {status}'} after {seconds} s", flush=True)
        if status:
            failed.append(step.name)
            continue
        done[step.name] = {"command": words, "seconds": seconds}
        results.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(done, indent=1) + "\n")
    if failed:
        sys.exit(f"not done: {', '.join(failed)}; the same command does these again")
    if not options.dry_run:
        print("\nall done; `python benchmarks/tables.py` writes the tables")


if __name__ == "__main__":
    main()
