"""Typed configurations: one dataclass per verb gives its help, its YAML and its Python signature.

A preset is a small YAML file of such a configuration's fields; the order of precedence is field
default, preset, ``--config`` file, flag.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module, resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from siambench.errors import UserError
from siambench.files import check_name


@dataclass
class EvaluationConfig:
    """What every evaluation takes; the protocol is what a subclass adds.

    Args:
        backbone: the backbone file (NAME.safetensors), or anything that `siambench convert` reads: a
            checkpoint, timm:NAME, torchvision:NAME, hf-hub:REPO, random:ARCH.
        data: the data set's folder.
        name: as tables call the backbone; by default the file's name.
        preset: name of the preset the protocol started from (`--preset NAME` loads it).
        out: run folder; the record goes to OUT/records.
        seed: seed of trial 0; trial t uses seed + t.
        trials: independent repetitions, each with a record of its own.
        only_trial: the one of them to do, others being done elsewhere; -1 for all.
        device: auto, cpu, cuda or cuda:N.
        workers: loader processes; -1 for a quarter of the cores on a CPU, one per core (at most 16)
            beside a GPU.
        skip_bad: leave out images that cannot be decoded (and, where objects are annotated, wrong
            annotations), and count them, instead of refusing.
    """

    backbone: str
    data: str
    name: str = ""
    preset: str = ""
    out: str = "runs/eval"
    seed: int = 0
    trials: int = 1
    only_trial: int = -1
    device: str = "auto"
    workers: int = -1
    skip_bad: bool = False

    def idle(self) -> set[str]:
        """Names of fields that do nothing beside the others' values; they are not in the protocol."""
        return set()


@dataclass
class FeatureConfig(EvaluationConfig):
    """What the evaluations of pooled features take.

    Args:
        cache: folder of the feature cache, which any runs and verbs may share; by default
            OUT/features. What lies there may be deleted at any time.
        precision: of the forward pass: float32, or bf16, which is about twice as fast and moves
            accuracies by a tenth of a point (docs/benchmarks.md).
        storage: of cached features: float16 halves the space (ImageNet's training split: 5.2 GB) and
            rounds each number to 11 bits.
    """

    cache: str = ""
    precision: Literal["float32", "bf16"] = "float32"
    storage: Literal["float16", "float32"] = "float16"


# How a result is computed, not what it is.
_RUNTIME = {f.name for f in fields(EvaluationConfig)} - {"skip_bad"} | {
    "cache",
    "checkpoint_every",
    "download",
    "sbd",
    "search",
}


def check_trials(config: EvaluationConfig) -> None:
    """Refuse a seed, a number of trials or a name that cannot be meant.

    Raises:
        UserError: names the flag.
    """
    if config.trials < 1:
        raise UserError(f"--trials is {config.trials}; it must be at least 1")
    if not 0 <= config.seed <= 2**63 - config.trials:
        raise UserError(f"--seed is {config.seed}; it must be at least 0 and below 2^63")
    if not -1 <= config.only_trial < config.trials:
        raise UserError(
            f"--only_trial is {config.only_trial}; of {config.trials} trials the last is "
            f"{config.trials - 1}, and -1 means all"
        )
    if config.name:
        check_name(config.name, "--name")


def protocol_of(config: EvaluationConfig) -> dict[str, Any]:
    """The fields that define the result: all that are not where, on what and how often."""
    return {k: v for k, v in asdict(config).items() if k not in _RUNTIME | config.idle()}


