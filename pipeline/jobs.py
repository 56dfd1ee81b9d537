"""The jobs of a run file: every pre-training, conversion and evaluation, typed and checked."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.runfile import RunFile, check_key, read_run_file, typed
from pipeline.verbs import EVALUATIONS, VERBS
from siambench.errors import UserError
from siambench.files import existing
from siambench.jobs import slug
from siambench.resnet import expected_shapes


@dataclass(frozen=True)
class Job:
    """A step of a run.

    Attributes:
        name: unique, e.g. ``"knn in1k-knn simsiam"``.
        verb: what does it.
        config: with what, whole.
        values: what ``config`` was made from: the preset's name and what differs from it.
        needs: names of jobs that must have succeeded.
        backbone: that it makes or evaluates.
        benchmark: preset, or the verb where there is none; ``""`` of no evaluation.
    """

    name: str
    verb: str
    config: Any
    values: dict[str, Any]
    needs: tuple[str, ...] = ()
    backbone: str = ""
    benchmark: str = ""


@dataclass(frozen=True)
class Run:
    """A run file, and where it is done.

    Attributes:
        file: the run file.
        root: the run folder.
        jobs: each after those that it needs.
        scenes: configuration of the digit scenes to draw first, or None.
    """

    file: RunFile
    root: Path
    jobs: list[Job]
    scenes: Any = None


def lay_out(config: RunConfig) -> Run:
    """Read the run file and make its jobs; nothing is done and nothing written.

    Raises:
        UserError: the file, a setting or a path in it is wrong.
    """
    file = read_run_file(config.file)
    root = Path(config.root or f"runs/{file.name}")
    data = config.data or file.data or str(root / "data")
    scenes = None
    if file.digit_scenes is not None:
        if isinstance(data, dict):
            raise UserError(f"{file.source.where('data')}: digit_scenes are drawn in one folder")
        values = {**file.digit_scenes, "out": data}
        scenes = typed(VERBS["data make digit-scenes"], values, file.source, "digit_scenes")
    elif isinstance(data, str) and not Path(data).is_dir():
        raise UserError(f"data folder {data} does not exist; point --data at it")
    maker = _Maker(file, root, data, config)
    backbones = [job for name in file.backbones for job in maker.backbone_jobs(name)]
    needs = {job.backbone: (job.name,) for job in backbones}  # the last one of each
    benchmarks: list[Job] = []
    for number in range(len(file.benchmarks)):
        taken = {job.name for job in benchmarks}
        benchmarks += maker.benchmark_jobs(number, needs, taken)
    files: dict[str, str] = {}
    for job in [*backbones, *benchmarks]:
        if (other := files.setdefault(slug(job.name), job.name)) != job.name:
            raise UserError(
                f"{file.source.path}: {job.name!r} and {other!r} are too alike; rename one"
            )
    if file.executor.kind != "here":
        benchmarks = [one for job in benchmarks for one in _trials_apart(job)]
    return Run(file, root, [*backbones, *benchmarks], scenes)


def _trials_apart(job: Job) -> list[Job]:
    """A job per trial, for executors that do several at once; not where trials share a search of rates."""
    searched = isinstance(rates := getattr(job.config, "lr", None), list) and len(rates) > 1
    if (
        job.config.trials == 1
        or searched
        or not VERBS[job.verb].load_benchmark().seeded(job.config)
    ):
        return [job]
    return [
        replace(
            job,
            name=f"{job.name} #{trial}",
            config=replace(job.config, only_trial=trial),
            values={**job.values, "only_trial": trial},
        )
        for trial in range(job.config.trials)
    ]


@dataclass(frozen=True)
class _Maker:
    """Makes the jobs of ``file`` in ``root``."""

    file: RunFile
    root: Path
    data: str | dict[str, str]
    config: RunConfig

    def backbone_jobs(self, name: str) -> list[Job]:
        """Pre-training and conversion of a backbone, as far as it needs them."""
        spec, source = self.file.backbones[name], self.file.source
        where = source.where("backbones", name)
        if len(kinds := {"pretrain", "checkpoint", "backbone"} & set(spec)) != 1:
            raise UserError(f"{where}: say one of pretrain, checkpoint or backbone")
        if "checkpoint" not in spec and len(spec) > 1:
            check_key(next(k for k in spec if k not in kinds), list(kinds), where, "it")
        if "backbone" in spec:
            if not spec["backbone"].endswith(".safetensors"):
                raise UserError(
                    f"{where}: {spec['backbone']} is no backbone file; say checkpoint in place of backbone"
                )
            existing(spec["backbone"], where)
            return []
        jobs, needs = [], ()
        options: dict[str, Any] = {"out": str(self.backbone_path(name))}
        if "checkpoint" in spec:
            if taken := {"to", "out", "source", "config"} & set(spec):
                raise UserError(f"{where}: {taken.pop()} is the run's to say; leave it out")
            options |= {k: v for k, v in spec.items() if k != "checkpoint"}
            options["source"] = spec["checkpoint"]
            _check_source(spec["checkpoint"], where)
            conversion = typed(VERBS["convert"], options, source, "backbones", name)
        else:
            folder = self.root / "pretrain" / name
            settings = spec["pretrain"]
            values = {
                **settings,
                **self._runtime(),
                "data": self._data_at(settings.get("data", "imagenet"), "backbones", name),
                "out": str(folder),
            }
            pretrain = typed(VERBS["pretrain"], values, source, "backbones", name, "pretrain")
            jobs = [Job(f"pretrain {name}", "pretrain", pretrain, values, (), name)]
            needs = (jobs[0].name,)
            options["source"] = str(folder / f"checkpoint_{pretrain.epochs:04d}.pth")
            conversion = typed(VERBS["convert"], options, source, "backbones", name)
        return [*jobs, Job(f"convert {name}", "convert", conversion, options, needs, name)]

    def benchmark_jobs(
        self, number: int, needs: dict[str, tuple[str, ...]], taken: set[str]
    ) -> list[Job]:
        """A benchmark on every backbone that it is for."""
        source, place = self.file.source, ("benchmarks", number)
        settings = dict(self.file.benchmarks[number])
        verb = settings.pop("verb", "")
        if verb not in EVALUATIONS:
            raise UserError(
                f"{source.where(*place)}: verb {verb!r} is not one of {', '.join(EVALUATIONS)}"
            )
        ours = {"out", "backbone", "name", "device", "workers", "only_trial", "config"}
        for key in ours & set(settings):
            raise UserError(f"{source.where(*place, key)} is the run's to say; leave it out")
        names = settings.pop("backbones", list(self.file.backbones))
        settings.setdefault("trials", self.file.trials)
        settings["data"] = self._data_at(settings.get("data", "."), *place)
        jobs = []
        for name in names:
            values = {
                **settings,
                **self._runtime(),
                "backbone": str(self.backbone_path(name)),
                "out": str(self.root),
            }
            if self.backbone_path(name).stem != name:
                values["name"] = name
            config = typed(VERBS[verb], values, source, *place)
            title = " ".join(filter(None, (verb, settings.get("preset", ""), name)))
            if title in taken:
                title += f" (benchmarks[{number}])"
            benchmark = settings.get("preset") or verb
            jobs.append(Job(title, verb, config, values, needs.get(name, ()), name, benchmark))
        return jobs

    def backbone_path(self, name: str) -> Path:
        """The backbone file of a backbone."""
        given = self.file.backbones[name].get("backbone")
        return Path(given) if given else self.root / "backbones" / f"{name}.safetensors"

    def _runtime(self) -> dict[str, Any]:
        return {"device": self.config.device, "workers": self.config.workers}

    def _data_at(self, name: str, *place: str | int) -> str:
        """A data set by its name in the file; it must be there unless it is yet to be drawn."""
        where = self.file.source.where(*place, "data")
        if isinstance(self.data, str):
            found = dataset_at(Path(self.data), name)
        else:
            if name not in self.data:
                check_key(name, list(self.data), where, "data")
            found = self.data[name]
        if self.file.digit_scenes is None and not found.startswith("torchvision:"):
            existing_any(found, where)
        return found


def _check_source(source: str, where: str) -> None:
    """Refuse a checkpoint that is not there, as far as that can be told without reading it.

    Raises:
        UserError: there is no such file, or no such architecture.
    """
    kind, _, name = source.partition(":")
    if kind == "random":
        try:
            expected_shapes(name)
        except UserError as error:
            raise UserError(f"{where}.checkpoint: {error}") from None
    elif kind not in ("timm", "torchvision", "hf-hub") or not name:
        existing(source, where)


def existing_any(path: str, where: str) -> None:
    """Refuse a data set that is not there, as folder or file.

    Raises:
        UserError: nothing is at ``path``.
    """
    if not Path(path).exists():
        raise UserError(f"{where}: {path} does not exist; point --data at the data sets' folder")


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
