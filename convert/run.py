"""The verb: read, write, and say what was found. What is not whole is not written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert.config import ConvertConfig, Target
from convert.targets import TARGETS
from siambench.backbone import IMAGENET_MEAN, IMAGENET_STD
from siambench.checkpoints.source import Report, read_checkpoint
from siambench.errors import UserError


@dataclass(frozen=True)
class Conversion:
    """What was written, and how it was found.

    Attributes:
        out: the file written.
        to: its kind.
        method: pre-training method.
        epochs: of pre-training; None when nothing says.
        report: of the source.
        settings: under which the library that it was written for computes the same, as YAML.
    """

    out: str
    to: Target
    method: str
    epochs: int | None
    report: Report
    settings: str


def run(config: ConvertConfig) -> Conversion:
    """Convert, print what was found, return it.

    Raises:
        UserError: the source is not a whole ResNet, or the output cannot be written; nothing was.
    """
    out = _check_out(config)
    mean, std = _three("mean", config.mean), _three("std", config.std)
    state, meta, report = read_checkpoint(config.source, branch=config.branch, seed=config.seed)
    meta = replace(
        meta,
        method=config.method or meta.method or "unknown",
        epochs=meta.epochs if config.epochs is None else config.epochs,
        mean=mean or meta.mean,
        std=std or meta.std,
    )
    TARGETS[config.to].write(out, state, meta)
    usage = TARGETS[config.to].usage(meta)
    notes = list(report.notes)
    if meta.method == "unknown":
        notes.append(
            "neither the file nor its layout tells which method made it; --method NAME does"
        )
    if config.to != "safetensors" and (meta.mean, meta.std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(
            f"mean {meta.mean} and std {meta.std} of the input are not kept in this format"
        )
    report = replace(report, mean=meta.mean, std=meta.std, notes=[*notes, *usage.notes])
    conversion = Conversion(str(out), config.to, meta.method, meta.epochs, report, usage.settings)
    print(_text(conversion))
    return conversion


def _check_out(config: ConvertConfig) -> Path:
    out, endings = Path(config.out), TARGETS[config.to].endings
    if out.suffix not in endings:
        raise UserError(f"out: {out} must end in {' or '.join(endings)} for --to {config.to}")
    if out.is_dir():
        raise UserError(f"out: {out} is a folder; name a file")
    source = Path(config.source)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"out: {out} is the source itself; name another file")
    if not config.method.isprintable():
        raise UserError(f"method must be one line of plain text, not {config.method!r}")
    if config.epochs is not None and config.epochs < 0:
        raise UserError(f"epochs must not be negative, not {config.epochs}")
    return out


def _three(name: str, values: Sequence[float] | None) -> tuple[float, float, float] | None:
    if values is None:
        return None
    least = 0 if name == "mean" else 1e-9
    if len(values) != 3 or not all(least <= value <= 1 for value in values):
        raise UserError(
            f"{name} must be three numbers (red, green, blue) in [0, 1]"
            f"{', none of them 0' if name == 'std' else ''}, not {values}"
        )
    return values[0], values[1], values[2]


def _text(done: Conversion) -> str:
    report = done.report
    dropped = ", ".join(f"{group} {count}" for group, count in report.dropped.items())
    epochs = "epochs not said" if done.epochs is None else f"{done.epochs} epochs"
    layout = [report.layout]
    layout += [f"{report.branch} branch"] if report.branch else []
    layout += [f"prefix {report.prefix}"] if report.prefix else []
    mean, std = (", ".join(f"{x:g}" for x in values) for values in (report.mean, report.std))
    rows = {
        "layout": ", ".join(layout),
        "arch": report.arch,
        "matched": f"{report.matched} keys",
        "dropped": dropped or "nothing",
        "method": f"{done.method}, {epochs}",
        "input": f"RGB, mean {mean}, std {std}",
        "sanity": report.sanity.text(),
        "digest": report.digest,
        "wrote": done.out,
    }
    lines = [f"{name:<8} {value}" for name, value in rows.items()]
    lines += [f"note     {note}" for note in report.notes]
    lines += [f"settings\n{done.settings}"] if done.settings else []
    return "\n".join(lines)
