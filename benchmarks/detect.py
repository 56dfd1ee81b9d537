"""Detection: seconds per iteration, peak memory and the loader's share, both engines on the same data.

Usage: OMP_NUM_THREADS=1 python benchmarks/detect.py [ROUNDS [ARCH PIXELS BATCH ROIS ITERATIONS]]. Linux
only. By default 3 rounds of resnet50, pictures of 128 px, batches of 2, 16 RoIs an image, 8 iterations;
on a machine with a GPU 800 px, 16, 512 and 40. detectron2's rows need detectron2 in the same
environment. Every measurement is a fresh process that trains for 2, for 2 and for 2 + ITERATIONS
iterations: the last difference is the iterations' time, without start-up, test and set-up: on a CPU the
processor's time, which other work on the machine hardly moves, on a GPU the wall's. Memory is the
highest resident set of the process, on a GPU torch's own peak. Loading happens in the training process
on a CPU, so that its share of the time is what it takes there; on a GPU it is what one of the 16
loader processes spends on a picture, over 16, as a share of an iteration.

Expected, before the first measurement on two Zen 4 cores: the torchvision engine as fast as detectron2 in
float32 (both wait for the same convolutions), 1.7 times as fast in bf16 with channels_last (pre-training
gained 1.9 to 2.1, and the RoI head's time is nearly all convolutions); the loader under 1 % of a step.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder

ROWS = [  # network, engine, bf16
    ("c4", "detectron2", False),
    ("c4", "torchvision", False),
    ("c4", "torchvision", True),
    ("fpn", "detectron2", False),
    ("fpn", "torchvision", False),
    ("fpn", "torchvision", True),
]
_SEEN = {"seconds": 0.0, "pictures": 0}  # what loading took in this process


def resident() -> int:
    """The highest resident set of this process so far, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


def timed(cls: type, name: str) -> None:
    """Count the time that a method takes, here and in every loader process alike."""
    real = getattr(cls, name)

    def method(self, *arguments):
        start = time.perf_counter()
        result = real(self, *arguments)
        _SEEN["seconds"] += time.perf_counter() - start
        _SEEN["pictures"] += 1
        return result

    setattr(cls, name, method)


def measure(network: str, engine: str, bf16: str, data: str, *sizes: str) -> None:
    """In a fresh process; the last line is seconds an iteration, peak bytes, loading's share."""
    import torch

    from eval_detection.config import DetectConfig
    from eval_detection.engines import detect
    from eval_detection.evaluate import open_data
    from siambench.checkpoints.source import load_backbone
    from siambench.evaluation import Job

    arch, (pixels, batch, rois, iterations) = sizes[0], map(int, sizes[1:])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if engine == "detectron2":
        from detectron2.data import DatasetMapper

        timed(DatasetMapper, "__call__")
    else:
        from eval_detection.torchvision_engine.loader import TrainImages

        timed(TrainImages, "__getitem__")
    common = {
        "backbone": f"random:{arch}",
        "data": data,
        "format": "coco",
        "train_sets": ["train2017"],
        "test_set": "val2017",
        "mask": True,
        "engine": engine,
        "network": network,
        "bf16": bf16 == "True",
        "device": device.type,
        "batch_size": batch,
        "reference_batch": batch,
        "rois_per_image": rois,
        "rpn_post_nms_test": 10,  # the one test image is not what is measured
        "lr": 1e-3,
        "steps": [],
        "warmup_iters": 0,
        "min_size_train": [pixels],
        "min_size_test": pixels,
        "anchor_sizes": [s * pixels // 800 + 8 for s in (32, 64, 128, 256, 512)],
        "precise_bn_iters": 0,
        "checkpoint_every": 10**6,
        "pooler_resolution": 7 if network == "fpn" else 14,
        "rpn_pre_nms_train": 2000 if network == "fpn" else 12_000,
        "rpn_post_nms_train": 1000 if network == "fpn" else 2000,
    }
    config = DetectConfig(**common)
    content = open_data(config)
    del content.test[1:]
    backbone = load_backbone(config.backbone)
    clock = time.perf_counter if cuda else time.process_time
    taken = []
    for count in (2, 2, 2 + iterations):  # the first is to warm up
        _SEEN.update(seconds=0.0, pictures=0)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(0, 0, device, 16 if cuda else 0, Path(folder), "key", "benchmark")
            start = clock()
            detect(backbone, content, DetectConfig(**common, max_iter=count), job)
            if cuda:
                torch.cuda.synchronize()
            taken.append(clock() - start)
    seconds = (taken[2] - taken[1]) / iterations
    peak = torch.cuda.max_memory_allocated() if cuda else resident()
    picture = _SEEN["seconds"] / max(_SEEN["pictures"], 1)
    share = picture * batch / (16 if cuda else 1) / seconds if _SEEN["pictures"] else None
    print(json.dumps([seconds, peak, share]))


def main(rounds: int, sizes: list[str]) -> None:
    """Measure every row in turn, ``rounds`` times; print a table."""
    from siambench.data.digit_scenes import DigitScenesConfig, make

    there = importlib.util.find_spec("detectron2") is not None
    rows = [row for row in ROWS if there or row[1] != "detectron2"]
    found: dict[tuple[str, str, bool], list[list[float]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = make(DigitScenesConfig(out=folder, images=200, size=max(int(sizes[1]) // 2, 32)))
        for number in range(rounds):
            for row in rows:
                command = [
                    sys.executable,
                    __file__,
                    "measure",
                    *map(str, row),
                    f"{data}/coco",
                    *sizes,
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                found[row].append(json.loads(done.stdout.splitlines()[-1]))
                print(number, *row, *found[row][-1], file=sys.stderr)
    print("| network | engine | s / iteration | ratio | peak memory | loading |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        seconds, peak, share = zip(*found[row], strict=True)
        first = found.get((row[0], "detectron2", False))
        ratio = "–"
        if first:
            each = [a[0] / b for a, b in zip(first, seconds, strict=True)]
            ratio = f"{statistics.median(each):.2f}"
        loading = "–" if share[0] is None else f"{100 * statistics.median(share):.1f} %"
        name = f"{row[1]}, bf16" if row[2] else row[1]
        print(
            f"| {row[0]} | {name} | {statistics.median(seconds):.3f} ({min(seconds):.3f} to "
            f"{max(seconds):.3f}) | {ratio} | {max(peak) / 2**30:.2f} GiB | {loading} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        import torch

        usual = ["resnet50", "800", "16", "512", "40"]
        if not torch.cuda.is_available():
            usual = ["resnet50", "128", "2", "16", "8"]
        given = sys.argv[2:]
        main(int((sys.argv[1:] or ["3"])[0]), given + usual[len(given) :])
