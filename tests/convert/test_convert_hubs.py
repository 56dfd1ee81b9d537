"""timm:, torchvision: and hf-hub: names, through the real libraries with prepared caches: no network.

Features are held against the libraries' own models.
"""

import hashlib
import http.server
import json
import os
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import checkpoints
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

import siambench
from convert.config import ConvertConfig
from convert.run import run
from siambench.backbone import BackboneMeta, read_backbone, save_backbone, weights_digest
from siambench.checkpoints import hubs
from siambench.checkpoints.hugging_face import Repository
from siambench.checkpoints.source import read_checkpoint
from siambench.errors import UserError
from siambench.resnet import build_resnet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Put = Callable[..., Path]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, which cannot download."""

    def refused(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Connection refused")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refused)
    monkeypatch.setattr(hubs, "published", lambda _: True)  # the tests' weights are their own
    return tmp_path / "hub/checkpoints"


def test_torchvision_gives_its_own_features(torch_home: Path, tmp_path: Path) -> None:
    torch_home.mkdir(parents=True)
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(checkpoints.make_resnet("resnet18").state_dict(), strict=False)
    url = ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(theirs.state_dict(), torch_home / url.rpartition("/")[2])
    theirs = torchvision.models.get_model("resnet18", weights="IMAGENET1K_V1").eval()
    theirs.fc = nn.Identity()

    ours = siambench.load_backbone("torchvision:resnet18")
    images = checkpoints.images()
    assert close(ours.features(images), theirs(images))
    assert ours.name == "torchvision-resnet18.IMAGENET1K_V1"
    assert ours.sha256 == weights_digest(theirs.state_dict())
    assert ours.meta.method == "supervised (IMAGENET1K_V1)"
    assert ours.meta.source == "torchvision:resnet18.IMAGENET1K_V1"
    assert (ours.meta.mean, ours.meta.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    run(ConvertConfig("torchvision:resnet18", str(tmp_path / "a.safetensors")))
    state, meta = read_backbone(tmp_path / "a.safetensors")
    assert (meta.method, meta.weights_sha256) == (ours.meta.method, ours.sha256)
    assert weights_digest(state) == ours.sha256


def test_a_file_in_torchs_cache_must_be_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    (folder / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]).write_bytes(b"other weights")
    with pytest.raises(UserError, match="is not the file that torchvision publishes"):
        hubs.fetch("torchvision:resnet18")
    digest = hashlib.sha256(b"other weights").hexdigest()
    (tmp_path / f"net-{digest[:8]}.pth").write_bytes(b"other weights")
    assert hubs.published(tmp_path / f"net-{digest[:8]}.pth")


@pytest.mark.parametrize("tag", ["", ".DEFAULT", ".IMAGENET1K_V2"])
def test_which_torchvision_weights(torch_home: Path, tag: str) -> None:
    weights = ResNet50_Weights.IMAGENET1K_V2 if tag else ResNet50_Weights.IMAGENET1K_V1
    torch_home.mkdir(parents=True)
    cached = torch_home / weights.url.rpartition("/")[2]
    cached.touch()
    fetched = hubs.fetch(f"torchvision:resnet50{tag}")
    assert fetched.file == cached
    assert fetched.uri == f"torchvision:resnet50.{weights.name}"
    assert ("IMAGENET1K_V1 taken" in " ".join(fetched.notes)) == (not tag)


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Put files (bytes, or JSON) into an empty cache of huggingface_hub, which is offline."""
    cache = tmp_path / "hf"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put_files(repository: str, files: Mapping[str, object]) -> Path:
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(COMMIT)
        for name, content in files.items():
            path = snapshot / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(
                content if isinstance(content, bytes) else json.dumps(content).encode()
            )
        return snapshot

    return put_files


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_timm_gives_its_own_features(put: Put, file: str) -> None:
    model = timm.create_model("resnet18")
    model.load_state_dict(checkpoints.make_resnet("resnet18").state_dict(), strict=False)
    snapshot = put("timm/resnet18.a1_in1k", {})
    (save_file if file.endswith("safetensors") else torch.save)(model.state_dict(), snapshot / file)
    theirs = timm.create_model("resnet18.a1_in1k", pretrained=True, num_classes=0).eval()

    ours = siambench.load_backbone("timm:resnet18")
    images = checkpoints.images()
    assert close(ours.features(images), theirs(images))
    assert ours.name == "timm-resnet18.a1_in1k"
    assert ours.meta.method == "timm a1_in1k"
    assert ours.meta.mean == theirs.pretrained_cfg["mean"]
    assert ours.meta.std == theirs.pretrained_cfg["std"]
    notes = " ".join(hubs.fetch("timm:resnet18.a1_in1k").notes)
    assert f"timm:resnet18.a1_in1k is timm/resnet18.a1_in1k@{COMMIT}" in notes


