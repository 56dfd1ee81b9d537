"""Segmentation: pictures a second in training and testing, torchvision's reference FCN beside ours.

Usage: OMP_NUM_THREADS=1 python benchmarks/segment.py [ROUNDS [ARCH CROP BATCH ITERATIONS TESTED]]. Linux
only. By default 3 rounds of resnet50, crops of 128 px, batches of 4, 6 iterations, 12 test pictures; on
a machine with a GPU 512 px, 16, 60 and 200. The reference is torchvision's fcn_resnet with auxiliary
head, trained and tested as its references/segmentation/train.py does (its transforms, cross-entropy of
both outputs with 0.5 for the second, test picture by test picture), written anew here. Ours is measured
with the same network (one convolution in the head) and with the protocol's (two and one over both).
Every measurement is a fresh process; training is the difference between 2 + ITERATIONS and 2
iterations, loading included (in the training process on a CPU), on a CPU in processor seconds, which
other work on the machine hardly moves, on a GPU in wall seconds. All train on the same pictures, at the
same scale and crop.

Expected, before the first measurement on two Zen 4 cores: with the same network at least the
reference's speed in float32 (both wait for the same convolutions; channels_last may gain a tenth), 1.6
times in bf16; the protocol's heads cost two fifths more multiplications. Loading 2 to 3 times as fast as
the reference's transforms; the confusion matrix under 1 % of a test on a CPU.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder

ROWS = [  # what, network, bf16
    ("training", "reference", False),
    ("training", "same", False),
    ("training", "same", True),
    ("training", "protocol", False),
    ("training", "protocol", True),
    ("testing", "reference", False),
    ("testing", "same", False),
    ("testing", "protocol", False),
    ("loading", "reference", False),
    ("loading", "same", False),
]
CLASSES = 11  # of the digit scenes


def clock() -> float:
    """Processor seconds; beside a GPU wall seconds, its work done."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reference_data(data, crop: int, train: bool):
    """torchvision's reference transforms of ``data``'s pairs, as its presets.py has them."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps = [v2.RandomShortestSize(min_size=[*range(crop // 2, 2 * crop + 1)])] if train else []
    steps += [v2.Resize(size=crop)] if not train else []
    if train:
        steps += [v2.RandomHorizontalFlip(0.5)]
        steps += [v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0})]
    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    steps += [v2.ToImage(), v2.ToDtype(kinds, scale=True)]
    steps += [v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]
    transform = v2.Compose(steps)

    class Pairs(Dataset):
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, number: int):
            pairs = data.train if train else data.val
            pair = pairs[number % len(pairs)]
            image = Image.open(pair.image).convert("RGB")
            mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(pair.mask))[0])
            return transform(image, mask)

    return Pairs()


def reference_model(arch: str):
    """torchvision's FCN with auxiliary head on a random backbone."""
    from torchvision.models import segmentation

    make = getattr(segmentation, f"fcn_{arch}")
    return make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)


