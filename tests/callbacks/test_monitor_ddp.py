"""The monitor on two real processes: each maps its share, both see what one process alone sees."""

import subprocess
import sys
import warnings

import monitor_ranks
import pytest
import torch
from processes import HELPERS, environment, free_port


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What both ranks of two told, and a process alone, under "ranks" and "alone"."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "alone").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor_ranks.run(folder / "alone", 1)
    port = free_port()
    address = [{"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, str(HELPERS / "monitor_ranks.py"), str(folder), "2"],
            env={name: value for name, value in environment(**more).items() if name != "PYTHONWARNINGS"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for more in address
    ]
    try:
        told = [process.communicate(timeout=150)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(text[-3000:] for text in told)
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {"folder": folder, "ranks": ranks, "alone": torch.load(folder / "alone" / "rank0.pt")}


def compare(one, other):
    """Two histories, to 1e-6."""
    assert len(one) == len(other) > 0
    for entry, twin in zip(one, other):
        assert entry == {name: value if value is None else pytest.approx(value, abs=1e-6) for name, value in twin.items()}


@pytest.mark.parametrize("case", ["five", "one", "groupcam", "resumed"])
def test_both_ranks_log_the_same_numbers_and_those_of_one_process(seen, case):
    """Five probes on two ranks, one probe without a label on two ranks, Group-CAM, and a resumed run."""
    first, second = (rank[case] for rank in seen["ranks"])
    alone = seen["alone"][case]
    assert first["history"] == second["history"] and first["metrics"] == second["metrics"]
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(first["weights"], alone["weights"])), "trained alike"
    compare(first["history"], alone["history"])
    assert len(first["metrics"]) == (1 if case == "resumed" else 3) and "saliency/change" in first["metrics"][0]
    assert any(0 < entry["mass_shift"] < 1 for entry in first["history"]), "something was measured"
    for name, kept in alone["state"]["reading"].items():
        assert torch.equal(kept, first["state"]["reading"][name]) or torch.allclose(
            kept.double(), first["state"]["reading"][name].double(), atol=1e-3
        )


def test_a_resumed_run_on_two_ranks_has_the_history_of_one_that_never_stopped(seen):
    compare(seen["ranks"][0]["resumed"]["history"], seen["ranks"][0]["five"]["history"])


def test_one_gather_a_look(seen):
    for rank in seen["ranks"]:
        for case in ("five", "one"):
            gathers = rank[case]["collectives"]
            assert len(gathers) == 4, "before training and after each of three epochs"
            assert all(len(names) <= 2 and sum("gather" in name for name in names) == 1 for names in gathers), gathers
    assert seen["alone"]["five"]["collectives"] == [[]] * 4


def test_all_ranks_watch_the_first_batch_of_rank_zero(seen):
    first, second = (rank["stream"] for rank in seen["ranks"])
    assert first["history"] == second["history"] and len(first["history"]) == 3
    assert first["state"]["fingerprint"] == second["state"]["fingerprint"] == seen["alone"]["stream"]["state"]["fingerprint"]


def test_all_ranks_watch_the_validation_images_of_rank_zero(seen):
    first, second = (rank["shards"] for rank in seen["ranks"])
    assert first["state"]["fingerprint"] == second["state"]["fingerprint"] == seen["alone"]["shards"]["state"]["fingerprint"]
    compare(first["history"], seen["alone"]["shards"]["history"])


def test_all_ranks_stop_at_the_same_epoch(seen):
    assert [rank["stopped"]["epochs"] for rank in seen["ranks"]] == [2, 2] and seen["alone"]["stopped"]["epochs"] == 2


def test_values_that_ranks_reduce_do_not_meet_the_monitors_collectives(seen):
    """A progress bar reads what is logged with sync_dist on rank zero alone: all ranks must have done so before they gather maps."""
    first, second = (rank["bar"] for rank in seen["ranks"])
    assert first["history"] == second["history"] and first["metrics"] == second["metrics"] and len(first["history"]) == 3
    compare(first["history"], seen["alone"]["bar"]["history"])


def test_no_warning_filter_is_left_behind(seen):
    """The advice to average what all ranks have alike is not given (see monitor_ranks.py), and nothing else is silenced."""
    for rank in seen["ranks"]:
        assert [rank[case]["filters"] for case in ("five", "stream", "stopped")] == [[]] * 3


def test_rank_zero_alone_writes(seen):
    names = sorted(path.name for path in (seen["folder"] / "five" / "groupcam" / "monitor").iterdir() if path.stem != "errors")
    assert names == ["epoch_00000.png", "epoch_00001.png", "epoch_00002.png", "film_strip.png", "probes.png"]
    lines = (seen["folder"] / "five" / "groupcam" / "monitor.jsonl").read_text().splitlines()
    assert len(lines) == 3
