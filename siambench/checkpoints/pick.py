"""Which of a checkpoint's ResNets is the backbone: the table's order, or the branch asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from siambench.checkpoints.layouts import LAYOUTS, Layout, fine_tuned, foreign, layout_of
from siambench.checkpoints.leaves import Leaf
from siambench.checkpoints.recognise import Found, closest, faults, find_resnets
from siambench.errors import UserError


@dataclass(frozen=True)
class Choice:
    """The ResNet that was chosen, where it stands, and those that were not.

    Attributes:
        found: the ResNet.
        layout: its row of the table.
        container: what stands before the row's prefix, e.g. ``"state_dict."``.
        others: the whole ResNets that were left, with their rows.
    """

    found: Found
    layout: Layout
    container: str
    others: list["Choice"]

    def prefix(self, leaves: Mapping[str, Leaf]) -> str:
        """The prefix as the file has it, ``module.`` and all."""
        for short in self.found.keys.values():
            full, rest = leaves[short].key, short.removeprefix(self.found.prefix)
            if full.endswith(rest):
                return full.removesuffix(rest)
        return self.found.prefix

    def branch(self, leaves: Mapping[str, Leaf]) -> str:
        """What ``--branch`` would take it by."""
        return self.layout.branch or self.prefix(leaves).rstrip(".") or "none"

    def notes(self, leaves: Mapping[str, Leaf]) -> list[str]:
        """One line for each ResNet that was left."""
        return [
            f"also in the file and not used: {other.found.arch} at {other.prefix(leaves)!r} "
            f"(convert --branch {other.branch(leaves)})"
            for other in self.others
        ]


def pick(leaves: Mapping[str, Leaf], source: str, branch: str) -> Choice:
    """The backbone of a checkpoint.

    Args:
        leaves: the checkpoint's values.
        source: its name, for messages.
        branch: a branch's word or a prefix (with or without its last dot); ``""`` for the row of
            the table that comes first.

    Raises:
        UserError: there is none, it is not whole, no convention says which, or no such branch.
    """
    found = find_resnets(leaves)
    if not found:
        raise UserError(f"{source}: no ResNet in it; {foreign(leaves)}; nothing was written")
    if why := fine_tuned(leaves):
        raise UserError(f"{source}: {why}; nothing was written")
    placed = [(layout_of(f, leaves), f) for f in found]
    placed.sort(key=lambda item: (item[0][0], item[1].whole))  # a broken one is not stood in for
    ranked = [(place, Choice(f, row, container, [])) for (place, row, container), f in placed]
    if branch:
        ranked = _of_branch(ranked, leaves, source, branch)
    place, chosen = ranked[0]
    if chosen.layout.no:
        raise UserError(f"{source}: {chosen.layout.name}: {chosen.layout.no}; nothing was written")
    if place == len(LAYOUTS):  # no row's place: fragments of other things may lie there as well
        best = closest([choice.found for _, choice in ranked])
        chosen = next(choice for _, choice in ranked if choice.found is best)
    if not chosen.found.whole:  # a whole one further down is another network: not what is meant
        raise UserError(
            f"{source}: closest layout: {chosen.layout.name}, {chosen.found.arch} at "
            f"{chosen.prefix(leaves)!r}, but {faults(chosen.found)}; nothing was written"
        )
    others = [Choice(f, row, c, []) for (_, row, c), f in placed if f.whole and f != chosen.found]
    second = chosen.layout.second and not branch  # then one without a row may be the first
    rivals = [
        choice
        for of, choice in ranked
        if choice.found.whole
        and choice.found != chosen.found
        and (of == place or (second and of == len(LAYOUTS)))
    ]
    if rivals:
        shown = [choice.prefix(leaves) for choice in (chosen, *rivals)]
        raise UserError(
            f"{source} holds several ResNets and no known layout says which is meant: "
            f"{', '.join(map(repr, shown))}; choose with convert --branch {shown[0].rstrip('.')}"
        )
    return Choice(chosen.found, chosen.layout, chosen.container, others)


def _of_branch(
    ranked: list[tuple[int, Choice]], leaves: Mapping[str, Leaf], source: str, branch: str
) -> list[tuple[int, Choice]]:
    """Those that ``branch`` names."""
    named = [
        (place, choice)
        for place, choice in ranked
        if branch.rstrip(".")
        in (
            choice.branch(leaves),
            choice.prefix(leaves).rstrip("."),
            choice.found.prefix.removeprefix(choice.container).rstrip("."),
        )
    ]
    if not named:
        known = ", ".join(
            f"{choice.branch(leaves)} ({choice.prefix(leaves)!r})" for _, choice in ranked[:8]
        )
        raise UserError(f"{source} has no branch {branch!r}; it has: {known}")
    return named