def train_reference(data, arch: str, crop: int, batch: int, iterations: int) -> None:
    """The reference script's loop."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = reference_model(arch).to(device).train()
    groups = [
        {"params": model.backbone.parameters()},
        {"params": model.classifier.parameters()},
        {"params": model.aux_classifier.parameters(), "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    workers = 16 if device.type == "cuda" else 0
    loader = DataLoader(
        reference_data(data, crop, True), batch, num_workers=workers, drop_last=True
    )
    for number, (images, labels) in enumerate(loader, 1):
        images, labels = images.to(device), labels.to(device)
        out = model(images)
        losses = {k: F.cross_entropy(v, labels, ignore_index=255) for k, v in out.items()}
        loss = losses["out"] + 0.5 * losses["aux"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # its logger reads it in every iteration
        if number == iterations:
            return


def test_reference(data, arch: str, crop: int, pictures: int) -> None:
    """The reference script's evaluation: picture by picture, a confusion matrix."""
    import torch
    from torch.utils.data import DataLoader, Subset

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = reference_model(arch).to(device).eval()
    matrix = torch.zeros((CLASSES, CLASSES), dtype=torch.int64, device=device)
    workers = 16 if device.type == "cuda" else 0
    chosen = Subset(reference_data(data, crop, False), range(pictures))
    with torch.inference_mode():
        for image, label in DataLoader(chosen, 1, num_workers=workers):
            truth, found = (
                label.to(device).flatten(),
                model(image.to(device))["out"].argmax(1).flatten(),
            )
            known = (truth >= 0) & (truth < CLASSES)
            pairs = CLASSES * truth[known].to(torch.int64) + found[known]
            matrix += torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def measure(what: str, network: str, bf16: str, folder: str, *sizes: str) -> None:
    """In a fresh process; the last line is pictures a second, peak bytes, share of what is beside the network."""
    import torch

    from eval_segmentation import predict
    from eval_segmentation.augment import TrainCrops
    from eval_segmentation.config import SegmentConfig
    from eval_segmentation.data import open_data
    from eval_segmentation.model import FCN
    from eval_segmentation.train import train
    from siambench.checkpoints.source import load_backbone
    from siambench.evaluation import Job

    arch, (crop, batch, iterations, tested) = sizes[0], map(int, sizes[1:])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    head = {} if network == "protocol" else {"head_convs": 1, "head_concat": False}
    common = {
        "backbone": f"random:{arch}",
        "data": folder,
        "long_edge": 4 * crop,
        "short_edge": crop,
        "crop": crop,
        "batch_size": batch,
        "bf16": bf16 == "True",
        "checkpoint_every": 10**6,
        "lr": 1e-3,
        **head,
    }
    config = SegmentConfig(**common)
    data = open_data(config)
    spent = {"seconds": 0.0}

    def timed(module, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments):
            start = clock()
            result = real(*arguments)
            spent["seconds"] += clock() - start
            return result

        setattr(module, name, call)

    share = None
    if what == "loading":
        images = 100
        crops = (
            reference_data(data, crop, True)
            if network == "reference"
            else TrainCrops(data, SegmentConfig(**common, iterations=images), 0, (124, 116, 104))
        )
        _ = crops[0]
        start = time.process_time()
        for number in range(images):
            _ = crops[number]
        rate = images / (time.process_time() - start)
    elif what == "training":
        backbone = load_backbone(config.backbone)
        if not cuda:
            timed(TrainCrops, "__getitem__")
        taken = []
        for count in (2, 2, 2 + iterations):  # the first is to warm up
            spent["seconds"] = 0.0
            start = clock()
            if network == "reference":
                train_reference(data, arch, crop, batch, count)
            else:
                with tempfile.TemporaryDirectory() as job_folder:
                    job = Job(0, 0, device, 16 if cuda else 0, Path(job_folder), "key", "benchmark")
                    train(backbone, data, SegmentConfig(**common, iterations=count), job)
            taken.append(clock() - start)
        rate = iterations * batch / (taken[2] - taken[1])
        share = spent["seconds"] / taken[2] if spent["seconds"] else None
    else:
        del data.val[tested:]
        assert len(data.val) == tested, f"only {len(data.val)} test pictures"
        if network == "reference":
            for count in (2, tested):
                start = clock()
                test_reference(data, arch, crop, count)
                seconds = clock() - start
        else:
            backbone = load_backbone(config.backbone)
            model = (
                FCN(backbone, CLASSES, config).to(device, memory_format=torch.channels_last).eval()
            )
            timed(predict, "confusion")
            job = Job(0, 0, device, 16 if cuda else 0, Path(folder), "key", "benchmark")
            for _ in range(2):
                spent["seconds"] = 0.0
                start = clock()
                predict.measure(model, backbone.meta, data, config, job, ())
                seconds = clock() - start
            share = spent["seconds"] / seconds
        rate = tested / seconds
    peak = torch.cuda.max_memory_allocated() if cuda else resident()
    print(json.dumps([rate, peak, share]))


def resident() -> int:
    """The highest resident set of this process so far, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


def main(rounds: int, sizes: list[str]) -> None:
    """Measure every row in turn, ``rounds`` times; print a table."""
    from siambench.data.digit_scenes import DigitScenesConfig, make

    found: dict[tuple[str, str, bool], list[list[float]]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        wanted = 100 * int(sizes[4])
        data = make(DigitScenesConfig(out=folder, images=wanted, size=max(int(sizes[1]) // 2, 32)))
        for number in range(rounds):
            for row in ROWS:
                command = [sys.executable, __file__, "measure", *map(str, row)]
                command += [f"{data}/VOCdevkit", *sizes]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                found[row].append(json.loads(done.stdout.splitlines()[-1]))
                print(number, *row, *found[row][-1], file=sys.stderr)
    print("| | network | pictures/s | ratio | peak memory | loading / confusion matrix |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        rates, peak, share = zip(*found[row], strict=True)
        first = found[row[0], "reference", False]
        ratio = statistics.median(a / b[0] for a, b in zip(rates, first, strict=True))
        beside = "–" if share[0] is None else f"{100 * statistics.median(share):.1f} %"
        name = {
            "reference": "torchvision's",
            "same": "ours, the same",
            "protocol": "the protocol's",
        }
        print(
            f"| {row[0]} | {name[row[1]]}{', bf16' if row[2] else ''} | {statistics.median(rates):.2f} "
            f"({min(rates):.2f} to {max(rates):.2f}) | {ratio:.2f} | {max(peak) / 2**30:.2f} GiB | "
            f"{beside} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        import torch

        usual = ["resnet50", "512", "16", "60", "200"]
        if not torch.cuda.is_available():
            usual = ["resnet50", "128", "4", "6", "12"]
        given = sys.argv[2:]
        main(int((sys.argv[1:] or ["3"])[0]), given + usual[len(given) :])