def _caffe_stride(model: nn.Module) -> None:
    for layer in (model.layer2, model.layer3, model.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)


def _set(path: str, name: str, value: object) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


@pytest.mark.parametrize(
    "change",
    [
        _caffe_stride, _set("layer4.2.bn3", "eps", 1e-6),
        _set("layer3.1", "relu", nn.LeakyReLU(0.01)), _set("layer1.0", "relu", nn.GELU()),
        _set("", "maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        _set("conv1", "padding", (2, 2)), _set("layer4.0.conv2", "dilation", (2, 2)),
        _set("layer2.1.conv2", "padding_mode", "reflect"),
        _set("", "avgpool", nn.AdaptiveMaxPool2d(1)), _set("", "extra", nn.Linear(2, 2)),
    ],
)  # fmt: skip
def test_same_names_and_shapes_do_not_fool(change: Callable[[nn.Module], None]) -> None:
    theirs = build_resnet("resnet50-w8", zero_init_residual=True)  # as timm starts: all blocks idle
    assert hubs.same_features(theirs, build_resnet("resnet50-w8"))
    change(theirs)
    assert not hubs.same_features(theirs, build_resnet("resnet50-w8"))


@pytest.mark.parametrize(
    ("files", "wanted", "taken"),
    [
        (["pytorch_model.bin", "model.safetensors", "x.pth"], "", "model.safetensors"),
        (["pytorch_model.bin", "x.pth", "README.md"], "", "pytorch_model.bin"),
        (["weights/last.pth.tar", "README.md"], "", "weights/last.pth.tar"),
        (["model.safetensors", "weights/x.pth"], "/weights/x.pth", "weights/x.pth"),
    ],
)  # fmt: skip
def test_which_file_of_a_repository(put: Put, files: list[str], wanted: str, taken: str) -> None:
    snapshot = put("us/net", dict.fromkeys(files, b"x"))
    fetched = hubs.fetch(f"hf-hub:us/net{wanted}")
    assert fetched.file == snapshot / taken
    assert fetched.uri == f"hf-hub:us/net@{COMMIT}{wanted}"
    assert f"weights from {taken}" in fetched.notes
    assert hubs.fetch(fetched.uri).file == fetched.file
    assert (fetched.mean, fetched.std) == (None, None)
    assert any("normalised is not said" in note for note in fetched.notes)
    assert any("the Hub was not reached" in note for note in fetched.notes)


def test_a_published_backbone_file_keeps_what_it_says(put: Put) -> None:
    snapshot = put("us/ours", {})
    state = checkpoints.make_resnet().state_dict()
    meta = BackboneMeta("resnet10-w8", "SimSiam", 800, mean=(0.4,) * 3, std=(0.2,) * 3)
    save_backbone(snapshot / "model.safetensors", state, meta)
    _, found, report = read_checkpoint("hf-hub:us/ours")
    assert (found.method, found.epochs, found.mean) == ("SimSiam", 800, (0.4,) * 3)
    assert report.mean == (0.4,) * 3
    assert report.source == found.source == f"hf-hub:us/ours@{COMMIT}"


def test_a_repository_end_to_end(put: Put) -> None:
    model = checkpoints.make_resnet()
    simsiam = checkpoints.put("module.encoder.", model.state_dict())
    simsiam["module.predictor.0.weight"] = torch.zeros(2, 2)
    inner = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    outer = {"mean": [0.1, 0.1, 0.1], "std": [0.1, 0.1, 0.1]}
    snapshot = put("us/net", {"run/config.json": inner, "config.json": outer})
    torch.save(checkpoints.training(simsiam), snapshot / "run/last.pth")
    ours = siambench.load_backbone("hf-hub:us/net@main")
    images = checkpoints.images()
    assert close(ours.features(images), model(images))
    assert (ours.meta.method, ours.meta.epochs) == ("SimSiam", 100)
    assert (ours.meta.mean, ours.meta.std) == ((0.5,) * 3, (0.25,) * 3)
    assert ours.name == f"hf-hub-us-net-{COMMIT[:8]}"


def test_transformers_gives_its_own_features(put: Put) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [3, 4, 6, 3]}
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}
    theirs.save_pretrained(put("us/net", {"preprocessor_config.json": processor}))

    ours = siambench.load_backbone("hf-hub:us/net")
    images = checkpoints.images()
    assert close(ours.features(images), theirs.resnet(images).pooler_output.flatten(1))
    assert (ours.meta.mean, ours.meta.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    other = transformers.ResNetModel(transformers.ResNetConfig(**sizes, embedding_size=32))
    other.save_pretrained(put("us/other", {}))
    with pytest.raises(UserError, match=r"conv1\.weight has shape .*; nothing was written"):
        read_checkpoint("hf-hub:us/other")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
        ({"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act is 'gelu', not 'relu'"),
        ({"architecture": "resnetblur50", "pretrained_cfg": {}}, "timm's resnetblur50"),
        ({"architecture": "resnet50", "pretrained_cfg": {}, "model_args": {"norm_layer": "x"}}, "norm_layer"),
        ([], "config.json is damaged"), ({"pretrained_cfg": 3}, "config.json is damaged"),
        (b'{"architecture"', "config.json is damaged"),
        (b"[" * 100_000, "config.json is damaged"),
    ],
)  # fmt: skip
def test_another_network_is_refused_before_its_weights(
    put: Put, monkeypatch: pytest.MonkeyPatch, config: object, line: str
) -> None:
    put("us/net", {"config.json": config, "model.safetensors": b""})
    got: list[str] = []
    get = Repository.get
    monkeypatch.setattr(Repository, "get", lambda self, file: got.append(file) or get(self, file))
    with pytest.raises(UserError, match=line):
        hubs.fetch("hf-hub:us/net")
    assert got == ["config.json"]


