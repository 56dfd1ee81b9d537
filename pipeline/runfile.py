"""The run file: which backbones to compare on which benchmarks, and who does the work."""

import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pipeline.located import Located, read_located
from siambench.config import Verb, make_config
from siambench.errors import UserError
from siambench.files import check_name


@dataclass
class ExecutorConfig:
    """Who does the jobs.

    Args:
        kind: here (one after the other, in this process), local (several at once on this machine,
            each on GPUs of its own) or slurm.
        gpus: of each job, on each of its machines; several train as one under torchrun. Conversion
            takes none.
        nodes: machines of each job (slurm).
        at_once: jobs at the same time; for local 0 means as many as the GPUs suffice for.
        cpus: cores of each job (slurm).
        memory_gb: of each job, per machine (slurm); 0 for the partition's default.
        hours: time limit of each job (slurm); what is not done then is requeued and goes on.
        requeues: how often a job may run into its time limit before it is given up (slurm).
        grace_seconds: warning before the limit or a preemption, to finish the step and save (slurm).
        partition: of the cluster (slurm); "" for its default.
        account: to charge (slurm).
        qos: quality of service (slurm).
        constraint: features that machines must have (slurm).
        setup: shell lines before each job, e.g. "module load cuda" (slurm).
        extra: further sbatch options, e.g. {mail-type: FAIL} (slurm).
        verbs: of single verbs, what differs, e.g. {pretrain: {nodes: 4, gpus: 8, hours: 72}}.
    """

    kind: Literal["here", "local", "slurm"] = "here"
    gpus: int = 1
    nodes: int = 1
    at_once: int = 0
    cpus: int = 8
    memory_gb: int = 0
    hours: float = 24.0
    requeues: int = 20
    grace_seconds: int = 120
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    setup: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    verbs: dict[str, dict[str, Any]] = field(default_factory=dict)


_EXECUTOR = Verb("executor", "", "pipeline.runfile:ExecutorConfig", "")
_PER_VERB = {"gpus", "nodes", "cpus", "memory_gb", "hours"}


