"""What a reader must know before a section's numbers: road, solver, schedule, network, classes left out."""

from reports.markdown import code, escape
from reports.sections import Group, Section
from reports.segmentation import fcn_protocol

SHOWN = 5  # names of classes in a line


def opening(section: Section) -> list[str]:
    """The lines below the heading."""
    group = section.groups[0]
    if section.verb == "linear" and "road" in group.protocol:
        return [_road(group), ""]
    if section.verb == "svm":
        return [_solver(group), "", *_left_out(group)]
    if section.verb == "detect" and "batch_size" in group.protocol:
        return [_schedule(group), ""]
    if section.verb == "segment":
        return fcn_protocol(section)
    return []


def _road(group: Group) -> str:
    """Which of its two roads a linear probe took."""
    if not group.short_road:
        return "The papers' road: images are augmented anew in every epoch."
    views = group.protocol.get("views", 0)
    crops = "the centre crop" + (f" and {views} augmented views" * bool(views)) + " of each image"
    return (
        f"**Short road**: features were extracted once, from {crops}, and the heads trained on them "
        "without new augmentation in each epoch; this is a protocol of its own, and published "
        "numbers, made with the papers' road, do not stand beside it."
    )


def _solver(group: Group) -> str:
    """Which solver the SVMs have; records of the first version knew liblinear alone."""
    if group.protocol.get("solver", "liblinear") == "liblinear":
        return "Solver: liblinear (scikit-learn's LinearSVC), as in the literature."
    return (
        "Solver: batched, every SVM to its optimum. The literature's is liblinear, with which it is "
        "shown to agree (docs/benchmarks.md)."
    )


def _schedule(group: Group) -> str:
    """The detector's schedule as it ran, and what it was scaled from (Goyal et al. 2017).

    Records of the first version scaled nothing, and have no metric of it.
    """
    protocol = group.protocol
    batch, rates = protocol["batch_size"], protocol["lr"]
    reference = protocol.get("reference_batch", batch)
    iterations = next(iter(_values(group, "iterations")), protocol["max_iter"])
    text = f"Schedule: batch {batch}, {iterations:,.0f} iterations, learning rate "
    if isinstance(rates, list) and len(rates) > 1:
        of = ", ".join(f"{rate:g}" for rate in rates)
        text += f"the best of {of} on a held-out part of the training set, per backbone"
        scaled = f"learning rates × {batch / reference:g}"
    else:
        (rate,) = rates if isinstance(rates, list) else [rates]
        ran = next(iter(_values(group, "lr")), rate)
        text += f"{ran:g}"
        scaled = f"lr {rate:g} → {ran:g}"
    if batch == reference:
        return f"{text}."
    return (
        f"{text}. Scaled linearly from a schedule for batch {reference}: {scaled}, "
        f"{reference / batch:.4g}x iterations."
    )


def _values(group: Group, name: str) -> set[float]:
    metrics = group.entries[0].record.metrics
    return {metric.value for metric in metrics if metric.name == name}


def _left_out(group: Group) -> list[str]:
    """The first few classes without a part in the numbers, how many they are, and why."""
    if not (left_out := group.left_out):
        return []
    counts = group.dataset.counts
    of = f" of {len(left_out) + counts['classes']:,}" if "classes" in counts else ""
    named = [f"{escape(name)} {escape(why)}" for name, why in list(left_out.items())[:SHOWN]]
    more = f"; and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else ""
    return [
        f"**Left out: {len(left_out):,}{of} classes** ({code('--skip_classes')}): "
        f"{'; '.join(named)}{more}. All numbers are of the other classes alone.",
        "",
    ]
