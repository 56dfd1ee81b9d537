"""``siambench data check``: everything that an evaluation checks of its data, without a backbone."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.verbs import EVALUATIONS, VERBS
from siambench.config import Verb, make_config
from siambench.errors import UserError

# The data set that a preset is for, where its name does not begin with it.
_DATA_OF = {"in1k": "imagenet-1k", "coco": "coco2017"}
# The preset that a data set is checked for: where several take it, the one that looks at most of it.
_PRESET_OF = {
    "imagenet-1k": "in1k-knn",
    "places205": "places205-linear",
    "inat18": "inat18-linear",
    "voc07": "voc07-frcnn-c4",
    "voc0712": "voc0712-frcnn-c4-24k",
    "coco2017": "coco-mrcnn-c4-1x",
    "voc12aug": "voc12aug-fcn-20k",
    "cityscapes": "cityscapes-fcn-40k",
}


@dataclass
class CheckConfig:
    """Check a data set as the evaluation that would use it does, and compare it with the official one.

    Args:
        name: what it should be, or what to check it for: imagenet-1k, places205, inat18, voc07, voc0712,
            coco2017, voc12aug, cityscapes, or a preset, e.g. voc0712-frcnn-c4-24k; also given by place.
        data: the data set's folder; also given by place.
        verb: the preset's verb; by default the evaluation that has a preset of that name. Without a
            name: the evaluation whose defaults are meant.
        fields: other fields of the evaluation, e.g. '{sbd: /data/benchmark_RELEASE}' or
            '{dataset: folder}'.
        skip_bad: leave out and count what is bad, as --skip_bad of the evaluation, instead of refusing.
    """

    data: str
    name: str = ""
    verb: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    skip_bad: bool = False


@dataclass(frozen=True)
class Checked:
    """A data set that can be used.

    Attributes:
        verb, preset: what it was checked for.
        name: of the data set in records: an official name if its counts of images are the official ones.
        fingerprint: SHA-256 of what it holds.
        counts: images, classes and what else the evaluation counts.
        official: the set that the preset is for; ``""`` if that is none with known counts.
        official_counts: of that set, as far as a source has them.
    """

    verb: str
    preset: str
    name: str
    fingerprint: str
    counts: dict[str, int]
    official: str
    official_counts: dict[str, int]


def check(config: CheckConfig) -> Checked:
    """Open the data as the evaluation does; print what was found beside the official counts.

    Raises:
        UserError: no evaluation has the preset, or the data cannot be used: all that is wrong with it
            is in the details.
    """
    from siambench.data.images import OFFICIAL_CONTENTS, OFFICIAL_COUNTS

    preset = _PRESET_OF.get(config.name, config.name)
    verb = _verb_of(config, preset)
    values = {"data": config.data, "preset": preset, "skip_bad": config.skip_bad}
    values |= config.fields
    protocol = make_config(verb, {**values, "backbone": ""})
    info = verb.load_benchmark().open_data(protocol).info
    official = preset.partition("-")[0]
    official = _DATA_OF.get(official, official)
    if official not in OFFICIAL_COUNTS:
        official = ""
    known = OFFICIAL_COUNTS.get(official, {}) | OFFICIAL_CONTENTS.get(official, {})
    found = Checked(verb.name, preset, info.name, info.fingerprint, info.counts, official, known)
    print("\n".join(_lines(found)))
    return found


def _verb_of(config: CheckConfig, preset: str) -> Verb:
    """The evaluation that has the preset."""
    if config.verb and config.verb not in EVALUATIONS:
        raise UserError(
            f"verb: {config.verb!r} is not an evaluation; choose from {', '.join(EVALUATIONS)}"
        )
    if not preset:
        if not config.verb:
            raise UserError(
                "say what the data are for: a data set or preset by name, or --verb VERB"
            )
        return VERBS[config.verb]
    names = [config.verb] if config.verb else EVALUATIONS
    having = [VERBS[name] for name in names if preset in VERBS[name].preset_files()]
    if len(having) > 1:
        several = " and ".join(verb.name for verb in having)
        raise UserError(f"preset {preset} is one of {several}; add --verb NAME")
    if not having:
        known = ", ".join(preset for name in names for preset in VERBS[name].preset_files())
        sets = ", ".join(_PRESET_OF)
        raise UserError(f"no data set or preset {preset!r}; data sets: {sets}; presets: {known}")
    return having[0]


def _lines(found: Checked) -> list[str]:
    """A table of counts, and what the data set will be called."""
    rows = [("", "found", f"official ({found.official})" if found.official else "", "")]
    splits = True  # they come first
    for key, count in found.counts.items():
        splits = splits and key != "classes"
        label = f"{key} images" if splits else key.replace("_", " ")
        official = found.official_counts.get(key)
        if official is None:
            rows.append((label, f"{count:,}", "", ""))
        else:
            verdict = "yes" if count == official else f"differs by {count - official:+,}"
            rows.append((label, f"{count:,}", f"{official:,}", verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        f"{label:{widths[0]}}  {count:>{widths[1]}}  {official:>{widths[2]}}  {verdict}".rstrip()
        for label, count, official, verdict in rows
    ]
    return [*table, f"name in records: {found.name}", f"fingerprint: {found.fingerprint}"]
