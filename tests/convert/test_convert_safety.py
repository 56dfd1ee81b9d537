"""Files that are damaged or foreign: one clear line and nothing written; mutated ones of every format."""

import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import pickle
import signal
import struct
import tarfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import checkpoints
import fuzz as fuzz_module
import numpy as np
import pytest
import torch
from fuzz import zipped

from convert.config import ConvertConfig
from convert.run import run
from siambench.checkpoints.names import to_detectron2
from siambench.checkpoints.pickles import read_pickle, write_detectron2
from siambench.checkpoints.source import read_checkpoint, weights_digest
from siambench.errors import UserError


def _state() -> dict[str, torch.Tensor]:
    return dict(checkpoints.make_resnet().state_dict())


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


_EMPTY = zipped({"archive/data.pkl": b"\x80\x02}.", "archive/version": b"3\n"})


def _archive(kind: str) -> bytes:
    """An archive with something else than a checkpoint's entries in it."""
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a.pth"))
    elif kind == "npz":
        np.savez(buffer, **{"conv1": np.zeros(3)})
    else:
        return zipped({"run/last.ckpt": _EMPTY})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" * 20, "it is a picture"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is an XML page"),
        (b'{"error": "Not Found"}', "JSON text"),
        (b'{"data":{"error": 404}}', "JSON text"),
        (gzip.compress(b"weights", mtime=0), "a packed archive; unpack it"),
        (bz2.compress(b"weights"), "a packed archive; unpack it"),
        (lzma.compress(b"weights"), "a packed archive; unpack it"),
        (_archive("tar"), "a tar archive; unpack it"),
        (_archive("zip"), "is an archive, not a file of torch.save.*: run/last.ckpt"),
        (_archive("npz"), "is an archive, not a file of torch.save.*: conv1.npy"),
        (b"PK\x05\x06" + bytes(18), "a packed archive"),
        (bytes(1000), "zeros, as a download that broke off"),
        (b"GGUF\3\0\0\0", "begins with b'GGUF"),
        (b"PK\x03\x04" + b"\0" * 100, "cut short or damaged"),
        (b"\x80", "not a whole pickle"),
        (struct.pack("<Q", 2**40) + b"{", "not a whole safetensors file"),
        (struct.pack("<Q", 2**62) + b"{", "not a whole safetensors file"),
        (struct.pack("<Q", 100) + b'{"a":{"dtype"', "not a whole safetensors file"),
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


def test_a_wrong_bit_in_any_entry_is_named(tmp_path: Path) -> None:
    source = checkpoints.save(_state(), tmp_path)
    whole = source.read_bytes()
    reader = torch._C.PyTorchFileReader(str(source))
    named = set()
    for name in ["data.pkl", "version", "data/0", "data/7", "data/31"]:
        content = bytearray(whole)
        content[reader.get_record_offset(name) + reader.get_record_size(name) // 2] ^= 1
        source.write_bytes(content)
        with pytest.raises(UserError, match=f"checksum of its entry checkpoint/{name} is wrong"):
            read_checkpoint(source)
        named.add(name)
    assert len(named) == 5
    torch.serialization.set_crc32_options(False)  # then torch writes 0 for every checksum
    try:
        checkpoints.save(_state(), tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert zipfile.ZipFile(source).testzip()
    assert weights_digest(read_checkpoint(source)[0]) == weights_digest(_state())


def test_archives_that_two_readers_read_differently(tmp_path: Path) -> None:
    source = checkpoints.save(_state(), tmp_path)
    whole = source.read_bytes()
    source.write_bytes(_EMPTY + whole)  # zipfile sees the second, at another place
    with pytest.raises(UserError, match=r"not a whole checkpoint|damaged"):
        read_checkpoint(source)
    twice = {"a/data.pkl": b"\x80\x02}.", "a/data.pkX": b"\x80\x02}.", "a/version": b"3\n"}
    source.write_bytes(zipped(twice).replace(b"data.pkX", b"data.pkl"))
    with pytest.raises(UserError, match="two readers"):
        read_checkpoint(source)


def test_what_a_file_is_called_does_not_matter(tmp_path: Path) -> None:
    for kind in ("zip", "legacy", "pkl", "safetensors"):
        whole = _whole_file(kind, tmp_path)
        for name in ("a.safetensors", "a.pkl", "a.pth", "a"):
            (tmp_path / name).write_bytes(content := whole.read_bytes())
            state, _, _ = read_checkpoint(tmp_path / name)
            assert weights_digest(state) == weights_digest(read_checkpoint(tmp_path / name)[0])
            (tmp_path / name).unlink()
            whole.write_bytes(content)


def test_torchscript_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"a/{name}", "x")
    with pytest.raises(UserError, match="is a TorchScript program, not weights"):
        read_checkpoint(tmp_path / "a.pt")


def test_pickled_arrays_keep_type_shape_and_order(tmp_path: Path) -> None:
    arrays = {
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big-endian": np.arange(4, dtype=">f8"),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "no dimension": np.array(7, np.int64),
        "empty": np.empty((0, 3), np.float32),
    }
    for protocol in range(2, 6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(OrderedDict(arrays), protocol))
        for name, read in read_pickle(tmp_path / "a.pkl").items():
            np.testing.assert_array_equal(read.array, arrays[name], strict=name != "big-endian")
            assert read.array.dtype.isnative
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.array([{}], object)))
    assert read_pickle(tmp_path / "a.pkl").array is None
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.float32(1.5), np.int64(7), np.bool_(True)]))
    assert read_pickle(tmp_path / "a.pkl") == [1.5, 7, True]


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """300 of the cases of fuzz.py: a whole backbone file or one clear line, and nothing else."""
    summary = fuzz_module.fuzz(300, seed=1, keep=tmp_path / "findings")
    assert not summary.findings
    ends = Counter(end for _, end in summary.counts.elements())
    assert set(ends) == {"written", "refused"}
    assert min(ends.values()) > 10
    assert len({kind for kind, _ in summary.counts}) == 9


def test_every_kind_of_finding_is_found_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = {10: "raise", 20: "die", 30: "hang", 40: "grow"}  # nine whole files warm a worker up
    calls, real = multiprocessing.Value("i", 0), fuzz_module.run

    def run_or_not(config: ConvertConfig) -> Any:
        with calls.get_lock():
            calls.value += 1
        end = ends.get(calls.value - 1)
        if end == "raise":
            raise KeyError("x")
        if end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "hang":
            signal.pause()
        if end == "grow":
            bytearray(2 * fuzz_module.MEGABYTES << 20)
        return real(config)

    monkeypatch.setattr(fuzz_module, "run", run_or_not)
    monkeypatch.setattr(fuzz_module, "SECONDS", 2)
    summary = fuzz_module.fuzz(6, seed=1)
    said = [finding.rpartition("]: ")[2] for finding in summary.findings]
    assert said[:3] == ["KeyError: 'x'", "ends the process (-9)", "hangs"]
    assert said[3].startswith("took ")
    assert len(said) == 4
    assert sum(n for (_, end), n in summary.counts.items() if end != "finding") == 2


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