@pytest.mark.parametrize(
    ("told", "mean"),
    [
        ({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}, 0.1),
        ({"architecture": "resnet18", "mean": [0.3] * 3, "std": [0.2] * 3, "pretrained_cfg": None}, 0.3),
        ({"mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]}, None),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, None),
        ({"mean": 0.5, "std": [0.5, 0.5, float("nan")]}, None),
    ],
)  # fmt: skip
def test_input_statistics_of_a_config(
    put: Put, told: dict[str, object], mean: float | None
) -> None:
    put("us/net", {"config.json": told, "model.safetensors": b"x"})
    fetched = hubs.fetch("hf-hub:us/net")
    assert fetched.mean == (None if mean is None else (mean,) * 3)
    assert (fetched.std is None) == (mean is None)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("uri", ["hf-hub:timm/resnet18.a1_in1k", "timm:resnet18.a1_in1k"])
def test_a_hostile_pickle_does_not_run(put: Put, uri: str) -> None:
    snapshot = put("timm/resnet18.a1_in1k", {})
    torch.save({"state_dict": Hostile()}, snapshot / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"is refused: its pickle wants posix\.mkdir"):
        read_checkpoint(uri)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("torchvision:resnext50_32x4d", "'resnext50_32x4d' is no plain ResNet of torchvision's: resnet18, resnet34"),
        ("torchvision:vit_b_16", "no plain ResNet"), ("torchvision:resnet10", "no plain ResNet"), ("torchvision:", "no plain ResNet"),
        ("torchvision:resnet18.V2", "no weights 'V2'; it has IMAGENET1K_V1, DEFAULT"),
        ("torchvision:resnet18", r"resnet18-f37072fd.pth cannot be fetched \(.*Connection refused"),
        ("timm:resnet50d", "conv1.weight"),  # three convolutions for a stem
        ("timm:resnetblur18.anything", "named and shaped like resnet18, it gives other features"),
        ("timm:resnetaa50", "named and shaped like resnet50, it gives other features"),
        ("timm:seresnet50", "layer1.0.se.fc1.weight is no part of resnet50"),
        ("timm:resnext50_32x4d", "has shape"), ("timm:resnet50_gn", "bn1.running_mean"), ("timm:resnet26", "missing"),
        ("timm:resnet50_clip", "not among timm's ResNets .*; plain ones are resnet18, resnet34"),
        ("timm:vit_base_patch16_224", "not among"), ("timm:resnet51", "not among"), ("timm:hf-hub:a/b", "not among"),
        ("timm:resnet18.no_such", "no weights 'no_such' in timm; it has .*a1_in1k"),
        ("timm:resnet18.a1_in1k", "timm/resnet18.a1_in1k is not in the cache"),
        ("hf-hub:", "write hf-hub:USER/REPO"), ("hf-hub:us/net@", "write hf-hub:USER/REPO"),
        ("hf-hub:us/other", r"was not reached \(.*offline.*\) and us/other is not in the cache"),
        ("hf-hub:us/net@v2", "is not in the cache"), ("hf-hub:us/bare", "there are no weights in it"),
        ("hf-hub:us/net", "no one file of weights .* in us/net .*: a.pth, b.ckpt"),
        ("hf-hub:us/net/c.pth", "no file c.pth in us/net .*: a.pth, b.ckpt"),
        ("hf-hub:us/net/../../../x.pth", "no file ../../../x.pth"),
    ],
)  # fmt: skip
def test_one_line(torch_home: Path, put: Put, uri: str, line: str) -> None:
    put("us/net", dict.fromkeys(["a.pth", "b.ckpt", "README.md"], b""))
    put("us/bare", {"README.md": b""})
    with pytest.raises(UserError, match=line):
        hubs.fetch(uri)
    assert not torch_home.exists() or not list(torch_home.iterdir())


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, library in {"timm:resnet18": "timm", "hf-hub:us/net": "huggingface_hub"}.items():
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=f"needs {library}.* pip install timm huggingface_hub"):
            hubs.fetch(uri)


