"""Every layout of the table becomes the backbone it was made from, or a refusal."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import checkpoints
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from convert import VERBS
from convert.config import ConvertConfig
from convert.run import Conversion, run
from siambench import load_backbone
from siambench.checkpoints.layouts import LAYOUTS
from siambench.checkpoints.leaves import flatten
from siambench.checkpoints.names import detectron2_name
from siambench.checkpoints.pick import pick
from siambench.checkpoints.source import read_checkpoint, weights_digest
from siambench.cli import run_verb
from siambench.errors import UserError
from siambench.resnet import ARCHS, build_resnet


def convert(source: Path | str, out: Path, **options: object) -> Conversion:
    return run(ConvertConfig(source=str(source), out=str(out), **options))


def assert_same_features(model: torch.nn.Module, backbone_file: Path) -> None:
    images = checkpoints.images()
    with torch.inference_mode():
        torch.testing.assert_close(
            load_backbone(backbone_file).features(images), model(images), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_every_layout_gives_the_features_it_came_from(name: str, tmp_path: Path) -> None:
    case, model = checkpoints.CASES[name], checkpoints.make_resnet()
    source = checkpoints.save(case.make(model), tmp_path, "any name at all")
    done = convert(source, tmp_path / "out.safetensors", branch=case.branch)
    assert_same_features(model, tmp_path / "out.safetensors")
    meta = load_backbone(tmp_path / "out.safetensors").meta
    size = len(build_resnet("resnet10-w8").state_dict())
    assert (done.report.layout, done.report.prefix) == (case.layout, case.prefix)
    assert (meta.method, meta.epochs) == (case.method, case.epochs)
    assert done.report.branch == case.taken
    assert done.report.dropped == case.dropped
    assert (meta.arch, meta.matched) == ("resnet10-w8", f"{size}/{size}")
    assert (meta.source, len(meta.source_sha256)) == ("any name at all", 64)


def test_every_row_of_the_table_has_a_case() -> None:
    model, used = checkpoints.make_resnet(), set()
    for case in checkpoints.CASES.values():
        used.add(pick(flatten("case", case.make(model)), "case", case.branch).layout)
    assert {row for row in LAYOUTS if not row.no} - used == {
        row
        for row in LAYOUTS
        if row.name == "detectron2"  # test_convert_detectron2.py
    }


def test_a_trained_detector_is_refused(tmp_path: Path) -> None:
    """Its stride and channel order are not in the file: MSRA's weights have torchvision's shapes."""
    named = {detectron2_name(name): tensor for name, tensor in _state().items()}
    fpn = checkpoints.put(
        "backbone.bottom_up.", named, proposal_generator__rpn_head__conv__weight=(3,)
    )
    with pytest.raises(UserError, match=r"a trained detector or segmenter; .* BGR"):
        read_checkpoint(checkpoints.save({"model": fpn}, tmp_path))
    c4 = {
        f"{'roi_heads' if name.startswith('res5') else 'backbone'}.{name}": tensor
        for name, tensor in named.items()
    }
    with pytest.raises(UserError, match=r"a trained detector or segmenter; .* BGR"):
        read_checkpoint(checkpoints.save({"model": c4}, tmp_path))


@pytest.mark.parametrize(
    "key", ["rpn_head.conv.weight", "roi_heads.x", "decode_head.conv.w", "aux_classifier.0.w", "classifier.4.weight"]
)  # fmt: skip
def test_fine_tuned_networks_are_told_by_their_heads(key: str) -> None:
    state = checkpoints.put("backbone.", _state()) | {key: torch.zeros(2, 2, 1, 1)}
    with pytest.raises(UserError, match=rf"{key} makes it a trained detector or segmenter"):
        read_checkpoint({"state_dict": state})


def test_a_configuration_may_name_what_the_weights_have_not() -> None:
    payload = {"state_dict": _state(), "cfg": {"model": {"decode_head": {"type": "FCNHead"}}}}
    assert read_checkpoint(payload)[1].arch == "resnet10-w8"


def test_torchvisions_segmenter_is_refused() -> None:
    """It is dilated: the same names and shapes, other features."""
    fcn = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match="makes it a trained detector or segmenter"):
        read_checkpoint(fcn.state_dict())


def test_caffes_resnet_under_torchvisions_names() -> None:
    """Folded statistics (what converters of Detectron's weights leave), or a configuration that says so."""
    state = {k: v for k, v in _state().items() if not k.endswith("num_batches_tracked")}
    for name in state:
        if "running" in name:
            state[name] = torch.full_like(state[name], float(name.endswith("var")))
    with pytest.raises(UserError, match="statistics are folded in, as in Caffe's"):
        read_checkpoint(state)
    for said in ("backbone=dict(type='ResNet', style='caffe')", '"to_rgb": False'):
        payload = {"state_dict": checkpoints.put("backbone.", _state()), "meta": {"config": said}}
        with pytest.raises(UserError, match=r"its configuration says .*: Caffe's ResNet takes BGR"):
            read_checkpoint(payload)


def test_a_second_encoder_is_not_taken_for_lack_of_a_row() -> None:
    for second in ("encoder_k.", "momentum_encoder.", "target_network.encoder."):
        both = checkpoints.two("net.", second)(_model())
        with pytest.raises(UserError, match="several ResNets and no known layout says which"):
            read_checkpoint(both)
        assert read_checkpoint(both, branch="net")[2].prefix == "net."


def test_a_broken_network_is_not_stood_in_for_by_one_in_another_container() -> None:
    for fault in ("last", "shape"):
        payload = {"state_dict": _broken(fault)[0], "model": checkpoints.other(_model())}
        with pytest.raises(UserError, match=r"at 'state_dict\.', but"):
            read_checkpoint(payload)
    twice = {"state_dict": checkpoints.put("encoder_q.", _state()), "model": TWO}
    for branch in ("", "query"):
        with pytest.raises(
            UserError, match=r"several ResNets .*--branch (state_dict|model)\.encoder_q"
        ):
            read_checkpoint(twice, branch=branch)
    assert read_checkpoint(twice, branch="model.encoder_q")[2].prefix == "model.encoder_q."


def test_a_negative_variance_is_no_weight() -> None:
    state = _state()
    state["bn1.running_var"] = -state["bn1.running_var"]
    with pytest.raises(UserError, match=r"bn1\.running_var holds a negative variance"):
        read_checkpoint(state)


@pytest.mark.parametrize("arch", [*ARCHS, "resnet18-w32", "resnet50-w16", "wide_resnet50_2-w32"])
def test_architecture_comes_from_the_shapes(arch: str, tmp_path: Path) -> None:
    if "-w" not in arch:
        arch += "-w8"  # the depths at a size that is quick to write
    state = build_resnet(arch).state_dict()
    _, meta, report = read_checkpoint(checkpoints.save(state, tmp_path))
    assert meta.arch == report.arch == arch


def test_torchvisions_own_resnet50_counts_as_published(tmp_path: Path) -> None:
    """318 tensors without fc, 265 without the counters, which old files lack."""
    model = torchvision.models.resnet50().eval()
    source = checkpoints.save(model.state_dict(), tmp_path)
    state, meta, report = read_checkpoint(source)
    assert (meta.arch, report.matched, report.dropped) == ("resnet50", "318/318", {"head": 2})
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in state)
    old = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    state, _, report = read_checkpoint(checkpoints.save(old, tmp_path))
    assert report.matched == "265/265"
    assert "num_batches_tracked" in report.notes[0]
    assert state["bn1.num_batches_tracked"] == 0


