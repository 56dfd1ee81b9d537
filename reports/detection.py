"""The tables of detection."""

from typing import Any

from reports.classes import class_table
from reports.stats import Cells, Metrics
from reports.tables import Column, Layout, Table

_KINDS = ("box", "mask")
_RULES = ["11-point", "101-point", "all-points"]


def detect(metrics: Metrics) -> Layout:
    """Table 5 of the SimSiam paper: AP50, AP, AP75 of boxes, then of masks; a table per AP rule.

    Folded: AP by size and by class, what detectron2's evaluators print, masks in a search of rates.
    """
    found = [*metrics.distinct("box_AP", "rule"), *metrics.distinct("box_AP50", "rule")]
    # detectron2 scores VOC 2007 by the 11-point rule, and so do the papers; COCO's is 101 points
    rules = sorted(set(found), key=lambda rule: (_RULES.index(rule) if rule in _RULES else 9, rule))
    tables: list[Table] = []
    headline: list[Column] = []
    for rule in rules:
        cells = {
            f"{kind}_{name}": metrics.take(f"{kind}_{name}", rule=rule)
            for kind in _KINDS
            for name in ("AP50", "AP", "AP75")
        }
        published = rule in ("11-point", "101-point")
        columns = [
            Column(name.replace("_", " "), c, name if published else "")
            for name, c in cells.items()
            if c
        ]
        tables.append(Table(f"Average precision by the {rule} rule, %", columns))
        if not headline:
            names = ("box_AP", "mask_AP") if rule == "101-point" else ("box_AP50", "box_AP")
            headline = [
                Column(f"{n.replace('_', ' ')} ({rule})", cells[n]) for n in names if cells[n]
            ]
    tables += [_sizes(metrics, rule) for rule in rules]
    remarks = _classes(metrics, rules, tables)
    tables.append(_own_evaluators(metrics))
    for_masks = [Column(f"lr {rate:g}", c) for rate, c in _by_rate(metrics, "mask").items()]
    caption = "Mask AP on the held-out part by learning rate, %"
    tables.append(Table(caption, for_masks, 2, bold=False, folded=True))
    metrics.take("iterations")  # the section's opening has them
    return Layout(
        tables,
        headline,
        remarks=remarks,
        rates=_by_rate(metrics, "box"),
        ran=metrics.take("lr"),
    )


def _sizes(metrics: Metrics, rule: str) -> Table:
    """COCO's three sizes of objects."""
    cells = {
        f"{kind} {name}": metrics.take(f"{kind}_{name}", rule=rule)
        for kind in _KINDS
        for name in ("APs", "APm", "APl")
    }
    columns = [Column(header, c) for header, c in cells.items() if c]
    caption = "AP of small (below 32² px), medium and large (from 96² px) objects, %"
    return Table(caption, columns, folded=True)


def _classes(metrics: Metrics, rules: list[str], tables: list[Table]) -> list[str]:
    """Add the folded tables of single classes by the first rule, or say that they are too many."""
    for kind in _KINDS:
        name = f"{kind}_AP_class"
        params = (("rule", rules[0]),) if rules else ()
        by = f" ({rules[0].removesuffix('s').replace('-point', ' points')})" if rules else ""
        caption = f"{kind.title()} AP of each class{by}, %"
        made = class_table(metrics, name, params, caption, "AP", drawn=True)
        if isinstance(made, str):
            return [made]
        tables.append(made)
    return []


def _own_evaluators(metrics: Metrics) -> Table:
    """What detectron2 measures on the same detections."""
    end = "_detectron2"
    names = dict.fromkeys(key.name for key in metrics.rest() if key.name.endswith(end))
    columns = [
        Column(" ".join([name.removesuffix(end).replace("_", " "), *_in_brackets(key.params)]), c)
        for name in names
        for key, c in metrics.family(name).items()
    ]
    caption = "As detectron2's own evaluators print them, %"
    return Table(caption, columns, 2, bold=False, folded=True)


def _in_brackets(params: tuple[tuple[str, Any], ...]) -> list[str]:
    return [f"({', '.join(str(value) for _, value in params)})"] if params else []


def _by_rate(metrics: Metrics, kind: str) -> dict[float, Cells]:
    """AP on the held-out part of each rate of a search, the lowest rate first."""
    found = metrics.family(f"{kind}_AP_holdout", "lr")
    by_rate = {dict(key.params)["lr"]: cells for key, cells in found.items()}
    return dict(sorted(by_rate.items()))
