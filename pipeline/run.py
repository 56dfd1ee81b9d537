"""Doing a run file: data, backbones, benchmarks, report. What is done already is not done again."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, RunFile, read_run_file
from pipeline.verbs import EVALUATIONS, VERBS
from siambench.config import make_config
from siambench.data.digit_scenes import make
from siambench.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER, UserError
from siambench.files import existing
from siambench.progress import say


@dataclass(frozen=True)
class Job:
    """A step of a run.

    Attributes:
        name: unique, e.g. ``"knn in1k-knn simsiam"``.
        needs: names of jobs that must have succeeded.
        work: does it, or sees that it is done.
    """

    name: str
    needs: tuple[str, ...]
    work: Callable[[], Any]


def run(config: RunConfig) -> int:
    """Do the run; print where the report is; return the exit code.

    Every setting is checked before the first job. A job that fails stops only those that need it;
    what failed is listed at the end, and the same command tries just that again.

    Raises:
        UserError: the run file or one of its settings is wrong; nothing was done.
    """
    from reports.report import write_report

    plan = read_run_file(config.file)
    root = Path(config.root or f"runs/{plan.name}")
    data = Path(config.data or plan.data or root / "data")
    scenes = None
    if plan.digit_scenes is not None:
        values = {**plan.digit_scenes, "out": str(data)}
        scenes = make_config(VERBS["data make digit-scenes"], values, f"{plan.path}: digit_scenes")
    jobs = backbone_jobs(plan, root, data, config) + benchmark_jobs(plan, root, data, config)
    if scenes is not None:
        say(f"data: digit scenes in {make(scenes)}")
    elif not data.is_dir():
        raise UserError(f"data folder {data} does not exist; point --data at it")
    failed, waiting = do_jobs(jobs)
    report = write_report([root], root / "report.md", list(plan.backbones))
    print(f"report: {report}")
    if not failed:
        return EXIT_DONE
    print(f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again:")
    for name, error in failed.items():
        print(f"  {name}: {error}")
    if waiting:
        print(f"  and {waiting} that need them were not tried")
    return EXIT_USER if all(isinstance(e, UserError) for e in failed.values()) else EXIT_FAULT


def do_jobs(jobs: list[Job]) -> tuple[dict[str, Exception], int]:
    """Do ``jobs`` in order; return what failed and why, and how many were not tried for that."""
    failed: dict[str, Exception] = {}
    untried: set[str] = set()
    for number, job in enumerate(jobs, 1):
        if any(name in failed or name in untried for name in job.needs):
            untried.add(job.name)
            continue
        say(f"[{number}/{len(jobs)}] {job.name}")
        try:
            job.work()
        except UserError as error:
            for line in (*error.details, f"failed: {error}"):
                say(line)
            failed[job.name] = error
        except Exception as error:
            traceback.print_exc()
            failed[job.name] = error
    return failed, len(untried)


def backbone_jobs(plan: RunFile, root: Path, data: Path, config: RunConfig) -> list[Job]:
    """Pre-training and conversion of every backbone of the run.

    Raises:
        UserError: a backbone's settings are wrong.
    """
    runtime = {"device": config.device, "workers": config.workers}
    jobs = []
    for name, spec in plan.backbones.items():
        where = f"{plan.path}: backbones.{name}"
        kinds = {"pretrain", "checkpoint", "backbone"} & set(spec or {})
        if len(kinds) != 1:
            raise UserError(f"{where}: say one of pretrain, checkpoint or backbone")
        if "backbone" in spec:
            if not str(spec["backbone"]).endswith(".safetensors"):
                raise UserError(
                    f"{where}: {spec['backbone']} is no backbone file; say checkpoint in place of backbone"
                )
            existing(spec["backbone"], where)
            continue
        out = str(backbone_path(plan, root, name))
        if "checkpoint" in spec:
            options = {k: v for k, v in spec.items() if k != "checkpoint"}
            if taken := {"to", "out", "source"} & set(options):
                raise UserError(f"{where}: {taken.pop()} is the run's to say; leave it out")
            source, needs = str(spec["checkpoint"]), ()
            if ":" not in source:  # a file, not a name such as timm:resnet50
                existing(source, where)
        else:
            folder = root / "pretrain" / name
            settings = dict(spec["pretrain"])
            settings["data"] = str(data / settings.get("data", "imagenet"))
            pretrain = make_config(
                VERBS["pretrain"], {**settings, **runtime, "out": str(folder)}, where
            )
            jobs.append(Job(f"pretrain {name}", (), lambda c=pretrain: VERBS["pretrain"](c)))
            source, needs = (
                str(folder / f"checkpoint_{pretrain.epochs:04d}.pth"),
                (f"pretrain {name}",),
            )
            options = {}
        conversion = make_config(VERBS["convert"], {**options, "source": source, "out": out}, where)
        jobs.append(Job(f"convert {name}", needs, lambda c=conversion: VERBS["convert"](c)))
    return jobs


def backbone_path(plan: RunFile, root: Path, name: str) -> Path:
    """The backbone file of a run's backbone."""
    spec = plan.backbones[name]
    return (
        Path(spec["backbone"]) if "backbone" in spec else root / "backbones" / f"{name}.safetensors"
    )


def benchmark_jobs(plan: RunFile, root: Path, data: Path, config: RunConfig) -> list[Job]:
    """Every benchmark on every backbone.

    Raises:
        UserError: a benchmark's settings are wrong.
    """
    jobs = []
    for number, entry in enumerate(plan.benchmarks):
        where = f"{plan.path}: benchmarks[{number}]"
        settings = dict(entry)
        verb = settings.pop("verb", "")
        if verb not in EVALUATIONS:
            raise UserError(f"{where}: verb {verb!r} is not one of {', '.join(EVALUATIONS)}")
        settings.setdefault("trials", plan.trials)
        place = dataset_at(data, settings.pop("data", "."))
        for name in plan.backbones:
            evaluation = make_config(
                VERBS[verb],
                {
                    **settings,
                    "data": place,
                    "backbone": str(backbone_path(plan, root, name)),
                    "out": str(root),
                    "device": config.device,
                    "workers": config.workers,
                },
                where,
            )
            needs = () if "backbone" in plan.backbones[name] else (f"convert {name}",)
            title = f"{verb} {settings.get('preset', '')} {name}"
            if any(job.name == title for job in jobs):
                title += f" (benchmarks[{number}])"
            jobs.append(Job(title, needs, lambda v=VERBS[verb], c=evaluation: v(c)))
    return jobs


def dataset_at(folder: Path, name: str) -> str:
    """The data set ``name`` of a run file in the data folder: a path, or ``torchvision:NAME[:FOLDER]``.

    Example:
        >>> dataset_at(Path("/data"), "imagenet"), dataset_at(Path("/data"), "torchvision:CIFAR10:cifar")
        ('/data/imagenet', 'torchvision:CIFAR10:/data/cifar')
    """
    kind, *rest = name.split(":", 2)
    if kind != "torchvision" or not rest:
        return str(folder / name)
    return ":".join([kind, rest[0], str(folder.joinpath(*rest[1:]))])
