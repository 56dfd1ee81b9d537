"""Files that are damaged, foreign or hostile: one clear line, nothing run, nothing written."""

import argparse
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

from convert.config import ConvertConfig
from convert.run import run
from siambench.checkpoints.names import to_detectron2
from siambench.checkpoints.pickles import read_pickle, write_detectron2
from siambench.checkpoints.source import read_checkpoint, weights_digest
from siambench.errors import UserError


class _Runs:
    """Pickles to a call of ``os.mkdir``, whose trace is easy to look for."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


def _state() -> dict[str, torch.Tensor]:
    return dict(checkpoints.make_resnet().state_dict())


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_checkpoint_runs_nothing(legacy: bool, tmp_path: Path) -> None:
    trace, source = tmp_path / "trace", tmp_path / "evil.pth"
    torch.save(
        {"state_dict": _state(), "extra": _Runs(trace)},
        source,
        _use_new_zipfile_serialization=not legacy,
    )
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=r"refused: its pickle wants (posix|os)\.mkdir"):
        run(ConvertConfig(source=str(source), out=str(out)))
    assert not trace.exists()
    assert not out.exists()
    torch.load(source, weights_only=False)  # the trap works where it is let
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pkl_runs_nothing(protocol: int, tmp_path: Path) -> None:
    trace, source = tmp_path / "trace", tmp_path / "evil.pkl"
    source.write_bytes(pickle.dumps({"model": _Runs(trace)}, protocol))
    with pytest.raises(UserError, match=r"wants (posix|os)\.mkdir|is not a checkpoint"):
        read_checkpoint(source)
    assert not trace.exists()


def test_whole_models_are_refused_by_name(tmp_path: Path) -> None:
    source = checkpoints.save(checkpoints.make_resnet(), tmp_path)
    with pytest.raises(UserError, match=r"wants siambench\.resnet\._ScaledResNet.*state_dict"):
        read_checkpoint(source)


def test_namespace_is_let_through_for_this_file_only(tmp_path: Path) -> None:
    payload = {"model": _state(), "args": argparse.Namespace(lr=0.1)}
    _, meta, _ = read_checkpoint(checkpoints.save(payload, tmp_path))
    assert meta.arch == "resnet10-w8"
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    other = {"model": _state(), "args": argparse.Namespace(path=Path("x"))}
    with pytest.raises(UserError, match=r"wants pathlib\."):
        read_checkpoint(checkpoints.save(other, tmp_path))


@pytest.mark.parametrize("part", [0.05, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pkl"])
def test_cut_short(kind: str, part: float, tmp_path: Path) -> None:
    source = _whole_file(kind, tmp_path)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match=r"damaged|not a whole"):
        read_checkpoint(source)


def _whole_file(kind: str, folder: Path) -> Path:
    """The small ResNet as a file of this kind."""
    path = folder / "file"
    if kind == "safetensors":
        config = ConvertConfig(source="random:resnet10-w8", out=str(folder / "a.safetensors"))
        run(config)
        return folder / "a.safetensors"
    if kind == "pkl":
        with open(path, "wb") as handle:
            write_detectron2(handle, to_detectron2(_state()))
    else:
        torch.save(_state(), path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" * 20, "is not a checkpoint: it begins with"),
        (b"PK\x03\x04" + b"\0" * 100, "cut short or damaged"),
        (b"\x80", "not a whole pickle"),
        (struct.pack("<Q", 2**40) + b"{", "not a whole safetensors file"),
        (pickle.dumps([1, 2]), "holds one list"),
        (pickle.dumps({"a": 1}), "no ResNet in it; its 0 tensors: none"),
    ],
)
def test_foreign_files(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_checkpoint(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(UserError, match="compressed archive"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_tensor_that_claims_more_than_it_stores(tmp_path: Path) -> None:
    state = _state()
    state["layer1.0.bn1.weight"] = torch.ones(1).expand(8)
    with pytest.raises(UserError, match="claims more numbers than the file holds"):
        read_checkpoint(checkpoints.save(state, tmp_path))


def test_dicts_within_dicts_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    source = tmp_path / "loop.pkl"
    source.write_bytes(pickle.dumps(loop))
    with pytest.raises(UserError, match="nests deeper"):
        read_checkpoint(source)
    bomb: dict[str, Any] = {}
    for _ in range(11):
        bomb = {str(i): bomb for i in range(10)}
    source.write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="holds more"):
        read_checkpoint(source)


def test_one_weight_under_two_names(tmp_path: Path) -> None:
    twice = checkpoints.put("module.", _state()) | _state()
    with pytest.raises(UserError, match="the same weight under two names"):
        read_checkpoint(checkpoints.save(twice, tmp_path))


def test_pickled_arrays_keep_type_shape_and_order(tmp_path: Path) -> None:
    arrays = {
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big-endian": np.arange(4, dtype=">f8"),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float32(1.5),
        "no dimension": np.array(7, np.int64),
        "empty": np.empty((0, 3), np.float32),
    }
    for protocol in range(2, 6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(OrderedDict(arrays), protocol))
        for name, read in read_pickle(tmp_path / "a.pkl").items():
            np.testing.assert_array_equal(read.array, arrays[name], strict=name != "big-endian")
            assert read.array.dtype.isnative
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.array([{}], object)))
    with pytest.raises(UserError, match="array of type 'O8'"):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "attack",
    [
        b"cnumpy\nndarray\n(Nd(X\x01\x00\x00\x00aX\x01\x00\x00\x00btb.",  # BUILD on a callable
        b"cnumpy\nndarray\nX\x05\x00\x00\x00posixX\x01\x00\x00\x00a\x86b.",
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"P0\n.",  # persistent id
        b"\x82\x01.",  # extension registry
    ],
)
def test_crafted_pickles(attack: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + attack)
    with pytest.raises(UserError):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pkl"])
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    """40 seeded mutations a format: the weights, or a UserError; never another exception."""
    whole, chance = _whole_file(kind, tmp_path).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 4, 40])):
            place = chance.randrange(len(content) if chance.random() < 0.3 else 2000)
            content[place] = chance.randrange(256)
        if chance.random() < 0.2:
            del content[chance.randrange(len(content)) :]
        (tmp_path / "mutated").write_bytes(content)
        try:
            state, _, _ = read_checkpoint(tmp_path / "mutated")
        except UserError:
            refused += 1
        else:
            assert all(tensor.isfinite().all() for tensor in state.values())
    assert refused > 5


def test_pkl_names_only_what_every_numpy_has(tmp_path: Path) -> None:
    """numpy 2's own pickles name numpy._core, which numpy before 1.26 cannot import."""
    buffer = io.BytesIO()
    write_detectron2(buffer, to_detectron2(_state()))
    named = []

    class Listing(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            named.append((module, name))
            return super().find_class(module, name)

    buffer.seek(0)
    content = Listing(buffer).load()
    assert set(named) == {("numpy", "ndarray")}
    assert all(array.flags.writeable for array in content["model"].values())


def test_round_trips_are_bit_exact(tmp_path: Path) -> None:
    start = checkpoints.save(_state(), tmp_path, "start.pth")
    steps = [("a.safetensors", "safetensors"), ("b.pkl", "detectron2-c4"), ("c.pth", "torchvision")]
    steps += [
        ("d.pkl", "detectron2-c4"),
        ("e.safetensors", "safetensors"),
        ("f.pth", "torchvision"),
    ]
    source = start
    for name, to in steps:
        run(ConvertConfig(source=str(source), out=str(tmp_path / name), to=to))
        source = tmp_path / name
        back, _, _ = read_checkpoint(source)
        assert weights_digest(back) == weights_digest(_state())
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    assert list(loaded) == list(_state())
    assert (tmp_path / "c.pth").read_bytes() == (tmp_path / "f.pth").read_bytes()
    assert (tmp_path / "b.pkl").read_bytes() == (tmp_path / "d.pkl").read_bytes()


def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = checkpoints.save(_state(), tmp_path), tmp_path / "old.pkl"
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convert.run.write_detectron2", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(ConvertConfig(source=str(source), out=str(out), to="detectron2-c4"))
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "old.pkl"]