def overridden(config: EvaluationConfig, verb: str) -> list[str]:
    """Names of the protocol's fields that differ from the preset's (from the defaults without one).

    Presets lie in the configuration's own package, in presets/VERB/NAME.yaml.

    Raises:
        UserError: there is no such preset.
    """
    base = {f.name: _default(f) for f in fields(config)}
    if config.preset:
        package = type(config).__module__.partition(".")[0]
        preset = resources.files(package).joinpath("presets", verb, f"{config.preset}.yaml")
        if not preset.is_file():
            raise UserError(f"{verb} has no preset {config.preset!r}")
        base |= yaml.safe_load(preset.read_text(encoding="utf-8")) or {}
    base = asdict(type(config)(**base))  # what __post_init__ fills in is no override
    return [k for k, v in protocol_of(config).items() if _plain(v) != _plain(base[k])]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return "" if field.default is MISSING else field.default


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Verb:
    """A command of siambench, described without importing what it runs.

    Attributes:
        name: as typed, e.g. ``"linear"`` or ``"data make digit-scenes"``.
        help: one line.
        config: ``"module:Dataclass"``; the module must not import torch.
        run: ``"module:function"``, called with an instance of the dataclass.
        presets: ``"package:folder"`` that holds this verb's presets, or ``""``.
        positional: fields given by place rather than by flag.
        benchmark: of an evaluation, ``"module:attribute"`` of its
            :class:`siambench.evaluation.Benchmark`; else ``""``.
        check: ``"module:function"`` that refuses a configuration that cannot be meant before any work,
            or ``""``: run files are checked with it whole.
    """

    name: str
    help: str
    config: str
    run: str
    presets: str = ""
    positional: tuple[str, ...] = ()
    benchmark: str = ""
    check: str = ""

    def config_class(self) -> type[Any]:
        """Import and return the configuration dataclass."""
        return _load(self.config)  # type: ignore[no-any-return]

    def refuse(self, config: Any) -> None:
        """Check trials and name of an evaluation; import and call ``check``, if there is one.

        Raises:
            UserError: the configuration cannot be meant.
        """
        if isinstance(config, EvaluationConfig):
            check_trials(config)
        if self.check:
            _load(self.check)(config)

    def __call__(self, config: Any) -> Any:
        """Import the stage and run it."""
        return _load(self.run)(config)

    def load_benchmark(self) -> Any:
        """Import and return the evaluation's :class:`siambench.evaluation.Benchmark`."""
        return _load(self.benchmark)

    def preset_files(self) -> dict[str, Path]:
        """Preset name to YAML file."""
        if not self.presets:
            return {}
        package, folder = self.presets.split(":")
        files = Path(str(resources.files(package))).joinpath(folder).glob("*.yaml")
        return {path.stem: path for path in sorted(files)}

    def preset(self, name: str) -> dict[str, Any]:
        """The fields of a preset, ``preset`` itself among them.

        Raises:
            UserError: there is none of that name.
        """
        files = self.preset_files()
        if name not in files:
            known = ", ".join(files) or "none"
            raise UserError(f"{self.name} has no preset {name!r}; it has: {known}")
        return {**(read_yaml(files[name]) or {}), "preset": name}


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: it is absent or not YAML; the message has file and line.
    """
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a YAML file that exists") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def parser_of(verb: Verb) -> ArgumentParser:
    """The parser of a verb: a flag per field, ``--config``, ``--print_config``, help from docstrings."""
    config = verb.config_class()
    assert is_dataclass(config)
    description = f"{verb.help}. --quiet: no progress. --json: the result as JSON, no progress."
    if verb.presets:
        description += f" Presets: {', '.join(verb.preset_files())}."
    parser = ArgumentParser(
        prog=f"siambench {verb.name}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of the fields below.")
    parser.add_class_arguments(config)
    return parser


def make_config(verb: Verb, values: dict[str, Any], where: str = "") -> Any:
    """An instance of the verb's configuration from plain values, typed and checked.

    A ``preset`` among ``values`` is loaded first and overridden by the rest.

    Raises:
        UserError: an unknown field or a value of the wrong type; ``where`` opens the message.
    """
    if verb.presets and values.get("preset"):
        values = _over(verb.preset(values["preset"]), values)
    parser = parser_of(verb)
    try:
        return _instance(verb, parser, parser.parse_object(values))
    except (ArgumentError, TypeError) as error:
        told = _told(verb, error)
        told = told.removeprefix("--") if where else told  # a file has keys, not flags
        raise UserError(f"{where or verb.name}: {told}") from None


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with what ``above`` says; of nested settings (``augment``) the others stay."""
    merged = {**below, **above}
    for name in set(below) & set(above):
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _over(below[name], above[name])
    return merged


def parse_args(verb: Verb, arguments: Sequence[str]) -> Any:
    """An instance of the verb's configuration from command-line arguments.

    Raises:
        UserError: wrong flags or values.
        SystemExit: after ``--help`` or ``--print_config``.
    """
    arguments = _name_places(verb, _spell(verb, list(arguments)))
    parser = parser_of(verb)
    try:
        name = _value_of(arguments, "--preset")
        if not name and (file := _value_of(arguments, "--config")) and Path(file).is_file():
            content = read_yaml(file)
            name = content.get("preset", "") if isinstance(content, dict) else ""
        if name and verb.presets:
            parser.set_defaults(verb.preset(str(name)))
        return _instance(verb, parser, parser.parse_args(arguments))
    except (ArgumentError, TypeError) as error:
        meant = _meant(verb, str(error))
        told = _told(verb, error)
        raise UserError(f"{told}{meant} (see siambench {verb.name} --help)") from None