FILES = {"config.json": b'{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}', "a.pth": b"weights"}
NO = {"us/absent": (404, "RepoNotFound"), "us/gated": (403, "GatedRepo"), "us/down": (503, "")}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the Hub that a download needs, and its ways to say no."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/models/")
        name = "/".join(path.split("/")[:2])
        if name in NO and (
            name != "us/gated" or "/resolve/" in path
        ):  # what is gated can be listed
            self._answer(NO[name][0], b"", {"X-Error-Code": NO[name][1]})
        elif "/revision/" in path and not path.endswith(f"/revision/{COMMIT}"):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/resolve/" in path:
            file = path.partition(f"/resolve/{COMMIT}/")[2]
            self._answer(200, FILES[file], {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT})
        else:
            told = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in FILES]}
            self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header in (*headers.items(), ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(put: Put, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """huggingface_hub speaks to this machine alone."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield put
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_download(hub: Put, revision: str) -> None:
    fetched = hubs.fetch(f"hf-hub:us/net{revision}")
    assert Path(fetched.file).read_bytes() == b"weights"
    assert fetched.uri == f"hf-hub:us/net@{COMMIT}"
    assert (fetched.mean, fetched.std) == ((0.5,) * 3, (0.5,) * 3)
    assert fetched.notes == ("weights from a.pth",)


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("hf-hub:us/absent", "us/absent is not on the Hugging Face Hub, or private"),
        ("hf-hub:us/gated", "us/gated is gated: ask for access"),
        ("hf-hub:us/net@v9", "us/net has no such revision"),
        ("hf-hub:us--x/net", "is no name of a repository"),
        ("hf-hub:us/down", "was not reached .*503.* and us/down is not in the cache"),
    ],
)  # fmt: skip
def test_what_the_hub_answers_in_one_line(hub: Put, uri: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        hubs.fetch(uri)


def test_the_cache_stands_in_for_a_hub_that_is_down(hub: Put) -> None:
    snapshot = hub("us/down", {"model.safetensors": b"x"})
    fetched = hubs.fetch("hf-hub:us/down")
    assert fetched.file == snapshot / "model.safetensors"
    assert any(note.startswith("from the cache") for note in fetched.notes)
