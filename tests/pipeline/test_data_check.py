"""`siambench data check`: what an evaluation would say of its data, without a backbone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.check import CheckConfig, check
from pipeline.cli import main
from pipeline.verbs import EVALUATIONS, VERBS
from siambench.config import make_config
from siambench.data import images
from siambench.errors import UserError

CASES = {
    "linear": ("in1k-linear-lars-90e", "imagenet"),
    "svm": ("voc07-svm", ""),
    "detect": ("coco-mrcnn-c4-1x", "coco"),
    "segment": ("voc12aug-fcn-20k", ""),
}


def test_it_refuses_what_the_evaluation_refuses(scenes, capsys):
    assert {*CASES, "knn"} == set(EVALUATIONS)
    data = str(scenes / "imagenet")  # 100 training images, and the preset's k is 200
    config = make_config(VERBS["knn"], {"backbone": "", "data": data, "preset": "in1k-knn"})
    with pytest.raises(UserError, match="200") as refused:
        VERBS["knn"].load_benchmark().open_data(config)
    assert main(["data", "check", "in1k-knn", data]) == 2
    assert capsys.readouterr().err.endswith(f"siambench: error: {refused.value}\n")


@pytest.mark.parametrize("verb", CASES)
def test_it_says_what_the_evaluation_finds(verb, scenes, capsys):
    preset, folder = CASES[verb]
    data = str(scenes / folder)
    values = {"backbone": "", "data": data, "preset": preset}
    benchmark = VERBS[verb].load_benchmark()
    info = benchmark.open_data(make_config(VERBS[verb], values)).info
    capsys.readouterr()
    assert main(["data", "check", preset, data]) == 0
    rows = re.split("\n", capsys.readouterr().out)
    for key, count in info.counts.items():
        assert any(key.split("_")[0] in row and f" {count:,}" in row for row in rows)
    assert rows[-3:-1] == [f"name in records: {info.name}", f"fingerprint: {info.fingerprint}"]
    assert main(["data", "check", preset, data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == info.counts
    assert (found["verb"], found["fingerprint"]) == (verb, info.fingerprint)


def test_counts_beside_the_official_ones(scenes, capsys, monkeypatch):
    config = CheckConfig(data=str(scenes), name="voc07-frcnn-c4")
    found = check(config)
    assert found.name == "digit-scenes"
    assert "differs by -" in capsys.readouterr().out
    counts = found.counts
    splits = {split: counts[split] for split in ("trainval", "test")}
    monkeypatch.setitem(images.OFFICIAL_COUNTS, "voc07", splits)
    contents = {"classes": counts["classes"], "test_boxes": counts["test_boxes"] - 2}
    monkeypatch.setitem(images.OFFICIAL_CONTENTS, "voc07", contents)
    assert check(config).name == "voc07", "by the counts of images alone"
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    verdicts = {" ".join(row[:2]): " ".join(row[4:]) for row in rows if len(row) > 4}
    assert verdicts == {
        "trainval images": "yes",
        "test images": "yes",
        "test boxes": "differs by +2",
    }
    assert ["classes", "10", "10", "yes"] in rows


def test_official_contents_are_of_official_sets_and_names_that_evaluations_use():
    assert set(images.OFFICIAL_CONTENTS) <= set(images.OFFICIAL_COUNTS)
    for name, contents in images.OFFICIAL_CONTENTS.items():
        splits = images.OFFICIAL_COUNTS[name]
        kinds = {f"{split}_{kind}" for split in splits for kind in ("boxes", "not_difficult")}
        assert set(contents) <= kinds | {"classes"}
    voc = images.OFFICIAL_CONTENTS["voc07"]
    assert voc["trainval_not_difficult"] + voc["test_not_difficult"] == 24_640  # the devkit's total


def test_all_problems_are_printed_one_a_line_and_the_exit_code_is_2(scenes, tmp_path, capsys):
    shutil.copytree(scenes / "VOCdevkit/VOC2007", tmp_path / "VOCdevkit/VOC2007")
    paths = sorted((tmp_path / "VOCdevkit/VOC2007/Annotations").glob("*.xml"))[:7]
    for path in paths:
        text = re.sub("<name>[^<]*", "<name>uni\u009bcorn\n", path.read_text(), count=1)
        path.write_text(text)
    arguments = ["data", "check", "voc07-frcnn-c4", str(tmp_path)]
    for flags in ([], ["--quiet"], ["--json"]):
        assert main([*arguments, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 8
        for path in paths:
            assert sum(f"{path}, object 1 (" in line for line in lines[:-1]) == 1
        assert lines[-1].startswith("siambench: error: 7 problems in ")
        assert all(line.isprintable() for line in lines)
    assert main([*arguments, "--skip-bad"]) == 0
    assert re.search(r"skipped objects +7", capsys.readouterr().out)


def test_one_problem_is_one_line(scenes, tmp_path, capsys):
    shutil.copytree(scenes / "coco", tmp_path / "coco")
    (tmp_path / "coco/train2017/000000000001.jpg").unlink()
    arguments = ["--name", "coco-mrcnn-c4-1x", "--data", str(tmp_path / "coco")]
    assert main(["data", "check", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search("error: 1 problem in .*image 1: .*000000000001.jpg cannot be read", err)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "nope"}, "no data set or preset 'nope'; data sets: imagenet-1k.*voc07-svm"),
        ({"name": "voc07-svm", "verb": "detect"}, "preset 'voc07-svm'; data sets: .*coco-mrcnn"),
        (
            {"name": "in1k-knn", "verb": "pretrain"},
            "'pretrain' is not an evaluation; choose from",
        ),
        ({"name": "coco-mrcnn-c4-1x"}, "nowhere/annotations/.* does not exist"),
    ],
)
def test_wrong_names(values, message):
    with pytest.raises(UserError, match=message):
        check(CheckConfig(data="nowhere", **values))


@pytest.mark.parametrize("preset", VERBS["segment"].preset_files())
def test_official_counts_of_segmentation(preset, scenes, capsys):
    official = {"voc12aug": ("10,582", "1,449"), "cityscapes": ("2,975", "500")}
    name = preset.partition("-")[0]
    folder = "VOCdevkit" if name == "voc12aug" else "cityscapes"
    assert main(["data", "check", preset, str(scenes / folder)]) == 0
    rows = capsys.readouterr().out.splitlines()
    for split, count in zip(("train", "val"), official[name], strict=True):
        assert sum(row.startswith(f"{split} images") and f" {count} " in row for row in rows) == 1


def test_fields_of_the_evaluation(scenes, capsys):
    """Without a preset; what another field changes; a field that there is not."""
    arguments = ["data", "check", "--data", str(scenes / "cityscapes"), "--verb", "segment"]
    assert main([*arguments, "--fields", "{dataset: cityscapes}"]) == 0
    assert "classes" in capsys.readouterr().out
    assert main(arguments) == 2  # the defaults are VOC's
    assert "VOC2012 does not exist" in capsys.readouterr().err
    assert main([*arguments, "--fields", "{nothing: 1}"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(arguments[:4]) == 2
    assert "a data set or preset by name, or --verb VERB" in capsys.readouterr().err


def test_preset_in_two_verbs_needs_the_verb(monkeypatch):
    both = {**VERBS["knn"].preset_files(), **VERBS["svm"].preset_files()}
    monkeypatch.setattr(VERBS["svm"].__class__, "preset_files", lambda self: both)
    with pytest.raises(UserError, match=r"preset in1k-knn is one of .* and .*; add --verb NAME"):
        check(CheckConfig(data="nowhere", name="in1k-knn"))


def test_help_does_not_wait_for_torch(tmp_path: Path):
    code = """
import sys
from pipeline.cli import main
try:
    main(["data", "check", "--help"])
except SystemExit as stop:
    sys.exit(stop.code + 10 * ("torch" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--name" in done.stdout
