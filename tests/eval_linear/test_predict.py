"""The predict verb: against the record, a plain torch forward, and what strangers' files hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open, save_file
from torchvision.transforms import v2

from eval_linear import VERBS
from eval_linear.config import LinearConfig
from eval_linear.linear import run
from eval_linear.predict import Classifier
from pipeline.run import EVALUATIONS
from siambench.backbone import read_backbone, save_backbone
from siambench.checkpoints.source import load_backbone
from siambench.cli import run_verb
from siambench.errors import UserError


@pytest.fixture(scope="module")
def trained(scenes, backbone_file, tmp_path_factory):
    """A short probe of two layers; its record and its head."""
    out = tmp_path_factory.mktemp("linear")
    config = LinearConfig(
        backbone=str(backbone_file),
        data=str(scenes / "imagenet"),
        out=str(out),
        workers=0,
        optimizer="sgd",
        base_lr=1.0,
        batch_size=32,
        epochs=6,
        layers=["avgpool", "feature4"],
        batch_norm=True,
        resize=36,
        crop=32,
        min_scale=0.5,
        flip=False,
        road="cached",
    )
    (record,) = run(config)
    (head,) = out.rglob("head.safetensors")
    return record, head


@pytest.fixture
def val(scenes) -> Path:
    return scenes / "imagenet" / "val"


def predict(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command."""
    capsys.readouterr()
    code = run_verb(VERBS["predict"], [*map(str, arguments), "--device", "cpu"])
    return code, *capsys.readouterr()


def changed(head: Path, path: Path, tensors=None, **metadata) -> Path:
    """A copy of ``head`` with other tensors and metadata; None takes an entry out."""
    with safe_open(head, framework="pt") as file:
        about = {**file.metadata(), **metadata}
    about = {name: value for name, value in about.items() if value is not None}
    save_file({**load_file(head), **(tensors or {})}, path, metadata=about)
    return path


