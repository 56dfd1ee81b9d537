"""Two processes with the real detectron2, on a CPU."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from detectron2_runs import COCO, config_of, job_folder

from eval_detection.config import DetectConfig
from eval_detection.evaluate import open_data, run
from siambench.errors import UserError

pytestmark = pytest.mark.detectron2


def in_process(config: DetectConfig, rank: int, port: int, log: str) -> None:
    """One of two processes as torchrun starts them."""
    world = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update(world, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with open(log, "w", encoding="utf-8") as sys.stderr:
        try:
            run(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def two_processes(config: DetectConfig, folder: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes and standard errors of the two processes of one run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eval_detection.detectron2_engine.engine"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = [
        context.Process(target=in_process, args=(config, rank, port, str(logs[rank])))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], [log.read_text() for log in logs]


def test_two_processes_share_a_batch_and_the_test_images(
    scenes: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """On CPUs, without a change to detectron2: its own synchronised batch norm, plain gloo."""
    changes = {**COCO, "max_iter": 20, "steps": [], "score_threshold": 0.0}
    config = config_of(scenes / "coco", backbone_file, tmp_path, **changes)
    codes, errors = two_processes(config, tmp_path)
    assert codes == [0, 0], errors
    assert "iterations: 20/20" in errors[0]
    assert "iterations" not in errors[1]
    found = json.loads((job_folder(tmp_path) / "predictions.json").read_text())
    data = open_data(config)
    images = list(dict.fromkeys(row["image_id"] for row in found))
    assert images == [s.id for s in data.test]  # each by one process, in the data set's order
    (path,) = (tmp_path / "records").glob("*.json")
    metrics = {m["name"]: m["value"] for m in json.loads(path.read_text())["metrics"]}
    for name, value in json.loads((job_folder(tmp_path) / "detectron2.json").read_text()).items():
        assert metrics[name] == pytest.approx(value, abs=0.01)


def test_two_processes_stop_together(scenes: Path, backbone_file: Path, tmp_path: Path) -> None:
    """When the loss is not finite: the first says so, the other is silent."""
    config = config_of(scenes, backbone_file, tmp_path, lr=1e30)
    codes, errors = two_processes(config, tmp_path)
    assert codes == [2, 2]
    assert "error: detect: " in errors[0]
    assert "Lower lr" in errors[0]
    assert "rror" not in errors[1]