def test_half_precision_is_widened_and_said(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in _state().items()}
    found, _, report = read_checkpoint(checkpoints.save(state, tmp_path))
    assert found["conv1.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.weight"], state["conv1.weight"].float())
    assert "torch.float16" in report.notes[0]


def test_what_the_file_calls_itself_is_not_believed(tmp_path: Path) -> None:
    state = checkpoints.put("module.encoder.", _state(), module__predictor__0=(3,))
    source = checkpoints.save(checkpoints.training(state, arch="resnet50"), tmp_path)
    _, meta, report = read_checkpoint(source)
    assert meta.arch == "resnet10-w8"
    assert any("resnet50" in note for note in report.notes)


def test_views_and_tied_memory_are_written_as_weights_of_their_own(tmp_path: Path) -> None:
    state = _state()
    state["bn1.bias"] = state["bn1.running_mean"]
    state["layer1.0.bn1.weight"] = torch.rand(100)[20:28]
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    source = checkpoints.save(state, tmp_path)
    for out, to in ("o.safetensors", "safetensors"), ("o.pth", "torchvision"):
        convert(source, tmp_path / out, to=to)
        back, _, _ = read_checkpoint(tmp_path / out)
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_foreign_safetensors_and_old_torch_format(tmp_path: Path) -> None:
    state = _state()
    save_file(state, tmp_path / "timm.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digests = {
        read_checkpoint(tmp_path / name)[2].digest for name in ("timm.safetensors", "old.pth")
    }
    assert digests == {weights_digest(state)}