@pytest.mark.parametrize("layer", ["avgpool", "feature4"])
def test_accuracy_over_val_is_the_record_s(trained, val, capsys, layer):
    record, head = trained
    code, out, _ = predict(capsys, val, "--head", head, "--layer", layer, "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["path"] for one in found] == sorted(str(p) for p in val.rglob("*.jpg"))
    truth = [Path(one["path"]).parent.name for one in found]
    top1 = [one["pred_class"] == name for one, name in zip(found, truth, strict=True)]
    top5 = [
        name in [guess["class"] for guess in one["topk"]]
        for one, name in zip(found, truth, strict=True)
    ]
    assert 100 * np.mean(top1) == pytest.approx(record.metric("top1", layer=layer), abs=1e-9)
    assert 100 * np.mean(top5) == pytest.approx(record.metric("top5", layer=layer), abs=1e-9)
    assert record.metric("top1", layer=layer) > 15  # of ten classes: not all alike


def plain_logits(head: Path, paths: list[Path], backbone_file: Path, bf16: bool = False):
    """torchvision's ResNet with the head as its fc, on images that torchvision prepared."""
    state, meta = read_backbone(backbone_file)
    resnet = load_backbone(backbone_file).resnet
    resnet.load_state_dict(state)
    resnet.fc = torch.nn.Linear(128, 10)
    tensors = load_file(head)
    resnet.fc.load_state_dict({p: tensors[f"avgpool.{p}"] for p in ("weight", "bias")})
    prepare = v2.Compose(
        [
            v2.Resize(36),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(meta.mean, meta.std),
        ]
    )
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = torch.nn.Sequential(*list(resnet.children())[:8])(images)
    with torch.no_grad():
        return resnet.fc(maps.float().mean((2, 3)))


def test_scores_are_a_plain_forward_s(trained, val, backbone_file):
    _, head = trained
    paths = sorted(val.rglob("*.jpg"))[::9]
    found = Classifier(head, device="cpu", topk=3)([*paths])
    wanted = plain_logits(head, paths, backbone_file).double().softmax(1)
    scores = np.stack([one["pred_scores"] for one in found])
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    for one, row in zip(found, wanted, strict=True):
        order = row.argsort(descending=True)[:3].tolist()
        assert [guess["label"] for guess in one["topk"]] == order
        assert one["pred_label"] == order[0]
        assert one["pred_score"] == one["topk"][0]["score"] == one["pred_scores"][order[0]]


def test_a_head_of_bf16_features_predicts_with_them(trained, val, backbone_file, tmp_path):
    paths = sorted(val.rglob("*.jpg"))[::9]
    head = changed(trained[1], tmp_path / "bf16.safetensors", precision="bf16")
    scores = np.stack([one["pred_scores"] for one in Classifier(head, device="cpu")([*paths])])
    near, exact = (
        plain_logits(trained[1], paths, backbone_file, bf16).softmax(1).numpy()
        for bf16 in (True, False)
    )
    error = np.abs(scores - exact).max()
    assert np.abs(scores - near).max() < 0.2 * error
    assert error > 1e-5


def test_a_head_for_several_labels_has_a_probability_for_each(
    trained, val, backbone_file, tmp_path
):
    paths = sorted(val.rglob("*.jpg"))[::9]
    head = changed(trained[1], tmp_path / "several.safetensors", scores="sigmoid")
    found = Classifier(head, device="cpu")([*paths])
    wanted = torch.sigmoid(plain_logits(trained[1], paths, backbone_file)).numpy()
    np.testing.assert_allclose([one["pred_scores"] for one in found], wanted, atol=1e-5)


def test_image_in_memory_is_as_on_disk(trained, val):
    classifier = Classifier(trained[1], device="cpu")
    path = next(val.rglob("*.jpg"))
    image = Image.open(path)
    tensor = v2.functional.pil_to_tensor(image)
    disk, text, pil, flat = classifier([path, str(path), image, tensor], batch_size=4)
    assert disk["path"] == text["path"] == str(path)
    assert pil["path"] == flat["path"] == ""
    for other in (text, pil, flat):
        np.testing.assert_allclose(other["pred_scores"], disk["pred_scores"], atol=1e-6)
    assert disk["pred_class"] == classifier.classes[disk["pred_label"]]
    for wrong in (str(path), path, [], [tensor.float()], [tensor[:1]], [image.convert("F")]):
        with pytest.raises(UserError):
            classifier(wrong)


def test_lines_and_json(trained, val, capsys, tmp_path):
    first, second = sorted((val / "two").iterdir())[:2]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.PNG").symlink_to(first)
    (tmp_path / "deep" / "notes.txt").write_text("not an image")
    named = [second, tmp_path / "deep"]
    code, out, _ = predict(capsys, *named, "--head", trained[1])
    assert code == 0
    lines = [line.split("  ") for line in out.splitlines()]
    code, out, _ = predict(capsys, *named, "--head", trained[1], "--topk", 99, "--json")
    found = json.loads(out)
    assert [one["path"] for one in found] == [str(second), str(tmp_path / "deep/er/a.PNG")]
    for one, line in zip(found, lines, strict=True):
        assert line == [one["path"], one["pred_class"], f"{one['pred_score']:.4f}"]
        assert set(one) == {"path", "pred_label", "pred_class", "pred_score", "topk"}
        assert len(one["topk"]) == 10
        top = {"label": one["pred_label"], "class": one["pred_class"], "score": one["pred_score"]}
        assert one["topk"][0] == top


def test_class_name_cannot_break_the_line(trained, val, capsys, tmp_path):
    names = json.dumps([f"{label}\n\x1b[2J\udcff" for label in range(10)])
    head = changed(trained[1], tmp_path / "head.safetensors", classes=names)
    code, out, _ = predict(capsys, next(val.rglob("*.jpg")), "--head", head)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert out.strip().isprintable()
    assert " [2J " in out


def test_same_weights_from_any_source(trained, val, backbone_file, tmp_path):
    """A checkpoint of the same weights is the same backbone, normalised as the probe was."""
    state, meta = read_backbone(backbone_file)
    torch.save(state, tmp_path / "tiny.pth")
    save_backbone(tmp_path / "moved.safetensors", state, replace(meta, mean=(0.1, 0.2, 0.3)))
    paths = sorted(val.rglob("*.jpg"))[:3]
    wanted = [one["pred_scores"] for one in Classifier(trained[1], device="cpu")(paths)]
    for source in (tmp_path / "tiny.pth", tmp_path / "moved.safetensors", state):
        found = Classifier(trained[1], source, device="cpu")(paths)
        np.testing.assert_allclose([one["pred_scores"] for one in found], wanted, atol=1e-6)


def test_head_of_before_reads_where_it_says_enough(trained, val, backbone_file, tmp_path, capsys):
    since = ("format", "format_version", "backbone_source", "weights_sha256", "mean", "std")
    old = changed(trained[1], tmp_path / "old.safetensors", **dict.fromkeys(since))
    image = next(val.rglob("*.jpg"))
    new = Classifier(trained[1], device="cpu")([image])
    found = Classifier(old, backbone_file, device="cpu")([image])
    np.testing.assert_allclose(found[0]["pred_scores"], new[0]["pred_scores"], atol=1e-6)
    code, _, error = predict(capsys, image, "--head", old)
    assert code == 2
    assert "does not say where its backbone is; name it with --backbone" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "image: nowhere.jpg does not exist"),
        (["EMPTY"], "has no images"),
        (["TEXT"], "cannot be decoded"),
        (["TEXT", "--skip-bad"], "not one of 1 images can be read"),
        (["IMAGE", "--head", "nowhere"], "head: nowhere does not exist"),
        (["IMAGE", "--head", "BACKBONE"], "not a head that `siambench linear` saved"),
        (["IMAGE", "--head", "TEXT"], "not a whole head file"),
        (["IMAGE", "--layer", "feature1"], "no layer 'feature1'; it has feature4, avgpool"),
        (["IMAGE", "--topk", "0"], "topk must be at least 1"),
        (["IMAGE", "--device", "tpu"], "device 'tpu'"),
        (["IMAGE", "--backbone", "nowhere"], "nowhere does not exist"),
        (["IMAGE", "--backbone", "random:resnet10-w24"], "is not the backbone that"),
        (["--topk", "1"], "images"),
    ],
)
def test_bad_input_is_one_line_before_work(
    trained, val, backbone_file, tmp_path, capsys, monkeypatch, arguments, message
):
    text, empty = tmp_path / "page.jpg", tmp_path / "empty"
    text.write_text("<html>404</html>")
    empty.mkdir()
    places = {
        "IMAGE": next(val.rglob("*.jpg")),
        "EMPTY": empty,
        "TEXT": text,
        "BACKBONE": backbone_file,
    }
    monkeypatch.setattr("eval_linear.predict.extract", None)  # the work
    arguments = [str(places.get(word, word)) for word in arguments]
    if "--head" not in arguments:
        arguments += ["--head", str(trained[1])]
    device = [] if "--device" in arguments else ["--device", "cpu"]
    code = run_verb(VERBS["predict"], [*arguments, *device, "--quiet"])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_backbone_that_is_gone_is_named(trained, val, tmp_path, capsys):
    gone = changed(trained[1], tmp_path / "h.safetensors", backbone_source="/gone/b.safetensors")
    code, _, error = predict(capsys, next(val.rglob("*.jpg")), "--head", gone)
    assert code == 2
    assert "/gone/b.safetensors does not exist" in error
    assert "--backbone" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"format": "another"}, "not a head"),
        ({}, {"format_version": "9"}, "format version '9'"),
        ({}, {"classes": None}, "has no classes"),
        ({}, {"resize": None}, "has no resize"),
        ({}, {"classes": '["one"]'}, "are not 10 names"),
        ({}, {"classes": "[1,2,3,4,5,6,7,8,9,0]"}, "are not 10 names"),
        ({}, {"classes": '"abcdefghij"'}, "are not 10 names"),
        ({}, {"classes": "["}, "not a whole head file"),
        ({}, {"classes": "[" * 100_000}, "not a whole head file"),
        ({}, {"crop": "0"}, "not sizes of images"),
        ({}, {"crop": "64"}, "not sizes of images"),
        ({}, {"resize": "99999999", "crop": "99999999"}, "not sizes of images"),
        ({}, {"resize": "many"}, "not a whole head file"),
        ({}, {"mean": "[1, 2]"}, "three numbers"),
        ({}, {"std": "[1, 2, 0]"}, "three numbers"),
        ({}, {"mean": "[NaN, 0, 0]"}, "three numbers"),
        ({}, {"mean": "[1" + "0" * 400 + ", 0, 0]"}, "not a whole head file"),
        ({}, {"std": "7"}, "not a whole head file"),
        ({"more": torch.zeros(1)}, {}, "one weight and one bias"),
        ({"avgpool.weight": torch.zeros(10, 64)}, {}, "takes 64 features, the backbone gives 128"),
        ({"avgpool.weight": torch.zeros(9, 128)}, {}, "do not fit"),
        ({"avgpool.weight": torch.full((10, 128), torch.nan)}, {}, "NaN"),
        ({"avgpool.bias": torch.zeros(10).to(torch.float8_e4m3fn)}, {}, "not float32"),
        ({"avgpool.weight": torch.full((10, 128), 3e38)}, {}, "scores are not finite"),
    ],
)
def test_damaged_head_is_one_line(trained, val, tmp_path, capsys, tensors, metadata, message):
    head = changed(trained[1], tmp_path / "head.safetensors", tensors, **metadata)
    code, _, error = predict(capsys, next(val.rglob("*.jpg")), "--head", head, "--quiet")
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_truncated_head_is_one_line(trained, val, tmp_path, capsys):
    whole = trained[1].read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path = tmp_path / "head.safetensors"
        path.write_bytes(whole[:length])
        code, _, error = predict(capsys, next(val.rglob("*.jpg")), "--head", path)
        assert (code, len(error.splitlines())) == (2, 1)
        assert "not a whole head file" in error


def test_documented_example_runs(trained, val, monkeypatch, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "linear.md").read_text()
    lines = text[text.index("    from eval_linear.predict") :].split("\n\n")[0].splitlines()
    head = next(line.split('"')[1] for line in lines if "head.safetensors" in line)
    monkeypatch.chdir(tmp_path)
    (tmp_path / head).parent.mkdir(parents=True)
    (tmp_path / head).symlink_to(trained[1])
    (tmp_path / "cat.jpg").symlink_to(next(val.rglob("*.jpg")))
    names = {}
    exec("\n".join(line[4:] for line in lines), names)
    assert names["found"]["pred_class"] in names["classifier"].classes


def test_predict_is_no_benchmark_of_a_run():
    assert set(VERBS) - set(EVALUATIONS) == {"predict"}
