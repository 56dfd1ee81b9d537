"""The tables of segmentation, and what a reader must know before their numbers."""

from collections.abc import Sequence

from reports.classes import class_table
from reports.markdown import code, escape
from reports.rows import Backbone
from reports.sections import Group, Section, output_stride
from reports.stats import Metrics
from reports.tables import Column, Layout, Table

RANDOM = "random init"  # the method of a backbone that nothing was trained on


def segment(metrics: Metrics) -> Layout:
    """mIoU and the accuracies, as mmsegmentation prints them; folded: IoU and accuracy of each class."""
    names = {"mIoU": "mIoU", "mean_acc": "mean accuracy", "pixel_acc": "pixel accuracy"}
    columns = [Column(header, metrics.take(n), n) for n, header in names.items()]
    columns = [c for c in columns if c.cells]
    tables = [Table("Semantic segmentation, %", columns, 2)]
    for name, what in {"IoU": "IoU", "acc": "Accuracy"}.items():
        made = class_table(metrics, name, (), f"{what} of each class, %", what)
        if isinstance(made, str):
            return Layout(tables, columns[:1], remarks=[made])
        tables.append(made)
    return Layout(tables, columns[:1])


def above_random(made: Layout, backbones: Sequence[Backbone]) -> list[str]:
    """One line: what pre-training brought, over the one backbone that had none; else nothing."""
    cells = made.headline[0].cells if made.headline else {}
    rows = [b for b in backbones if b.row in cells]
    untrained = [b for b in rows if b.method == RANDOM]
    if len(untrained) != 1 or len(rows) < 2:
        return []
    (base,) = untrained
    gains = (
        f"{escape(b.label)} {cells[b.row].mean - cells[base.row].mean:+.2f}"
        for b in rows
        if b is not base
    )
    return [f"mIoU above {code(base.label)}, which was not pre-trained: {', '.join(gains)}.", ""]


def fcn_protocol(section: Section) -> list[str]:
    """Which network was trained how, how it was tested, and which sections do not compare."""
    group, lines = section.groups[0], []
    if (
        "output_stride" in group.protocol
    ):  # records of the first versions, with one network, lack more
        lines = [f"{_network(group)} {_training(group)} {_test(group)}", ""]
    if section.incomparable:
        others = ", ".join(section.incomparable)
        lines += [f"**Not comparable** with {others}: another network, schedule and crop.", ""]
    return lines


def _network(group: Group) -> str:
    protocol = group.protocol
    kind = {8: "FCN, the kind of mmselfsup's tables", 16: "FCN-16s, the kind of MoCo's paper"}
    auxiliary = f"auxiliary head × {protocol['aux_weight']:g}" if protocol["aux_weight"] else ""
    return (
        f"Network: {kind[output_stride(group)]}: output stride {output_stride(group)}, "
        f"{protocol['head_convs']} × {protocol['head_channels']} channels at dilation "
        f"{protocol['head_dilation']}, {auxiliary or 'no auxiliary head'}."
    )


def _training(group: Group) -> str:
    protocol = group.protocol
    schedule = "poly schedule"
    if protocol["schedule"] == "step":
        schedule = f"× 0.1 at {' and '.join(f'{100 * share:g} %' for share in protocol['steps'])}"
    return (
        f"Training: batch {protocol['batch_size']}, {protocol['iterations']:,} iterations, crops of "
        f"{protocol['crop']} px, learning rate {protocol['lr']:g}, {schedule}."
    )


def _test(group: Group) -> str:
    protocol = group.protocol
    text = "whole images"
    if protocol["inference"] == "slide":
        text = f"windows of {protocol['crop']} px every {protocol['slide_stride']} px"
    if (scales := protocol["test_scales"]) != [1]:
        text += f", scales {', '.join(f'{scale:g}' for scale in scales)}"
    return f"Test: {text}{', mirrored too' * protocol['test_flip']}."
