"""The command line: help without torch, one clear line and exit 2 for what the user can mend."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.here import here
from pipeline.jobs import Job, dataset_at
from pipeline.verbs import VERBS
from siambench.config import make_config, parse_args
from siambench.errors import UserError
from siambench.jobs import JobState, read_states
from siambench.progress import say


def test_help_lists_every_verb_and_does_not_import_torch():
    code = """
import sys
from pipeline.cli import main
assert main(["--help"]) == 0
try:
    main(["linear", "--help"])
except SystemExit as stop:
    assert stop.code == 0
sys.exit(10 * ("torch" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "usage: siambench " + verb in out
    config = VERBS[verb].config_class()
    explained = "\n".join(c.__doc__ for c in config.__mro__[:-1])
    for field in fields(config):
        assert f"--{field.name}" in out or f"--{field.name}." in out
        assert re.search(rf"\n +{field.name}: ", explained), f"{field.name} has no help"


@pytest.mark.parametrize("verb", [v for v in VERBS if VERBS[v].presets])
def test_every_preset_is_a_valid_configuration_that_names_its_sources(verb):
    presets = VERBS[verb].preset_files()
    assert presets
    for name, path in presets.items():
        required = {"data": "d", "backbone": "b"} if verb != "pretrain" else {"data": "d"}
        config = make_config(VERBS[verb], {"preset": name, **required})
        assert config.preset == name
        assert "#" in path.read_text(), f"{path} explains no number"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lineer"], "no verb 'lineer'"),
        (["data"], "no verb 'data'; there is `siambench data make digit-scenes`"),
        (
            ["knn", "--backbone", "nowhere.safetensors", "--data", "."],
            "nowhere.safetensors does not exist",
        ),
        (["knn", "--backbone", "x"], "arguments are required: data"),
        (["knn", "--backbone", "x", "--data", "y", "--k", "many"], "--k: 'many' is not a list"),
        (["knn", "--backbone", "x", "--data", "y", "--kk", "3"], "unrecognized arguments"),
        (
            ["knn", "--backbone", "x", "--data", "y", "--preset", "nope"],
            "no preset 'nope'; it has: in1k-knn",
        ),
        (
            ["run", "nope"],
            "run file 'nope' does not exist and is not a shipped one (ablate-stopgrad, demo",
        ),
        (["pretrain", "--data", "nowhere"], "nowhere/train does not exist"),
        (
            ["detect", "--backbone", "x", "--data", "y", "--engine", "foo"],
            "--engine: 'foo' is not one of detectron2, torchvision (see siambench detect --help)",
        ),
        (
            ["linear", "--backbone", "x", "--data", "y", "--base_lr", "fast"],
            "--base_lr: 'fast' is not a number or a list of numbers (see siambench linear --help)",
        ),
        (
            ["pretrain", "--data", "nowhere", "--epoch", "3"],
            "unrecognized arguments: --epoch 3; is --epochs meant?",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("siambench: error: ")
    assert err.count("\n") == 1


def test_precedence_default_preset_file_flag(tmp_path):
    verb = VERBS["knn"]
    (tmp_path / "c.yaml").write_text("resize: 300\ncrop: 100\n")
    base = ["--backbone", "b", "--data", "d"]
    assert parse_args(verb, base).resize == 256
    with_file = parse_args(
        verb, [*base, "--preset", "in1k-knn", "--config", str(tmp_path / "c.yaml")]
    )
    assert (with_file.resize, with_file.preset) == (300, "in1k-knn")
    flagged = parse_args(
        verb, [*base, "--config", str(tmp_path / "c.yaml"), "--resize", "310", "--skip-bad"]
    )
    assert (flagged.resize, flagged.crop, flagged.skip_bad) == (310, 100, True)
    # A preset named in the file is loaded, not only its name kept.
    linear = VERBS["linear"]
    (tmp_path / "p.yaml").write_text("preset: in1k-linear-mhead-90e\nresize: 300\n")
    chosen = parse_args(linear, [*base, "--config", str(tmp_path / "p.yaml")])
    wanted = {"preset": "in1k-linear-mhead-90e", "backbone": "b", "data": "d", "resize": 300}
    assert chosen == make_config(linear, wanted)
    assert chosen.optimizer == "sgd"
    (tmp_path / "p.yaml").write_text("preset: nope\n")
    with pytest.raises(UserError, match="linear has no preset 'nope'"):
        parse_args(linear, [*base, "--config", str(tmp_path / "p.yaml")])
    same = make_config(verb, {"backbone": "b", "data": "d", "preset": "in1k-knn"})
    assert same == parse_args(verb, [*base, "--preset", "in1k-knn"])


def test_unknown_field_in_python():
    with pytest.raises(UserError, match=r"my\.yaml: Option 'neighbours' is not accepted"):
        make_config(VERBS["knn"], {"backbone": "b", "data": "d", "neighbours": 3}, "my.yaml")


def test_a_fault_of_ours_shows_its_traceback_and_exits_1(monkeypatch, capsys):
    import pretrain.loop

    def broken(config):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pretrain.loop, "run", broken)
    assert main(["pretrain", "--data", "x"]) == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_a_quiet_command_silences_itself_and_not_the_process(flag, monkeypatch, capsys):
    monkeypatch.setattr(type(VERBS["doctor"]), "__call__", lambda verb, config: say("working"))
    main(["doctor", flag])
    assert capsys.readouterr().err == ""
    say("and now")
    assert capsys.readouterr().err == "and now\n"


def test_ctrl_c_exits_130(monkeypatch, capsys):
    import pretrain.loop

    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.loop, "run", stopped)
    assert main(["pretrain", "--data", "x"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_schedulers_send_is_as_one_ctrl_c(number, monkeypatch, capsys):
    before = signal.getsignal(number)
    stop = lambda verb, config: os.kill(os.getpid(), number)  # noqa: E731
    monkeypatch.setattr(type(VERBS["doctor"]), "__call__", stop)
    assert main(["doctor"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_what_needs_a_failed_job_is_not_tried_and_the_rest_is(tmp_path, monkeypatch, capsys):
    done = []

    def work(config):
        if config == "pretrain a":
            raise UserError("bad data", ["a line of details"])
        if config == "knn c":
            raise ZeroDivisionError("a bug")
        done.append(config)

    names = ["pretrain a", "convert a", "knn a", "knn c", "convert b", "knn b"]
    needs = {"convert a": "pretrain a", "knn a": "convert a", "knn b": "convert b"}
    jobs = [
        Job(n, n.split()[0], n, {}, (needs[n],) if n in needs else (), n.split()[1]) for n in names
    ]
    monkeypatch.setattr("pipeline.here.VERBS", dict.fromkeys(("pretrain", "convert", "knn"), work))
    states = here(tmp_path, jobs, {job.name: JobState(job.name, verb=job.verb) for job in jobs})
    assert done == ["convert b", "knn b"]
    assert {n: s.state for n, s in states.items()} == {
        "pretrain a": "failed",
        "convert a": "waiting",
        "knn a": "waiting",
        "knn c": "failed",
        "convert b": "done",
        "knn b": "done",
    }
    assert states["pretrain a"].reason == "bad data"
    assert states["knn c"].reason == "ZeroDivisionError: a bug"
    assert states["knn a"].reason == "needs convert a"
    said = capsys.readouterr().err
    assert "a line of details" in said
    assert "Traceback" in said
    on_disk = {s.name: s for s in read_states(tmp_path)}
    assert on_disk["knn c"].reason == "ZeroDivisionError: a bug"
    assert on_disk["knn b"].state == "done"
    assert on_disk["knn b"].started <= on_disk["knn b"].ended


def test_data_sets_of_a_run_file_lie_in_its_data_folder():
    folder = Path("/data")
    assert dataset_at(folder, "imagenet") == "/data/imagenet"
    assert dataset_at(folder, "/other/place") == "/other/place"
    assert dataset_at(folder, "torchvision:CIFAR10") == "torchvision:CIFAR10:/data"
    assert dataset_at(folder, "torchvision:CIFAR10:cifar") == "torchvision:CIFAR10:/data/cifar"


@pytest.mark.parametrize(
    ("verb", "arguments", "field", "value"),
    [
        ("knn", ["--k", "20"], "k", [20]),
        ("knn", ["--k=10,20"], "k", [10, 20]),
        ("knn", ["--k", "[10, 20]"], "k", [10, 20]),
        ("knn", ["--k", "10", "20", "--seed", "3"], "k", [10, 20]),
        ("linear", ["--base_lr", "0.1", "1", "--flip", "false"], "base_lr", [0.1, 1.0]),
        ("linear", ["--layers", "feature4", "avgpool"], "layers", ["feature4", "avgpool"]),
        ("linear", ["--base-lr", "0.1"], "base_lr", 0.1),
        ("linear", ["--base_lr", "0.1,1"], "base_lr", [0.1, 1.0]),
        (
            "linear",
            ["--layers", "feature5,avgpool", "--skip-bad"],
            "layers",
            ["feature5", "avgpool"],
        ),
        ("svm", ["--costs", "fair"], "costs", "fair"),
        ("svm", ["--costs", "0.1,1"], "costs", [0.1, 1.0]),
    ],
)
def test_lists_need_no_brackets(verb, arguments, field, value):
    config = parse_args(VERBS[verb], ["--backbone=b", "--data=d", *arguments])
    assert getattr(config, field) == value
