"""What a run file cannot mean is said with its line, before anything is written."""

import pytest

from pipeline.cli import main

RUN = """name: small
trials: 2
executor: {kind: local, gpus: 0}
data: DATA
backbones:
  made: {pretrain: {preset: digits-simsiam}}
  random: {checkpoint: "random:resnet10-w8"}
benchmarks:
  - {verb: knn, data: imagenet, k: [5], temperature: [0.07], resize: 24, crop: 24}
  - {verb: linear, data: imagenet}
  - {verb: svm, data: VOCdevkit}
  - {verb: detect, data: coco, format: coco}
  - {verb: segment, data: VOCdevkit}
"""
WRONG = [
    ("trials: 2", "trials:", ":2: trials is None; it must be a number"),
    ("trials: 2", "trials: 0", ":2: trials is 0; it must be at least 1"),
    ("name: small", "name: ../x", ":1: name is '../x'; it becomes a file's name"),
    ("name: small", "name: ''", ":1: name is ''; it becomes a file's name"),
    ("name: small", 'name: "a\\0b"', ":1: name is 'a\\x00b'; it becomes a file's name"),
    ("  random:", "  /tmp/x:", ":7: backbones./tmp/x is '/tmp/x'; it becomes a file's name"),
    ("  random:", "  ../x:", "is '../x'; it becomes a file's name"),
    ("  random:", '  "a\\nb":', "is 'a\\nb'; it becomes a file's name"),
    ("  random:", f"  {'x' * 101}:", "1 to 100 bytes"),
    ("gpus: 0", "gpus:", ":3: executor.gpus says nothing"),
    (
        "gpus: 0",
        "verbs: {knn: null}",
        ":3: executor.verbs: verbs: 'None' is not a mapping of mappings",
    ),
    ("gpus: 0", "verbs: {knn: {gpus: -2}}", "executor.verbs.knn.gpus must be 0 or more"),
    ("gpus: 0", "verbs: {knn: {nodes: 0}}", "executor.verbs.knn.nodes must be more than 0"),
    ("gpus: 0", "verbs: {knn: {hours: .inf}}", "executor.verbs.knn.hours must be more than 0, and"),
    ("preset: digits-simsiam", "preset: [x]", ":6: backbones.made.pretrain.preset is ['x']"),
    ("preset: digits-simsiam", "data: 5", ":6: backbones.made.pretrain.data is 5; it must be text"),
    ("preset: digits-simsiam", "out: /tmp/x", "made.pretrain.out is the run's to say"),
    ("preset: digits-simsiam", "config: x.yaml", "made.pretrain.config is the run's to say"),
    ("preset: digits-simsiam", "options: {a: 1}", "simsiam has no such option"),
    ("random:resnet10-w8", "random:resnet999", ":7: backbones.random.checkpoint: architecture"),
    ("random:resnet10-w8", "tim:resnet50", ":7: backbones.random: tim:resnet50 does not exist"),
    ("k: [5]", "preset: {a: 1}", ":9: benchmarks[0].preset is {'a': 1}; it must be text"),
    ("k: [5]", "config: x.yaml", ":9: benchmarks[0].config is the run's to say"),
    ("k: [5]", "only_trial: 1", ":9: benchmarks[0].only_trial is the run's to say"),
    ("k: [5]", "trials: 0", ":9: benchmarks[0].trials: trials is 0; it must be at least 1"),
    ("k: [5]", "seed: -1", ":9: benchmarks[0].seed: seed is -1; it must be at least 0"),
    ("k: [5]", "k: [0]", ":9: benchmarks[0]: knn: k is [0]"),
    ("k: [5]", "backbones: [1]", ":9: benchmarks[0].backbones: name 1 in quotes"),
    ("k: [5]", "backbones: [made, made]", "backbones: 'made' is named twice"),
    ("verb: linear", "verb: linear, batch_size: 0", ":10: benchmarks[1]: linear: batch_size"),
    ("verb: svm", "verb: svm, k: [0]", ":11: benchmarks[2].k: k is [0]"),
    ("verb: detect", "verb: detect, lr: -1", ":12: benchmarks[3].lr: lr is"),
    ("verb: segment", "verb: segment, dropout: 2", ":13: benchmarks[4].dropout: dropout is 2"),
    ("data: DATA", "data: {5: DATA}", ":4: data: name 5 in quotes"),
    ("data: DATA", "digit_scenes: {out: x}", ":4: digit_scenes.out is the run's to say"),
    ("backbones:\n", "backbones: &a\n  a: *a\n", "something in it contains itself"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_it_is_refused_in_one_line_with_its_place(scenes, tmp_path, capsys, old, new, message):
    path = tmp_path / "wrong.yaml"
    assert RUN.count(old) == 1
    path.write_text(RUN.replace(old, new).replace("DATA", str(scenes)))
    assert main(["plan", str(path), "--root", str(tmp_path / "root")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert str(path) in error
    assert not (tmp_path / "root").exists()


def test_without_the_mistakes_it_is_taken(scenes, tmp_path, capsys):
    path = tmp_path / "right.yaml"
    path.write_text(RUN.replace("DATA", str(scenes)))
    assert main(["plan", str(path), "--root", str(tmp_path / "root")]) == 0
