"""Hostile files: nothing of them runs, and none takes more time or memory than it explains."""

import argparse
import os
import pickle
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from fuzz import libraries, mmengine_checkpoint, zipped

from convert.config import ConvertConfig
from convert.run import run
from siambench.checkpoints import inert
from siambench.checkpoints.inert import Array
from siambench.checkpoints.leaves import flatten, read_leaves
from siambench.checkpoints.pickles import read_pickle
from siambench.checkpoints.source import read_checkpoint
from siambench.errors import UserError


def _state() -> dict[str, torch.Tensor]:
    return dict(checkpoints.make_resnet().state_dict())


class _Runs:
    """Pickles to a call of ``os.mkdir``, whose trace is easy to look for."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


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


class _Net(argparse.Namespace):
    """A class of the user's own."""


def test_known_classes_pass_as_data_and_only_while_a_file_is_read(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    with libraries(
        {
            "pytorch_lightning.callbacks.model_checkpoint": "class ModelCheckpoint: 0",
            "lightning_fabric.utilities.data": "class AttributeDict(dict): 0",
            "vissl.config.attr_dict": "class AttrDict(dict):\n def __getstate__(self): return {}",
            "omegaconf.dictconfig": "class DictConfig: 0",
            "omegaconf.base": "class ContainerMetadata: 0",
        }
    ) as made:
        lightning = made["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint
        settings = made["lightning_fabric.utilities.data"].AttributeDict(lr=0.5)
        config = made["omegaconf.dictconfig"].DictConfig()
        config._metadata = made["omegaconf.base"].ContainerMetadata()
        config._metadata.__dict__ = {"ref_type": Any, "resolver_cache": defaultdict(dict)}
        config._content = {"parent": config, "kind": int}
        payload = {
            "state_dict": _state(),
            "args": argparse.Namespace(lr=0.1, folder=tmp_path),
            "callbacks": {lightning: {"best": torch.ones(1), "folder": tmp_path}},
            "hyper_parameters": settings,
            "config": made["vissl.config.attr_dict"].AttrDict(depth=50),
            "cfg": config,
            "meta": {"epoch": np.int64(7), "lr": np.arange(3.0), "seen": defaultdict(list, a=[1])},
            "text": np.array(["a"]),
        }
        for legacy in (False, True):
            source = tmp_path / "checkpoint.pth"
            torch.save(payload, source, _use_new_zipfile_serialization=not legacy)
            leaves = read_leaves(source)
            kept = {k: leaf.value for k, leaf in leaves.items() if not k.startswith("state_dict")}
            torch.testing.assert_close(kept.pop("meta.lr"), torch.arange(3.0, dtype=torch.float64))
            assert kept.pop("callbacks.ModelCheckpoint.best") == torch.ones(1)
            assert kept == {
                "args": None,
                "callbacks.ModelCheckpoint.folder": None,
                "hyper_parameters.lr": 0.5,
                "config.depth": 50,
                "cfg": None,
                "meta.epoch": 7,
                "meta.seen.a": [1],
                "text": None,
            }
            assert read_checkpoint(source)[1].arch == "resnet10-w8"
    assert set(torch.serialization.get_safe_globals()) == before
    source = checkpoints.save({"model": _state(), "args": _Net(lr=0.1)}, tmp_path)
    with pytest.raises(
        UserError, match=r"wants \w*test_convert_hostile\._Net.*state_dict\(\) alone"
    ):
        read_checkpoint(source)


ATTRIBUTE_DICT = """
class CLASS(dict):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__["frozen"] = True
"""


@pytest.mark.parametrize(
    "name",
    ["yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict"],
)  # fmt: skip
def test_settings_with_attributes_flatten_as_dicts(name: str, tmp_path: Path) -> None:
    module, _, kind = name.rpartition(".")
    with libraries({module: ATTRIBUTE_DICT.replace("CLASS", kind)}) as made:
        node = getattr(made[module], kind)
        settings = node({"LR": 0.1, "MODEL": node({"NAME": "r50"})})
        source = checkpoints.save({"model": _state(), "config": settings}, tmp_path)
    leaves = read_leaves(source)
    assert leaves["config.LR"].value == 0.1
    assert leaves["config.MODEL.NAME"].value == "r50"
    assert read_checkpoint(source)[1].arch == "resnet10-w8"


def test_honest_leftovers(tmp_path: Path) -> None:
    """What trainers leave beside the weights: dates, label maps, long lists of numbers."""
    import datetime
    import types

    leftovers = {
        "when": datetime.datetime(2026, 1, 2, 3, 4),
        "took": datetime.timedelta(hours=3),
        "space": types.SimpleNamespace(lr=0.1),
        "idx_to_class": {i: f"class {i}" for i in range(8142)},  # iNaturalist 2018
        "losses": [i / 7 for i in range(100_000)],
        "by_id": {10**9 + 7 * i: 0.5 for i in range(20_000)},
    }
    for legacy in False, True:
        source = tmp_path / f"{legacy}.pth"
        torch.save(
            {"state_dict": _state(), **leftovers},
            source,
            _use_new_zipfile_serialization=not legacy,
        )
        assert read_checkpoint(source)[2].matched == "78/78"


def test_a_whole_model_in_the_old_format_is_named(tmp_path: Path) -> None:
    source = tmp_path / "model.pth"
    torch.save(checkpoints.make_resnet(), source, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"wants siambench\.resnet\._ScaledResNet.*state_dict"):
        read_checkpoint(source)


def test_mmengine_checkpoint_with_its_message_hub(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(mmengine_checkpoint(_state()))
    _, meta, report = read_checkpoint(tmp_path / "a.pth")
    assert (meta.arch, meta.epochs, report.prefix) == ("resnet10-w8", 3, "state_dict.backbone.")


def _holders(evil: _Runs) -> dict[str, Any]:
    """Whatever passes, with something in it that must not."""
    return {
        "namespace": argparse.Namespace(evil=evil),
        "defaultdict": defaultdict(list, evil=evil),
        "array": np.array([evil], object),
        "key": {(1, evil): 1},
        "namespaces": argparse.Namespace(a=argparse.Namespace(b=[{"c": evil}])),
    }


@pytest.mark.parametrize("holder", list(_holders(_Runs(Path()))))
@pytest.mark.parametrize("kind", ["zip", "legacy", "pkl"])
def test_nothing_hides_in_what_passes(kind: str, holder: str, tmp_path: Path) -> None:
    payload = {"model": _state(), "x": _holders(_Runs(tmp_path / "trace"))[holder]}
    source = tmp_path / "evil.pth"
    if kind == "pkl":
        source.write_bytes(pickle.dumps(payload, 2))
    else:
        torch.save(payload, source, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"is refused: its pickle wants "):
        read_checkpoint(source)
    assert not (tmp_path / "trace").exists()


def _zip_of(pickled: bytes) -> bytes:
    """A file as torch.save writes it, around this pickle."""
    return zipped({"archive/data.pkl": b"\x80\x02" + pickled, "archive/version": b"3\n"})


def _global(name: str) -> bytes:
    return "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()


_TEXT = b"X\x09\0\0\0__class__"
_MADE = {"called": b")R", "called with": b"(K\x01K\x02tR", "new": b")\x81", "itself": b""}
_THEN = {
    "no more": b"",
    "called": b")R",
    "dict": b"}" + _TEXT + _global("argparse.Namespace") + b"sb",
    "slots": b"N}" + _TEXT + _global("argparse.Namespace") + b"s\x86b",
    "setstate": b"}X\x0c\0\0\0__setstate__" + _global("builtins.getattr") + b"sb",
    "read": b"q\0" + _global("builtins.getattr") + b"h\0" + _TEXT + b"\x86R",
}


@pytest.mark.parametrize("then", list(_THEN))
@pytest.mark.parametrize("made", list(_MADE))
def test_stand_ins_do_nothing_whatever_is_done_to_them(
    made: str, then: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.pth"
    before = {name: dict(vars(s)) for name, s in inert.TORCH.items() if s not in (dict, Array)}
    for name in inert.TORCH:
        source.write_bytes(_zip_of(b"}K\x01" + _global(name) + _MADE[made] + _THEN[then] + b"s."))
        try:
            leaves = read_leaves(source)
        except UserError:
            continue
        for leaf in leaves.values():
            assert type(leaf.value) in (type(None), bytes, dict, torch.Tensor, inert.DType)
            assert type(leaf.value) is not inert.DType or set(vars(leaf.value)) <= {"name", "order"}
    assert before == {n: dict(vars(s)) for n, s in inert.TORCH.items() if s not in (dict, Array)}


@pytest.mark.parametrize(
    "attack",
    [
        _global("builtins.getattr") + _global("argparse.Namespace") + _TEXT + b"\x86R",
        _global("builtins.getattr") + _global("builtins.getattr") + _TEXT + b"\x86R",
        _global("builtins.getattr") + b"}" + _TEXT + b"\x86R",
        *(
            _global(f"builtins.{name}") + b"X\x01\0\0\x001\x85R"
            for name in ("eval", "exec", "compile", "__import__", "open", "setattr", "bytearray")
        ),
        _global("os.system") + b"X\x01\0\0\x001\x85R",
        _global("nt.system") + b"X\x01\0\0\x001\x85R",
        _global("subprocess.Popen") + b"X\x01\0\0\x001\x85R",
        _global("numpy.core.multiarray._reconstruct.__globals__"),
        _global("argparse.Namespace.__init__"),
    ],
)
def test_names_that_run_code_are_refused(attack: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(_zip_of(b"}K\x01" + attack + b"s."))
    with pytest.raises(UserError, match="is refused: its pickle wants"):
        read_leaves(tmp_path / "a.pth")


_N = 30_000
_LIST = b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(_N)) + b"e"
_LONG = b"X" + struct.pack("<I", 10**6) + b"k" * 10**6
_HUGE = {
    "a text of 4 GB": b"X\xff\xff\xff\xffa",
    "bytes of 2**60": b"\x8e" + struct.pack("<Q", 2**60),
    "a frame of 2**60": b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f\1",
    "a memo of 2**31": b"Nr\xff\xff\xff\x7f",
    "an array of 10**12": _global("numpy.core.multiarray._reconstruct") + b"(N)X\1\0\0\0btR"
    b"(K\1\x8a\6\0\x10\xa5\xd4\xe8\0\x85" + _global("numpy.dtype") + b"X\2\0\0\0f8\x85R"
    b"\x89X\x08\0\0\x0012345678tb",
    "bytes from a number": _global("builtins.bytearray") + b"J\xff\xff\xff\x7f\x85R",
    "a tensor from a number": _global("torch.FloatTensor") + b"J\xff\xff\xff\x7f\x85R",
    "a text encoded again": b"](" + _global("_codecs.encode") + b"q\0" + _LONG + b"q\1X\6\0\0\0latin1"
    b"\x86q\2Rh\1" + b"h\0h\2R" * _N + b"e",
    "another codec": _global("_codecs.encode") + _LONG + b"X\x08\0\0\0punycode\x86R",
    "a set made again": b"](" + _global("builtins.set") + b"q\0" + _LIST + b"\x85q\1R" + b"h\0h\1R" * _N + b"e",
    "a list that grows later": b"](]q\0\x85q\1h\0" + _LIST[1:] + b"0e",
    "a tuple of itself": b")q\0" + b"0h\0h\0\x86q\0" * 64 + b"0}h\0Ns",
    "tuples 10**6 deep": b"})" + b"\x85" * 10**6 + b"Ns",
    "keys that collide": b"}(" + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, _N)) + b"u",
    "more parts than any file": b"](" + b"N" * 3000 + b"e",
}  # fmt: skip


@pytest.mark.parametrize("what", list(_HUGE))
@pytest.mark.parametrize("kind", ["zip", "legacy", "pkl"])
def test_claims_beyond_the_file_end_at_once(
    kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "more parts than any file":
        monkeypatch.setattr("siambench.checkpoints.walk._MOST_STEPS", 3000)
    body = b"}K\1" + _HUGE[what] + b"s."
    content = {"zip": _zip_of(body), "legacy": _legacy(body), "pkl": b"\x80\x02" + body}[kind]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"is refused|is not a whole") as caught:
        read_checkpoint(tmp_path / "a")
    assert "\n" not in str(caught.value)


def _legacy(body: bytes, keys: Any = ()) -> bytes:
    """A file of torch.save before 1.6 around this pickle, listing these storages."""
    parts = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + b"\x80\x02" + body + pickle.dumps(list(keys), 2)


def test_legacy_storages_are_those_listed_and_no_larger_than_the_file(tmp_path: Path) -> None:
    source = tmp_path / "a.pth"
    pid = _global("torch.FloatStorage") + b"X\1\0\0\x007X\3\0\0\0cpu\x8a\6\0\x10\xa5\xd4\xe8\0N"
    body = b"}K\1(X\7\0\0\0storage" + pid + b"tQs."
    source.write_bytes(_legacy(body, ["7"]))
    with pytest.raises(UserError, match="claim more numbers than the file holds"):
        read_checkpoint(source)
    source.write_bytes(_legacy(body))
    with pytest.raises(UserError, match="list of its storages does not match"):
        read_checkpoint(source)


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_depth_of_lists_and_dicts_is_harmless(depth: int, tmp_path: Path) -> None:
    for open_, close in ((b"]", b"a"), (b"}K\1", b"s")):
        body = b"}K\1" + open_ * depth + b"N" + close * depth + b"s."
        for content in (_zip_of(body), b"\x80\x02" + body):
            (tmp_path / "a").write_bytes(content)
            with pytest.raises(UserError, match=r"no ResNet in it|nests deeper|takes more"):
                read_checkpoint(tmp_path / "a")


def test_texts_that_steer_a_terminal_or_never_end_are_not_passed_on(tmp_path: Path) -> None:
    clear = "\x1b[2J\r\u202e"
    leaves = flatten("it", {f"a{clear}": {"b" * 5000: f"c{clear}" + "d" * 5000}})
    ((key, leaf),) = leaves.items()
    assert key.isprintable()
    assert leaf.value.isprintable()
    assert len(key) < 1100
    state = checkpoints.put("backbone.", checkpoints.make_resnet().state_dict())
    _, meta, _ = read_checkpoint(
        {"format": "siambench-pretrain", "method": "m" * 5000, "state_dict": state}
    )
    assert len(meta.method) < 300
    for name in (f"numpy.{clear}", "x." + "y" * 5000):
        for content in (_zip_of(_global(name) + b"."), b"\x80\x02" + _global(name) + b"."):
            (tmp_path / "a").write_bytes(content)
            with pytest.raises(UserError, match=r"is refused|is not a whole") as caught:
                read_checkpoint(tmp_path / "a")
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 600


def test_keys_of_any_kind_and_length(tmp_path: Path) -> None:
    loop: tuple[Any, ...] = ()
    for _ in range(50):
        loop = (loop,)
    odd = {1: 1, 10**5000: 2, loop: 3, None: 4, b"b": 5, 2.5: 6, "a.module.b": 7}
    leaves = flatten("it", odd)
    assert sorted(leaves) == ["1", "NoneType", "a.b", "bytes", "float", "int", "tuple"]
    long = {"k" * 10**6: {str(i): i for i in range(10_000)}}
    with pytest.raises(UserError, match="nests deeper or holds more"):
        flatten("it", long)


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