def _meant(verb: Verb, error: str) -> str:
    """Of an error about a flag that there is not: the one that is nearest, as a question."""
    known = [f"--{f.name}" for f in fields(verb.config_class())]
    unknown = error.partition("unrecognized arguments: ")[2].replace("=", " ").split()
    flags = [word for word in unknown if word.startswith("--")]
    near = get_close_matches(flags[0], known, n=1) if flags else []
    return f"; is {near[0]} meant?" if near else ""


def _instance(verb: Verb, parser: ArgumentParser, parsed: Namespace) -> Any:
    made = parser.instantiate(parsed)
    return verb.config_class()(**{f.name: made[f.name] for f in fields(verb.config_class())})


def _spell(verb: Verb, arguments: list[str]) -> list[str]:
    """``--skip-bad`` as ``--skip_bad``, a switch alone as true, ``--k 10,20`` and ``--k 10 20`` as lists."""
    types = {f"--{f.name}": f.type for f in fields(verb.config_class())}
    spelt: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--"):
            spelt.append(argument)
            continue
        flag, *value = argument.split("=", 1)
        flag = flag.replace("-", "_").replace("__", "--", 1)
        if (
            types.get(flag) in (bool, "bool")
            and not value
            and (not arguments or arguments[0].startswith("--"))
        ):
            value = ["true"]
        most = _most_values(types.get(flag), bool(verb.positional))
        while len(value) < most:  # what stands behind the flag
            if flag not in types or not arguments or arguments[0].startswith("--"):
                break
            if verb.positional and "," in "".join(value):  # all of them, as A,B
                break
            value.append(arguments.pop(0))
        text = (" " if value and value[0].startswith("[") else ",").join(value)
        spelt.append(f"{flag}={_listed(types.get(flag), text)}" if value else flag)
    return spelt


def _most_values(kind: Any, places: bool) -> float:
    """How many values behind a flag are its own; ``places``: what is left stands for something."""
    if not _takes_list(kind):
        return 1
    if not places:
        return math.inf
    lengths = get_args(kind) if get_origin(kind) is tuple else ()
    return 1 if ... in lengths else max(1, len(lengths))


def _takes_list(kind: Any) -> bool:
    """Whether a field takes several values, or one or several."""
    return get_origin(kind) in (list, tuple) or "list[" in str(kind)


def _listed(kind: Any, value: str) -> str:
    """A value for a list, or for one value or several, as YAML writes a list."""
    several = get_origin(kind) in (list, tuple) or ("," in value and _takes_list(kind))
    return f"[{value}]" if several and not value.lstrip().startswith("[") else value


def _name_places(verb: Verb, arguments: list[str]) -> list[str]:
    """``IN --out OUT`` as ``--source=IN --out OUT``; a list field takes all places that are left."""
    flags: list[str] = []
    places: list[str] = []
    for i, argument in enumerate(arguments):
        before = arguments[i - 1] if i else ""
        value = before.startswith("--") and "=" not in before and before not in _NO_VALUE
        (flags if value or argument.startswith("-") else places).append(argument)
    types = {f.name: f.type for f in fields(verb.config_class())}
    for field in verb.positional if places else ():
        if get_origin(types[field]) is list:
            flags.append(f"--{field}={json.dumps(places)}")
            places = []
        elif places:
            flags.append(f"--{field}={places.pop(0)}")
    return flags + places


_NO_VALUE = ("--help", "--print_config")


def _value_of(arguments: list[str], flag: str) -> str:
    for i, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            return argument.split("=", 1)[1]
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
    return ""


def _told(verb: Verb, error: Exception) -> str:
    """The parser's error in one line; of a value, what it should be."""
    text = " ".join(str(error).split())
    found = re.match(r'Parser key "(\w+)":.* (?:Got value|Given value): (.*)$', text)
    if found is None:
        return text
    kind = get_type_hints(verb.config_class())[found[1]]
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    wanted = " or ".join(_words(kind) for kind in kinds if kind is not type(None))
    return f"--{found[1]}: {found[2]!r} is not {wanted}"


def _words(kind: Any) -> str:
    """A field's type for people."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if _takes_list(kind):
        of = [_words(part).removeprefix("a ") for part in get_args(kind) if part is not ...]
        many = get_origin(kind) is list or ... in get_args(kind)
        number = "" if many else f"{len(of)} "
        return f"a list of {number}{' and '.join(dict.fromkeys(of))}s"
    if get_origin(kind) is dict:
        return "a mapping" + (" of mappings" if get_origin(get_args(kind)[1]) is dict else "")
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return named.get(kind, str(kind))
