"""The run command's options, and the run file: what to compare, on which benchmarks."""

from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from siambench.config import read_yaml
from siambench.errors import UserError


@dataclass
class RunConfig:
    """How to do a run.

    Args:
        file: a run file (FILE.yaml), or the name of a shipped one: demo, ablate-stopgrad.
        root: folder for everything the run makes; "runs/NAME" by default.
        data: where the data sets are; overrides the run file's.
        device: auto, cpu, cuda or cuda:N.
        workers: loader processes; -1 for a quarter of the cores on a CPU, one per core (at most 8)
            beside a GPU.
    """

    file: str
    root: str = ""
    data: str = ""
    device: str = "auto"
    workers: int = -1


@dataclass
class RunFile:
    """A run file.

    Attributes:
        name: of the run; its folder is runs/NAME unless --root says otherwise.
        data: folder of the data sets; "" for ROOT/data.
        digit_scenes: arguments of `siambench data make digit-scenes`, made in ``data`` first; or None.
        backbones: name to one of {pretrain: {preset, data, ...}}, {checkpoint: PATH, ...} (anything
            `siambench convert` reads, with its options), {backbone: PATH}.
        benchmarks: each {verb, preset, data, ...}, ``data`` relative to the data folder.
        trials: repetitions of each benchmark that does not say its own.
        path: where the file was read from.
    """

    name: str
    backbones: dict[str, dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    data: str = ""
    digit_scenes: dict[str, Any] | None = None
    trials: int = 1
    path: Path = field(default_factory=Path)


def shipped() -> dict[str, Path]:
    """Run files that come with siambench, by name."""
    folder = Path(str(resources.files("pipeline"))) / "runs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_run_file(name: str) -> RunFile:
    """Read a run file by path or shipped name.

    Raises:
        UserError: there is none, or it is not a run file.
    """
    path = Path(name)
    if not path.is_file():
        if name not in shipped():
            raise UserError(
                f"run file {name!r} does not exist and is not a shipped one ({', '.join(shipped())})"
            )
        path = shipped()[name]
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a run file: it must be a mapping with name, backbones, ...")
    known = {f.name for f in fields(RunFile)} - {"path"}
    if unknown := sorted(set(map(str, content)) - known):
        raise UserError(f"{path} is not a run file: it knows no {unknown[0]!r}")
    if lacking := sorted({"name", "backbones", "benchmarks"} - set(content)):
        raise UserError(f"{path} is not a run file: it has no {lacking[0]!r}")
    run = RunFile(**content, path=path)
    _check_shapes(run)
    return run


def _check_shapes(run: RunFile) -> None:
    """Raise UserError where a value is not of the shape that ``RunFile`` describes."""
    wanted: list[tuple[str, Any, type, str]] = [
        ("name", run.name, str, "text"),
        ("data", run.data, str, "a folder's name"),
        ("trials", run.trials, int, "a number"),
        ("backbones", run.backbones, dict, "a mapping of names to backbones"),
        ("benchmarks", run.benchmarks, list, "a list of benchmarks"),
    ]
    if run.digit_scenes is not None:
        wanted.append(("digit_scenes", run.digit_scenes, dict, "a mapping such as {images: 6000}"))
    if isinstance(run.backbones, dict):
        for name, spec in run.backbones.items():
            where = f"backbones.{name}"
            wanted.append((where, spec, dict, "a mapping such as {checkpoint: PATH}"))
            for key in ("checkpoint", "backbone") if isinstance(spec, dict) else ():
                wanted.append((f"{where}.{key}", spec.get(key, ""), str, "a file's name"))
            if isinstance(spec, dict) and "pretrain" in spec:
                like = "a mapping such as {preset: NAME}"
                wanted.append((f"{where}.pretrain", spec["pretrain"], dict, like))
    if isinstance(run.benchmarks, list):
        for number, entry in enumerate(run.benchmarks):
            where = f"benchmarks[{number}]"
            wanted.append((where, entry, dict, "a mapping such as {verb: knn, preset: in1k-knn}"))
            if isinstance(entry, dict):
                wanted.append((f"{where}.data", entry.get("data", "."), str, "a folder's name"))
    for where, value, kind, like in wanted:
        if not isinstance(value, kind):
            raise UserError(f"{run.path}: {where} is {value!r}; it must be {like}")
    if not run.backbones or not run.benchmarks:
        raise UserError(f"{run.path}: name at least one backbone and one benchmark")
