"""The feature cache: right, whole or not there, shared, resumed, never stale."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import siambench.cache
from siambench.cache import cached_features
from siambench.checkpoints.source import load_backbone
from siambench.distributed import World
from siambench.errors import UserError
from siambench.evaluation import Job
from siambench.features import LayerFeatures

COUNT = 50


class Noise:
    """Random pictures; counts what is asked for."""

    def __init__(self, count: int = COUNT, key: str = "a") -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.version, self.asked = key, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.asked += 1
        return self.pixels[index]

    def name(self, index: int) -> str:
        return f"picture {index}"

    def key(self) -> list[str | int]:
        return [self.version]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(siambench.cache, "SHARD", 8)
    monkeypatch.setattr(siambench.cache, "_SYNC_EVERY", 0.0)
    monkeypatch.setitem(siambench.cache._BATCH, "cpu", 3)


def job_at(folder: Path) -> Job:
    return Job(0, 0, torch.device("cpu"), 0, folder / "jobs" / "job", "key", "test")


def encoder_of(path: Path, layers=("avgpool",), precision: str = "float32") -> LayerFeatures:
    return LayerFeatures(load_backbone(path), layers, 32, precision)


def by_hand(path: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The averaged last map, image by image, in torch's plainest words."""
    backbone = load_backbone(path)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.meta.mean, backbone.meta.std))
    net = torch.nn.Sequential(*list(backbone.resnet.children())[:8])
    with torch.no_grad():
        return torch.stack([net(((p / 255 - mean) / std)[None])[0].mean((1, 2)) for p in pixels])


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_features_are_the_backbones(backbone_file, tmp_path, storage):
    images = Noise()
    layers = ("feature3", "avgpool")
    found = cached_features(
        encoder_of(backbone_file, layers), {"val": images}, storage, job_at(tmp_path)
    )
    assert set(found) == {("val", layer) for layer in layers}
    rows = found["val", "avgpool"]
    assert rows.shape == (COUNT, 128)
    assert rows.dtype == storage
    wanted = by_hand(backbone_file, images.pixels).numpy()
    np.testing.assert_allclose(rows, wanted, rtol=1e-3 if storage == "float16" else 1e-4, atol=1e-5)
    (file,) = (tmp_path / "features").glob("val-avgpool-*/features.npy")
    np.testing.assert_array_equal(np.load(file), rows)  # anyone may read it
    assert file.stat().st_size == 4096 + rows.nbytes
    assert not list(file.parent.glob("done"))


def test_what_is_there_is_not_computed_again(backbone_file, tmp_path):
    first = Noise()
    encoder = encoder_of(backbone_file)
    cached_features(encoder, {"train": first}, "float16", job_at(tmp_path))
    assert first.asked == COUNT
    again = Noise()
    cached_features(encoder, {"train": again}, "float16", job_at(tmp_path))
    assert again.asked == 0
    both = encoder_of(backbone_file, ("avgpool", "feature5"))
    cached_features(both, {"train": again}, "float16", job_at(tmp_path))
    assert again.asked == COUNT  # one pass, for the layer that is new
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_a_changed_backbone_picture_or_preparation_is_another_table(backbone_file, tmp_path):
    encoder, images = encoder_of(backbone_file), Noise()
    cached_features(encoder, {"train": images}, "float16", job_at(tmp_path))

    def asked(encoder: LayerFeatures, key: str = "a", storage: str = "float16") -> int:
        images = Noise(key=key)
        cached_features(encoder, {"train": images}, storage, job_at(tmp_path))
        return images.asked

    assert asked(encoder) == 0
    assert asked(encoder, key="b") == COUNT
    assert asked(encoder, storage="float32") == COUNT
    assert asked(encoder_of(backbone_file, precision="bf16")) == COUNT
    assert asked(encoder_of(backbone_file, layers=("feature4",))) == COUNT
    other = encoder_of(backbone_file)
    other.backbone.meta = replace(other.backbone.meta, mean=(0.5, 0.5, 0.5))
    assert asked(other) == COUNT
    moved = encoder_of(backbone_file)
    moved.backbone.resnet.bn1.running_mean += 1e-4  # a buffer counts as well
    assert asked(moved) == COUNT


def test_bf16_is_near_and_not_the_same(backbone_file, tmp_path):
    images = Noise()
    exact, near = (
        cached_features(
            encoder_of(backbone_file, precision=p), {"t": images}, "float32", job_at(tmp_path)
        )["t", "avgpool"]
        for p in ("float32", "bf16")
    )
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.02
    assert near.dtype == np.float32


_KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_cache import *
siambench.cache.SHARD, siambench.cache._BATCH["cpu"], siambench.cache._SYNC_EVERY = 8, 3, 0.0
mark, marked = siambench.cache.Table.mark, []
def stop(table, shards):
    mark(table, shards)
    marked.extend(shards)
    if len(marked) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
siambench.cache.Table.mark = stop
cached_features(encoder_of(Path({backbone!r})), {{"t": Noise()}}, "float32", job_at(Path({folder!r})))
"""


def test_a_killed_extraction_goes_on(backbone_file, tmp_path):
    whole = cached_features(
        encoder_of(backbone_file), {"t": Noise()}, "float32", job_at(tmp_path / "whole")
    )
    tests = str(Path(__file__).parent)
    script = _KILLED.format(tests=tests, backbone=str(backbone_file), folder=str(tmp_path / "k"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = Noise()
    rows = cached_features(
        encoder_of(backbone_file), {"t": left}, "float32", job_at(tmp_path / "k")
    )
    assert left.asked <= COUNT - 2 * 8 - COUNT % 8  # three of seven shards were there
    np.testing.assert_array_equal(rows["t", "avgpool"], whole["t", "avgpool"])


def test_an_interrupted_extraction_keeps_what_it_wrote(backbone_file, tmp_path, monkeypatch):
    """Also what was not yet due to be marked."""
    monkeypatch.setattr(siambench.cache, "_SYNC_EVERY", 1e9)
    images, left = Noise(), Noise()
    taken = Noise.__getitem__

    def interrupted(self, index):
        if images.asked == 30:
            raise KeyboardInterrupt
        return taken(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Noise, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached_features(encoder_of(backbone_file), {"t": images}, "float16", job_at(tmp_path))
    cached_features(encoder_of(backbone_file), {"t": left}, "float16", job_at(tmp_path))
    assert left.asked <= COUNT - 2 * 8


def test_processes_that_know_nothing_of_each_other(backbone_file, tmp_path):
    tests = str(Path(__file__).parent)
    script = (
        f"import sys; sys.path.insert(0, {tests!r})\n"
        "from test_cache import *\n"
        "siambench.cache.SHARD, siambench.cache._BATCH['cpu'] = 2, 2\n"
        "rows = cached_features(encoder_of(Path(sys.argv[1])), {'t': Noise(200)}, 'float16', "
        "job_at(Path(sys.argv[2])))['t', 'avgpool']\n"
        "print(siambench.files.digest_of(rows.astype(float).tolist()))"
    )
    command = [sys.executable, "-c", script, str(backbone_file), str(tmp_path)]
    several = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    digests = set()
    for process in several:
        out, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        digests.add(out)
    assert len(digests) == 1
    (folder,) = (tmp_path / "features").iterdir()
    wanted = by_hand(backbone_file, Noise(200).pixels)
    rows = np.load(folder / "features.npy").astype(np.float32)
    np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-5)


def test_ranks_begin_at_different_places_and_all_is_done(backbone_file, tmp_path, monkeypatch):
    """One rank alone finishes the work of a job whose others died."""
    images = Noise()
    monkeypatch.setattr(siambench.cache.zlib, "crc32", lambda who: 0)
    job = replace(job_at(tmp_path), world=World(1, 2, torch.device("cpu")))
    begun = []
    write = siambench.cache.Table.write
    siambench.cache.Table.write = lambda t, shard, rows: (
        begun.append(shard),
        write(t, shard, rows),
    )
    try:
        cached_features(encoder_of(backbone_file), {"t": images}, "float16", job)
    finally:
        siambench.cache.Table.write = write
    assert begun == [3, 4, 5, 6, 0, 1, 2]


def test_a_shard_that_another_process_has_done_is_left_out(backbone_file, tmp_path, monkeypatch):
    """Asked anew before each shard, not once at the start."""
    monkeypatch.setattr(siambench.cache.zlib, "crc32", lambda who: 0)
    images = Noise()
    job = replace(job_at(tmp_path), world=World(0, 2, torch.device("cpu")))
    write = siambench.cache.Table.write

    def also_the_last(table, shard, rows):
        write(table, shard, rows)
        if shard == 0:  # the other one, meanwhile
            write(table, 6, np.zeros((2, 128)))
            table.mark([6])

    siambench.cache.Table.write = also_the_last
    try:
        rows = cached_features(encoder_of(backbone_file), {"t": images}, "float16", job)
    finally:
        siambench.cache.Table.write = write
    assert images.asked == 48
    assert not rows["t", "avgpool"][48:].any()
    assert rows["t", "avgpool"][:48].any(axis=1).all()


def test_unsound_numbers_are_named(backbone_file, tmp_path):
    encoder = encoder_of(backbone_file)
    encoder.backbone.resnet.bn1.weight.data[:] = float("nan")
    with pytest.raises(
        UserError, match=r"avgpool of picture \d+ is nan: the backbone is not sound"
    ):
        cached_features(encoder, {"t": Noise()}, "float16", job_at(tmp_path))
    encoder = encoder_of(backbone_file)
    encoder.backbone.resnet.layer4[0].bn2.weight.data[:] = 1e6
    with pytest.raises(UserError, match="more than float16 holds; use --storage float32"):
        cached_features(encoder, {"t": Noise()}, "float16", job_at(tmp_path))
    assert not list((tmp_path / "features").glob("*/table.json"))
    cached_features(encoder, {"t": Noise()}, "float32", job_at(tmp_path))


def test_no_room_is_said_before_the_work(backbone_file, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(siambench.cache.shutil, "disk_usage", lambda path: usage(1000))
    images = Noise()
    with pytest.raises(UserError, match=r"need 0.0 GB in .*features, .*--cache"):
        cached_features(encoder_of(backbone_file), {"t": images}, "float16", job_at(tmp_path))
    assert images.asked == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "longer"])
def test_a_damaged_file_is_made_again(backbone_file, tmp_path, damage):
    encoder = encoder_of(backbone_file)
    before = cached_features(encoder, {"t": Noise()}, "float16", job_at(tmp_path))["t", "avgpool"]
    before = np.array(before)
    (file,) = (tmp_path / "features").glob("*/features.npy")
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + (100 if damage == "longer" else -100))
    images = Noise()
    after = cached_features(encoder, {"t": images}, "float16", job_at(tmp_path))["t", "avgpool"]
    assert images.asked == COUNT
    np.testing.assert_array_equal(after, before)
    about = json.loads((file.parent / "table.json").read_text())
    assert about["shape"] == [COUNT, 128]
    assert about["backbone"] == "tiny"


def test_a_folder_emptied_while_it_is_filled_is_filled_anew(backbone_file, tmp_path):
    """Deleted, and begun again by another process, before the last shard: no row stays empty."""
    wanted = by_hand(backbone_file, Noise().pixels).numpy()
    mark = siambench.cache.Table.mark

    def emptied(table, shards):
        mark(table, shards)
        if len(list((table.folder / "done").iterdir())) == 5:
            siambench.cache.Table.mark = mark
            shutil.rmtree(table.folder)
            table.start()

    siambench.cache.Table.mark = emptied
    try:
        rows = cached_features(
            encoder_of(backbone_file), {"t": Noise()}, "float32", job_at(tmp_path)
        )
    finally:
        siambench.cache.Table.mark = mark
    np.testing.assert_allclose(rows["t", "avgpool"], wanted, rtol=1e-4, atol=1e-5)


def test_room_for_all_is_asked_for_before_the_first(backbone_file, tmp_path, monkeypatch):
    """One split would fit, two do not."""
    usage = namedtuple("usage", "free")
    one = 4096 + COUNT * 128 * 2
    monkeypatch.setattr(siambench.cache.shutil, "disk_usage", lambda path: usage(one * 1.5))
    images = Noise()
    with pytest.raises(UserError, match="--cache"):
        cached_features(
            encoder_of(backbone_file),
            {"train": images, "val": Noise(key="b")},
            "float16",
            job_at(tmp_path),
        )
    assert images.asked == 0


def test_memory_does_not_grow_with_the_images(backbone_file, tmp_path):
    encoder = encoder_of(backbone_file, ("feature1",))  # 9,216 numbers an image

    def peak(count: int) -> int:
        images = Noise(count, key=str(count))
        tracemalloc.start()
        cached_features(encoder, {"t": images}, "float16", job_at(tmp_path))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(8)  # imports
    small, large = peak(40), peak(400)
    assert large < 1.5 * small + 100_000