def test_random_backbone_is_torchvisions_default_and_seeded(tmp_path: Path) -> None:
    convert("random:resnet18-w8", tmp_path / "a.safetensors", seed=3)
    convert("random:resnet18-w8", tmp_path / "b.safetensors", seed=3)
    convert("random:resnet18-w8", tmp_path / "c.safetensors", seed=4)
    a, b, c = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "abc")
    assert a == b != c
    backbone = load_backbone(tmp_path / "a.safetensors")
    assert (backbone.meta.method, backbone.meta.epochs) == ("random init", 0)
    assert backbone.resnet.layer1[0].bn2.weight.eq(1).all()  # not the zero-residual one


def test_flags_override_what_the_file_says(tmp_path: Path) -> None:
    source = checkpoints.save(checkpoints.CASES["simsiam"].make(_model()), tmp_path)
    out = tmp_path / "out.safetensors"
    arguments = [str(source), "--out", str(out), "--method", "Mine", "--epochs", "7"]
    arguments += ["--mean", "[0.5,0.4,0.3]", "--std", "[0.1,0.2,0.3]"]
    assert run_verb(VERBS["convert"], arguments) == 0
    meta = asdict(load_backbone(out).meta)
    assert {k: meta[k] for k in ("method", "epochs", "mean", "std")} == {
        "method": "Mine",
        "epochs": 7,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
    }


