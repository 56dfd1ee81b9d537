"""What a linear probe's sweep chose, as Markdown: the choice per backbone, and the whole sweep folded."""

from collections.abc import Sequence
from typing import Any

from reports.markdown import MISSING, Links, cell_text, escape, pipe_table
from reports.rows import Backbone
from reports.stats import Cells
from reports.sweeps import Setting, Sweep

_NAMES = {"top1": "top-1", "mAP": "mAP"}


def chosen(sweeps: Sequence[Sweep], backbones: Sequence[Backbone], links: Links) -> list[str]:
    """The table "What was chosen", a row per backbone and layer; nothing without a sweep."""
    if not sweeps:
        return []
    several = len(sweeps) > 1
    decays = any(at.weight_decay is not None for sweep in sweeps for at in sweep.held_out)
    trials = max(len(c.held_out.values) for sweep in sweeps for c in sweep.choices.values())
    name = _NAMES[sweeps[0].score]
    header = [
        "backbone",
        *(["layer"] if several else []),
        "base_lr",
        *(["weight decay"] if decays else []),
        *(["trials that chose it"] if trials > 1 else []),
        f"held-out {name}",
        f"test {name}",
        f"test {name} if chosen on test",
    ]
    rows = []
    for b in backbones:
        for sweep in sweeps:
            if not (choice := sweep.choices.get(b.row)):
                continue
            scores = (choice.held_out, choice.test, choice.best)
            agreed = f"{choice.agreed} of {len(choice.held_out.values)}"
            rows.append(
                [
                    escape(b.label),
                    *([escape(sweep.layer)] if several else []),
                    _plain(choice.setting.base_lr),
                    *([_plain(choice.setting.weight_decay)] if decays else []),
                    *([agreed] if trials > 1 else []),
                    *(cell_text(cell, 2, links) for cell in scores),
                ]
            )
    caption = (
        "What was chosen: the setting with the best score on a held-out part of the training split"
        + (" (of the trials' choices the commonest; scores: of each trial's own)" * (trials > 1))
        + ". The last column, what choosing on the test split would have given, is not a result:"
    )
    return [caption, "", *pipe_table(header, rows, left=1 + several), ""]


def whole_sweep(sweeps: Sequence[Sweep], backbones: Sequence[Backbone], links: Links) -> list[str]:
    """Every setting's score on the held-out part and on the test split, folded away."""
    if not sweeps:
        return []
    settings = list(dict.fromkeys(at for s in sweeps for at in (*s.held_out, *s.test)))
    rates = list(dict.fromkeys(at.base_lr for at in settings))
    decays = list(dict.fromkeys(at.weight_decay for at in settings))
    header = [
        "backbone",
        *(["layer"] if len(sweeps) > 1 else []),
        "scored on",
        *(["weight decay"] if len(decays) > 1 else []),
        *(_plain(rate) for rate in rates),
    ]
    rows = []
    for b in backbones:
        for sweep in sweeps:
            for where, scores in (("held-out part", sweep.held_out), ("test split", sweep.test)):
                means = {at: cells[b.row].mean for at, cells in scores.items() if b.row in cells}
                best = max(means, key=means.__getitem__, default=None)
                for decay in decays if means else []:
                    cells = [_score(scores, Setting(r, decay), b, links, best) for r in rates]
                    who = [escape(b.label), *([escape(sweep.layer)] if len(sweeps) > 1 else [])]
                    of_decay = [_plain(decay)] if len(decays) > 1 else []
                    rows.append([*who, where, *of_decay, *cells])
    summary = f"The whole sweep: {_NAMES[sweeps[0].score]} % by base_lr; bold: each backbone's best of that split"
    table = pipe_table(header, rows, left=len(header) - len(rates))
    return [f"<details><summary>{summary}</summary>", "", *table, "", "</details>", ""]


def _score(
    scores: dict[Setting, Cells], at: Setting, b: Backbone, links: Links, best: Setting | None
) -> str:
    return cell_text(scores.get(at, {}).get(b.row), 2, links, at == best)


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, int | float) else escape(value)
