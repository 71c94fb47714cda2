"""Running tests in processes of their own: where they look, free ports, several ranks and what each wrote."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
# A process that keeps trials out of the folder that it is given.
HOLD = "import sys, time; from pathlib import Path; from groupcam_aug.recipes.trial.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def environment(**more):
    path = os.pathsep.join([str(HELPERS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    here = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    return {**inherited, **here, **more}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_ranks(folder, launch, **options):
    """What each rank wrote, by rank; fails with the ranks' errors, or when they hang."""
    name = "plain_ranks.py" if launch == "plain" else "ranks.py"
    script = [str(HELPERS / name), str(folder), json.dumps({"launch": launch, **options})]
    if launch == "spawn":
        calls = [([sys.executable, *script], environment(MASTER_PORT=free_port()))]
    elif launch == "torchrun":
        port = ["--master_port", free_port(), "--master_addr", "127.0.0.1"]
        calls = [([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *port, *script], environment())]
    else:
        port, key = free_port(), "NODE_RANK" if launch == "nodes" else "RANK"
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        calls = [([sys.executable, *script], environment(**address, **{key: str(rank)})) for rank in range(2)]
    running = [
        subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for call, env in calls
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(text[-3000:] for text in told)
    return {rank: torch.load(folder / f"rank{rank}.pt") for rank in range(2)}