def test_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = checkpoints.save(_state(), tmp_path), tmp_path / "out.pkl"
    arguments = [str(source), "--out", str(out), "--to", "detectron2-c4", "--json"]
    assert run_verb(VERBS["convert"], [*arguments, "--mean", "[0.5,0.5,0.5]"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = told["report"]
    assert (told["out"], told["method"], report["matched"]) == (str(out), "unknown", "78/78")
    assert report["mean"] == [0.5, 0.5, 0.5]
    assert report["digest"] == weights_digest(_state())
    assert report["sanity"]["convolutions"] == 13
    notes = " ".join(report["notes"])
    assert "mean (0.5, 0.5, 0.5) and std (0.229, 0.224, 0.225) of the input are not kept" in notes
    assert "torchvision's strides, pooling and epsilon, RGB and ImageNet's mean and std" in notes


def test_report_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoints.save(checkpoints.CASES["moco v2"].make(_model()), tmp_path)
    done = convert(source, tmp_path / "out.safetensors")
    text = capsys.readouterr().out
    for part in ("MoCo v2", "state_dict.module.encoder_q.", "resnet10-w8", "queue 1", "100 epochs"):
        assert part in text
    assert done.report.digest in text
    assert "also in the file and not used: resnet10-w8 at 'state_dict.module.encoder_k.'" in text


@pytest.mark.parametrize("to", ["safetensors", "torchvision", "detectron2-c4"])
@pytest.mark.parametrize("fault", ["first", "last", "block", "bias", "shape", "nan", "integers"])
def test_not_whole_means_nothing_written(fault: str, to: str, tmp_path: Path) -> None:
    state, said = _broken(fault)
    source = checkpoints.save(
        checkpoints.training(checkpoints.put("module.encoder_q.", state)), tmp_path
    )
    out = (
        tmp_path / f"out{ {'safetensors': '.safetensors', 'torchvision': '.pth'}.get(to, '.pkl') }"
    )
    with pytest.raises(UserError, match=said):
        convert(source, out, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def _broken(fault: str) -> tuple[dict[str, Tensor], str]:
    state = _state()
    if fault == "first":
        del state["conv1.weight"]
        return state, "closest layout: MoCo, .*1 expected keys missing: conv1.weight"
    if fault == "last":
        del state["layer4.0.bn2.running_var"]
        return state, "1 expected keys missing: layer4.0.bn2.running_var"
    if fault == "block":
        left = {k: v for k, v in state.items() if not k.startswith("layer3")}
        return left, r"18 expected keys missing: layer3.0.conv1.weight, .* and 14 more"
    if fault == "bias":
        return state | {"conv1.bias": torch.zeros(64)}, "conv1.bias is no part of resnet10-w8"
    if fault == "shape":
        return state | {"bn1.bias": torch.zeros(3)}, r"bn1.bias has shape \(3,\), not \(64,\)"
    if fault == "nan":
        return state | {"bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias holds NaN"
    whole = {k: v.to(torch.int8) for k, v in state.items()}
    return whole, "conv1.weight is torch.int8"


def test_another_branch_does_not_stand_in_for_a_broken_one(tmp_path: Path) -> None:
    query, _ = _broken("last")
    both = checkpoints.put("encoder_q.", query) | checkpoints.put("encoder_k.", _state())
    with pytest.raises(UserError, match=r"'encoder_q\.', but 1 expected keys missing"):
        read_checkpoint(checkpoints.save(both, tmp_path))


def test_a_deeper_network_cut_short_is_not_taken_for_a_shallow_one(tmp_path: Path) -> None:
    """All of a ResNet-50's keys are there, and more: it is a ResNet-101 with a hole."""
    state = build_resnet("resnet101-w8").state_dict()
    cut = {k: v for k, v in state.items() if not k.startswith("layer3.22.")}
    with pytest.raises(UserError, match=r"resnet101-w8 .* expected keys missing: layer3.22.conv1"):
        read_checkpoint(checkpoints.save(cut, tmp_path))


def test_two_networks_and_no_convention_is_refused(tmp_path: Path) -> None:
    both = checkpoints.put("a.", _state()) | checkpoints.put("b.", _state())
    with pytest.raises(UserError, match=r"several ResNets .*'a\.', 'b\.'"):
        read_checkpoint(checkpoints.save(both, tmp_path))


def test_something_else_is_named(tmp_path: Path) -> None:
    vit = {"blocks.0.attn.qkv.weight": torch.zeros(3), "cls_token": torch.zeros(3)}
    with pytest.raises(UserError, match="no ResNet in it; it is a vision transformer"):
        read_checkpoint(checkpoints.save(vit, tmp_path))
    with pytest.raises(UserError, match="holds one list, not a dict"):
        read_checkpoint(checkpoints.save([torch.zeros(3)], tmp_path))
    grouped = build_resnet("resnet50-w8").state_dict()
    grouped["layer1.0.conv2.weight"] = grouped["layer1.0.conv2.weight"][:, :2].clone()
    with pytest.raises(UserError, match=r"layer1.0.conv2.weight has shape \(8, 2, 3, 3\)"):
        read_checkpoint(checkpoints.save(grouped, tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "x.pth"}, r"must end in \.safetensors"),
        ({"out": "x.safetensors", "to": "detectron2-c4"}, r"must end in \.pkl"),
        ({"out": "folder.safetensors"}, "is a folder"),
        ({"out": "x.safetensors", "mean": [0.5]}, "mean must be three numbers"),
        (
            {"out": "x.safetensors", "std": [0.5, 0.0, 0.5]},
            "std must be three numbers .* none of them 0",
        ),
        ({"out": "x.safetensors", "mean": [0.5, 124.0, 0.5]}, r"mean must be .* in \[0, 1\]"),
        ({"out": "x.safetensors", "mean": [0.5, float("nan"), 0.5]}, "mean must be"),
        ({"out": "x.safetensors", "epochs": -1}, "epochs must not be negative"),
        ({"out": "x.safetensors", "method": "a\nb"}, "method must be one line of plain text"),
        ({"out": "checkpoint.pth", "to": "torchvision"}, "is the source itself"),
        ({"out": "checkpoint.pth/x.safetensors"}, "cannot write checkpoint.pth/x"),
        ({"out": "x.safetensors", "source": "gone.pth"}, "does not exist"),
        ({"out": "x.safetensors", "source": "."}, "is not a file"),
        ({"out": "x.safetensors", "source": "random:resnet51"}, "resnet51.* is unknown"),
    ],
)
def test_wrong_arguments(
    options: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(_state(), tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run(ConvertConfig(**{"source": "checkpoint.pth", **options}))


def test_exit_code_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoints.save(checkpoints.put("encoder_k.", _broken("last")[0]), tmp_path)
    out = tmp_path / "out.safetensors"
    assert run_verb(VERBS["convert"], [str(source), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("siambench: error: ")
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_plain_pickle_of_arrays_is_read_whatever_the_protocol(tmp_path: Path) -> None:
    """detectron2's .pkl as others write them (numpy's own pickling)."""
    from siambench.checkpoints.names import to_detectron2

    state = _state()
    model = to_detectron2(state)
    for protocol in range(2, 6):
        content = {"model": model, "__author__": "someone", "matching_heuristics": True}
        (tmp_path / "d2.pkl").write_bytes(pickle.dumps(content, protocol))
        back, _, report = read_checkpoint(tmp_path / "d2.pkl")
        assert report.layout == "detectron2"
        assert weights_digest(back) == weights_digest(state)


TWO = checkpoints.put("encoder_q.", checkpoints.make_resnet(seed=1).state_dict())


def _model() -> torch.nn.Module:
    return checkpoints.make_resnet()


def _state() -> dict[str, Tensor]:
    return dict(_model().state_dict())