@dataclass
class RunFile:
    """A run file.

    Attributes:
        name: of the run; its folder is runs/NAME unless --root says otherwise.
        backbones: name to one of {pretrain: {preset, data, ...}}, {checkpoint: SOURCE, ...} (anything
            `siambench convert` reads, with its options), {backbone: PATH}.
        benchmarks: each {verb, preset, data, backbones, ...}; ``backbones`` names those that it is for.
        data: folder of the data sets; "" for ROOT/data; or name to folder, where they lie apart.
        digit_scenes: arguments of `siambench data make digit-scenes`, made in ``data`` first; or None.
        trials: repetitions of each benchmark that does not say its own.
        executor: see :class:`ExecutorConfig`; its kind alone will do.
        source: where it was read, and where in the file each part stands.
    """

    name: str
    backbones: dict[str, dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    data: str | dict[str, str] = ""
    digit_scenes: dict[str, Any] | None = None
    trials: int = 1
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    source: Located = field(default_factory=lambda: Located(Path(), {}, {}))


def shipped() -> dict[str, Path]:
    """Run files that come with siambench, by name."""
    folder = Path(str(resources.files("pipeline"))) / "runs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_run_file(name: str) -> RunFile:
    """Read a run file by path or shipped name.

    Raises:
        UserError: there is none, or it is not a run file; with file, line and what to write instead.
    """
    path = Path(name)
    if not path.is_file():
        if name not in shipped():
            raise UserError(
                f"run file {name!r} does not exist and is not a shipped one ({', '.join(shipped())})"
            )
        path = shipped()[name]
    source = read_located(path)
    content = source.content
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a run file: it must be a mapping with name, backbones, ...")
    known = [f.name for f in fields(RunFile) if f.name != "source"]
    for key in content:
        check_key(str(key), known, source.where(str(key)), "a run file")
    for f in fields(RunFile):
        if f.default is f.default_factory is MISSING and f.name not in content:
            raise UserError(f"{path} is not a run file: it has no {f.name!r}")
    _check_shapes(content, source)
    return RunFile(**{**content, "executor": _executor(content, source)}, source=source)


def check_key(key: str, known: Sequence[str], where: str, what: str) -> None:
    """Refuse a key that ``what`` does not know, with the one that was perhaps meant.

    Raises:
        UserError: it is unknown.
    """
    if key in known:
        return
    near = get_close_matches(key, known, n=1)
    meant = f"; is {near[0]!r} meant?" if near else f"; it knows {', '.join(known)}"
    raise UserError(f"{where}: {what} knows no {key!r}{meant}")


def typed(verb: Verb, values: dict[str, Any], source: Located, *place: str | int) -> Any:
    """A verb's configuration from values of which those at ``place`` of the file are the user's.

    Raises:
        UserError: a value is wrong, with its own line.
    """
    written: Any = source.content
    for part in place:
        written = written[part]
    known = [f.name for f in fields(verb.config_class())]
    try:
        made = make_config(verb, values, source.where(*place))
    except UserError as whole:
        for key in written:
            if key in values:
                check_key(str(key), known, source.where(*place, key), verb.name)
        for key in written:
            if key not in values or (key == "preset" and values[key] in verb.preset_files()):
                continue
            where = source.where(*place, key)
            if key == "preset":
                check_key(
                    str(values[key]), list(verb.preset_files()), where, f"{verb.name}'s presets"
                )
            alone = {f.name: "-" for f in fields(verb.config_class()) if _required(f)}
            make_config(verb, {**alone, key: values[key]}, where)
        raise whole
    try:
        verb.refuse(made)
    except UserError as error:
        flag = re.match(r"--([\w.]+)", str(error))
        keys = flag[1].split(".") if flag and flag[1].split(".")[0] in written else []
        told = str(error).removeprefix("--")
        raise UserError(f"{source.where(*place, *keys)}: {told}") from None
    return made


def demands(executor: ExecutorConfig, verb: str) -> dict[str, float]:
    """GPUs per machine, machines, cores, memory and hours of a job of ``verb``."""
    names = ("gpus", "nodes", "cpus", "memory_gb", "hours")
    found = {name: getattr(executor, name) for name in names}
    if verb in ("convert", "report"):
        found |= {"gpus": 0, "nodes": 1, "hours": 1.0}
    return found | executor.verbs.get(verb, {})


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _executor(content: dict[str, Any], source: Located) -> ExecutorConfig:
    """The executor that the file names, whole or by its kind alone."""
    said = content.get("executor", {})
    if isinstance(said, str):
        said = {"kind": said}
        content = {**content, "executor": said}
    for key, value in said.items():
        if value is None:
            raise UserError(
                f"{source.where('executor', key)} says nothing; give it a value or leave it out"
            )
    inside = Located(source.path, content, source.lines)
    executor: ExecutorConfig = (
        typed(_EXECUTOR, dict(said), inside, "executor") if said else ExecutorConfig()
    )
    from pipeline.verbs import VERBS

    _check_ranges(executor, source, "executor")
    for verb, differs in executor.verbs.items():
        where = source.where("executor", "verbs", verb)
        check_key(verb, list(VERBS), where, "siambench")
        for key in differs:
            check_key(key, sorted(_PER_VERB), f"{where}.{key}", "a verb of the executor")
        made = make_config(_EXECUTOR, dict(differs), where)
        _check_ranges(made, source, "executor", "verbs", verb)
    return executor


def _check_ranges(executor: ExecutorConfig, source: Located, *place: str) -> None:
    """Refuse numbers that cannot be meant; those at ``place`` of the file are the user's.

    Raises:
        UserError: with the line of the first.
    """
    for key in ("gpus", "at_once", "memory_gb", "requeues"):
        if getattr(executor, key) < 0:
            raise UserError(f"{source.where(*place, key)} must be 0 or more")
    for key in ("nodes", "cpus", "hours", "grace_seconds"):
        if not 0 < getattr(executor, key) < math.inf:
            raise UserError(f"{source.where(*place, key)} must be more than 0, and finite")


def _check_shapes(content: dict[str, Any], source: Located) -> None:
    """Refuse a value that is not of the shape that ``RunFile`` describes.

    Raises:
        UserError: with its line.
    """

    def need(kind: type | tuple[type, ...], like: str, *place: str | int) -> Any:
        value: Any = content
        for part in place:
            value = value[part]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{source.where(*place)} is {value!r}; it must be {like}")
        return value

    need(str, "text", "name")
    check_name(content["name"], source.where("name"))
    backbones = need(dict, "a mapping of names to backbones", "backbones")
    benchmarks = need(list, "a list of benchmarks", "benchmarks")
    if not backbones or not benchmarks:
        raise UserError(f"{source.path}: name at least one backbone and one benchmark")
    optional: list[tuple[str, type | tuple[type, ...], str]] = [
        ("data", (str, dict), "a folder's name, or data sets' names and folders"),
        ("digit_scenes", dict, "a mapping such as {images: 6000}"),
        ("executor", (str, dict), "here, local, slurm or a mapping such as {kind: slurm, gpus: 8}"),
    ]
    for key, kind, like in optional:
        if content.get(key) is not None:
            need(kind, like, key)
    if "trials" in content and need(int, "a number", "trials") < 1:
        raise UserError(f"{source.where('trials')} is {content['trials']}; it must be at least 1")
    for key in set(content.get("digit_scenes") or ()) & {"out"}:
        raise UserError(f"{source.where('digit_scenes', key)} is the run's to say; leave it out")
    for name in content["data"] if isinstance(content.get("data"), dict) else ():
        if not isinstance(name, str):
            raise UserError(f"{source.where('data')}: name {name!r} in quotes")
        need(str, "a folder's name", "data", name)
    for name, spec in backbones.items():
        if not isinstance(name, str):
            raise UserError(f"{source.where('backbones')}: name {name!r} in quotes")
        check_name(name, source.where("backbones", name))
        need(dict, "a mapping such as {checkpoint: PATH}", "backbones", name)
        for key in {"checkpoint", "backbone"} & set(spec):
            need(str, "a file's name", "backbones", name, key)
        if "pretrain" in spec:
            place = ("backbones", name, "pretrain")
            settings = need(dict, "a mapping such as {preset: NAME}", *place)
            for key in {"preset", "data"} & set(settings):
                need(str, "text", *place, key)
            for key in {"out", "device", "workers", "config"} & set(settings):
                raise UserError(f"{source.where(*place, key)} is the run's to say; leave it out")
    for number, entry in enumerate(benchmarks):
        need(dict, "a mapping such as {verb: knn, preset: in1k-knn}", "benchmarks", number)
        for key in {"verb", "preset", "data"} & set(entry):
            need(str, "text", "benchmarks", number, key)
        if "backbones" in entry:
            names = need(list, "a list of names", "benchmarks", number, "backbones")
            here = source.where("benchmarks", number, "backbones")
            for which in names:
                if not isinstance(which, str):
                    raise UserError(f"{here}: name {which!r} in quotes")
                check_key(which, list(backbones), here, "backbones")
            if twice := [which for which in names if names.count(which) > 1]:
                raise UserError(f"{here}: {twice[0]!r} is named twice")
