"""``--compare A B``: against scipy's tests, a step-down by hand, and rules of when there is no p."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import made_records as made
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report_numbers import number, tables

from reports import VERBS
from reports.difference import NARROWER, difference, holm
from reports.report import write_report
from siambench.cli import run_verb
from siambench.record import Metric


def save(folder: Path, name: str, values: Sequence[float], seed: int = 0, **extra: float) -> None:
    for trial, value in enumerate(values):
        metrics = [Metric("top1", value, split="val", params={"layer": "avgpool"})]
        metrics += [
            Metric(n, v, split="val", params={"layer": "avgpool"}) for n, v in extra.items()
        ]
        rec = made.record("in1k-linear-lars-90e", name, metrics, trial=trial)
        made.save(folder, type(rec)(**{**vars(rec), "seed": seed + trial}))


def compared(folder: Path, *names: str) -> tuple[str, pd.DataFrame]:
    """The text of the section and its first table."""
    text = write_report([folder], folder / "r.md", formats=("md",), compare=names).read_text()
    heading = f"{names[0]} against {names[1]}"
    first = next(t for (h, _), t in tables(text).items() if h == heading)
    return text.split(f"## {heading}")[1].split("\n<a id")[0], first


def signed(text: str) -> float:
    return float(text.strip("*").replace("−", "-"))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (8, 4)])
def test_welch_is_scipys(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    for scale in (0.1, 1, 30):
        a, b = rng.normal(50, 1, sizes[0]), rng.normal(51, scale, sizes[1])
        # seeds of their own, so that nothing can be paired
        found = difference(dict(enumerate(a)), {100 + i: v for i, v in enumerate(b)})
        test = stats.ttest_ind(a, b, equal_var=False)
        interval = test.confidence_interval(0.95)
        assert found.how == f"Welch, n = {sizes[0]} and {sizes[1]}"
        assert found.p == pytest.approx(test.pvalue, rel=1e-9)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_pairs_are_made_where_they_say_much_more() -> None:
    rng = np.random.default_rng(0)
    hows = []
    for noise in (0.01, 0.3, 0.6, 1, 2):
        base = rng.normal(0, 1, 6)
        a = dict(enumerate(base))
        b = {i: v + 0.2 + rng.normal(0, noise) for i, v in a.items()}
        found = difference(a, b)
        paired = stats.ttest_rel(list(a.values()), list(b.values()))
        free = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
        ends = [t.confidence_interval(0.95) for t in (paired, free)]
        widths = [end.high - end.low for end in ends]
        # standard errors decide, as widths do but for the degrees of freedom
        errors = [
            stats.sem([a[i] - b[i] for i in a]),
            math.hypot(*(map(stats.sem, map(list, (a.values(), b.values()))))),
        ]
        use = errors[0] <= NARROWER * errors[1]
        assert found.p == pytest.approx((paired if use else free).pvalue, rel=1e-9)
        assert found.high - found.low == pytest.approx(widths[0 if use else 1], rel=1e-9)
        hows.append(found.how.split(",")[0])
    assert set(hows) == {"paired by seed", "Welch"}
    # the same numbers under other seeds are no pairs
    assert difference(a, {i + 1: v for i, v in b.items()}).how.startswith("Welch")


@pytest.mark.parametrize(
    ("a", "b", "how"),
    [
        ([1.0], [2.0], "one trial"),
        ([1.0], [2.0, 3.0], "one trial of one of them"),
        ([1.0, 1.0], [2.0, 2.0], "no spread over trials"),
    ],
)
def test_there_is_no_p_where_none_can_be(a: list[float], b: list[float], how: str) -> None:
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    assert found.how == how
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert all(math.isnan(x) for x in (found.p, found.low, found.high))


def test_a_constant_difference_is_not_taken_for_certain() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert found.how.startswith("Welch")
    assert 0.1 < found.p < 1


def test_without_a_difference_few_p_are_small() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        pairs = rng.normal(size=(2000, 2, n))
        ps = [difference(dict(enumerate(a)), dict(enumerate(b))).p for a, b in pairs]
        assert np.mean(np.array(ps) < 0.05) < 0.075  # 0.062 in the long run, ± 0.005 of 2,000


def test_holm_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ps = rng.uniform(0, 0.2, 6)
        adjusted = holm([*ps, math.nan])
        for level in rng.uniform(0, 1, 20):
            rejected = set()
            for rank, i in enumerate(np.argsort(ps)):  # stop at the first that is not small enough
                if ps[i] > level / (len(ps) - rank):
                    break
                rejected.add(i)
            assert {i for i in range(6) if adjusted[i] <= level} == rejected
        assert math.isnan(adjusted[-1])


def test_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(60, 1, 4), rng.normal(55, 1, 4)
    save(tmp_path, "a", a, top5=80.0)
    save(tmp_path, "b", b, seed=10, top5=80.5)
    save(tmp_path, "c", b)
    text, table = compared(tmp_path, "a", "b")
    (row,) = table.to_dict("records")
    test = stats.ttest_ind(a, b, equal_var=False)
    assert number(row["a"])[:2] == pytest.approx((a.mean(), a.std(ddof=1)), abs=0.00501)
    assert signed(row["difference"]) == pytest.approx(a.mean() - b.mean(), abs=0.00501)
    assert row["difference"].startswith("**+")
    ends = [signed(x) for x in row["95 %"].split(" to ")]
    assert ends == pytest.approx(list(test.confidence_interval(0.95)), abs=0.00501)
    assert row["p"] == row["p (Holm, 1 rows)"]
    assert row["p"] == (r"\<0.001" if test.pvalue < 0.001 else f"{test.pvalue:.3f}")
    assert row["by"] == "Welch, n = 4 and 4"
    assert "[in1k-linear-lars-90e](#s1) top-1 (avgpool)" in table.index[0]
    folded = text.split("<details>")[1]
    assert "top-5" in folded
    assert "no spread over trials" in folded
    assert "top-1" not in folded


@pytest.mark.parametrize(("gap", "said"), [(4.9, "overlap"), (5.1, "are apart")])
def test_single_trials_have_the_test_images_alone(tmp_path: Path, gap: float, said: str) -> None:
    save(tmp_path, "a", [50.0 + gap], top1_ci_low=48.0 + gap, top1_ci_high=53.0 + gap)
    save(tmp_path, "b", [50.0], top1_ci_low=48.0, top1_ci_high=53.0)
    _, table = compared(tmp_path, "a", "b")
    (row,) = table.to_dict("records")
    assert row["by"] == f"one trial; 95 % intervals over test images {said}"
    assert row["p"] == row["95 %"] == "–"


def test_metrics_of_one_alone_are_named(tmp_path: Path) -> None:
    made.fill(tmp_path, backbones=("a", "b"), benchmarks=("in1k-knn",))
    made.fill(tmp_path, backbones=("a",), benchmarks=("voc12aug-fcn-20k",))
    text, table = compared(tmp_path, "a", "b")
    assert len(table) == 1
    assert "Measured of one of the two alone: [voc12aug-fcn-20k](#s2) mIoU." in text


def test_the_command_takes_two_names_before_or_behind_the_folder(tmp_path: Path) -> None:
    made.fill(tmp_path, benchmarks=("in1k-knn",))
    texts = []
    for arguments in (
        [str(tmp_path), "--compare", "random", "simsiam"],
        ["--compare", "random", "simsiam", str(tmp_path)],
        ["--compare=random,simsiam", str(tmp_path)],
        [str(tmp_path), "--compare", "[random, simsiam]", "--format", "md"],
    ):
        assert run_verb(VERBS["report"], arguments) == 0
        texts.append((tmp_path / "report.md").read_text())
    assert "## random against simsiam" in texts[0]
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("simsaim", "random"), "'simsaim' has no record; did you mean 'simsiam'? There are: "),
        (("random", "zzz"), "'zzz' has no record; There are: random, simsiam, supervised"),
        (("random", "random"), "'random' is named twice"),
    ],
)
def test_unknown_names_are_one_line_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str], message: str
) -> None:
    made.fill(tmp_path, benchmarks=("in1k-knn",))
    assert run_verb(VERBS["report"], [str(tmp_path), "--compare", *names]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("report.*"))


def test_two_files_of_one_name_are_asked_for_by_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for sha in ("1" * 64, "2" * 64):
        made.save(tmp_path, made.record("in1k-knn", "net", made.knn(rng), sha256=sha))
    with pytest.raises(Exception, match="'net' is the name of several files"):
        write_report([tmp_path], tmp_path / "r.md", compare=("net", "net"))
    _, table = compared(tmp_path, "net (11111111)", "net (22222222)")
    assert re.search(r"\[r\d+\]", table.iloc[0]["net (22222222)"])
