"""The SVM protocols of VOC07: seconds and answers of the batched solver against the reference loop.

Usage: OMP_NUM_THREADS=1 python benchmarks/lowshot.py [full | lowshot | both] [CLONE]. Features are made
with VOC07's counts (5,011 and 4,952 images, 20 classes, 2,048 dimensions; FAIR's 26 costs). The
reference is the loop of fair_self_supervision_benchmark, one thread: scikit-learn's LinearSVC for each
class, cost and fold or sample, and its average precision, by tools/svm/svm_helper.py of a CLONE of that
repository where one is named, else by scikit-learn's precision_recall_curve made monotone. Reference and
ours take turns, class by class (full; ours solves ten classes at once) or sample by sample (low-shot).
``both`` is ours alone as `siambench svm` runs it, the honest column included, with a worker per core, in
a fresh process whose memory is watched; it is run on a GPU too where there is one.

Expected, before the first measurement: full 12 times as fast, low-shot 12 times, its test side 20 times.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder

# Images with each class in VOC 2007's trainval and test, alphabetical (the challenge's table 2).
COUNTS = (
    (238, 204), (243, 239), (330, 282), (181, 172), (244, 212), (186, 174), (713, 721), (337, 322),
    (445, 417), (141, 127), (200, 190), (421, 418), (287, 274), (245, 222), (2008, 2007), (245, 224),
    (96, 97), (229, 223), (261, 259), (256, 229),
)  # fmt: skip
IMAGES = (5011, 4952)
DIMENSIONS = 2048
Part = tuple[
    np.ndarray, np.ndarray
]  # features (n, D) float32 of unit length, labels (n, 20) of 1, -1


def make_features() -> list[Part]:
    """Rectified, with a spectrum like that of pooled features; mAP about 85."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)).astype(np.float32))[0]
    scale = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -0.5
    scale *= 0.8 / np.linalg.norm(scale)
    common = np.abs(rng.standard_normal(DIMENSIONS)).astype(np.float32)
    common /= np.linalg.norm(common)
    signs = rng.standard_normal((len(COUNTS), 200)).astype(np.float32)
    signs *= 3.9 / np.linalg.norm(signs, axis=1, keepdims=True)
    parts = []
    for split, images in enumerate(IMAGES):
        y = np.full((images, len(COUNTS)), -1, np.int8)
        for column, counts in enumerate(COUNTS):
            y[rng.choice(images, counts[split], replace=False), column] = 1
        inner = rng.standard_normal((images, DIMENSIONS)).astype(np.float32)
        strength = rng.uniform(0.5, 1.5, y.shape) * (y == 1)
        inner[:, :200] += strength.astype(np.float32) @ signs
        x = np.maximum((inner * scale) @ basis.T + common, 0)
        parts.append((x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5), y))
    return parts


def reference_ap(clone: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """AP of (labels of 1 and -1, scores)."""
    if clone:
        sys.path.append(str(Path(clone) / "tools" / "svm"))
        from svm_helper import get_precision_recall

        return lambda y, scores: float(np.squeeze(get_precision_recall(y, scores)[3]))
    from sklearn.metrics import precision_recall_curve

    def monotone(y: np.ndarray, scores: np.ndarray) -> float:
        precision, recall, _ = precision_recall_curve(y == 1, scores)
        return float(-(np.diff(recall) * np.maximum.accumulate(precision)[:-1]).sum())

    return monotone


def objective(size: float, y: np.ndarray, scores: np.ndarray, cost: float) -> float:
    """LinearSVC's, of weights with this square of their length, intercept included."""
    hinge = np.maximum(0, 1 - y * scores)
    return 0.5 * size + cost * float((np.where(y > 0, 2, 1) * (y != 0) * hinge**2).sum())


def with_ones(x: np.ndarray) -> np.ndarray:
    """The constant feature of the intercept, as the last column."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=1)


class Timed:
    """A solver that counts its seconds."""

    def __init__(self, solver) -> None:
        self.solver, self.training, self.testing = solver, 0.0, 0.0

    def solve(self, *arguments) -> Iterator:
        start = time.perf_counter()
        for solution in self.solver.solve(*arguments):
            self.training += time.perf_counter() - start
            yield solution
            start = time.perf_counter()
        self.training += time.perf_counter() - start

    def test(self, weights: Sequence) -> np.ndarray:
        start = time.perf_counter()
        scores = self.solver.test(weights)
        self.testing += time.perf_counter() - start
        return scores


def full(clone: str) -> None:
    """Every class: 26 costs with 3 folds and, as FAIR's script does, all images; then test with the best."""
    import torch
    from sklearn.model_selection import cross_validate

    from eval_lowshot.batched import Batched
    from eval_lowshot.config import COSTS
    from eval_lowshot.eigenbasis import eigenbasis
    from eval_lowshot.folds import fold_labels
    from eval_lowshot.full import full_block
    from eval_lowshot.liblinear import train_svm

    (x, y), (x_test, y_test) = make_features()
    x8, x8_test = x.astype(np.float64), x_test.astype(np.float64)
    costs, ap_of = COSTS["fair"], reference_ap(clone)
    theirs, ours, rows = 0.0, 0.0, []
    start = time.perf_counter()
    solver = Batched(eigenbasis(with_ones(x), with_ones(x_test), torch.device("cpu")))
    ours += time.perf_counter() - start
    for first in range(0, y.shape[1], 10):
        block = range(first, min(first + 10, y.shape[1]))
        start = time.perf_counter()
        found = full_block(solver, y[:, block].T, y_test[:, block].T, costs)
        ours += time.perf_counter() - start
        for place, column in enumerate(block):
            start = time.perf_counter()
            cv, models = [], []
            for cost in costs:
                svm = train_svm(x8, y[:, column], cost)
                scores = cross_validate(  # what cross_val_score calls
                    svm,
                    x8,
                    y[:, column],
                    cv=3,
                    scoring="average_precision",
                    return_estimator=True,
                )
                models.append([svm, *scores["estimator"]])
                cv.append(scores["test_score"].mean())
            best = int(np.argmax(cv))
            ap = ap_of(y_test[:, column], models[best][0].decision_function(x8_test))
            theirs += time.perf_counter() - start
            gaps, folds = [], fold_labels(y[:, [column]].T, 3)
            everything = np.concatenate([y[:, [column]].T, folds])
            for solution in solver.solve(np.arange(len(x)), everything, costs):
                sizes = solution.weights.double().square().sum(-1).numpy()
                for at, cost in enumerate(solution.costs):
                    for row, labels in enumerate(everything):
                        model = models[cost][row]
                        size = float((model.coef_**2).sum() + model.intercept_[0] ** 2)
                        least = objective(size, labels, model.decision_function(x8), costs[cost])
                        mine = solution.scores[at, row].astype(np.float64)
                        mine = objective(float(sizes[at, row]), labels, mine, costs[cost])
                        gaps.append(mine / least - 1)
            rows.append(
                (
                    costs[best] == found["cost"][place],
                    ap,
                    found["AP"][place],
                    max(gaps),
                    float(np.sort(cv)[-1] - np.sort(cv)[-2]),
                )
            )
            print(column, costs[best], found["cost"][place], *rows[-1], flush=True)
    same, one, two, gap, _ = (np.array(column) for column in zip(*rows, strict=True))
    print(f"full: reference {theirs:.1f} s, ours {ours:.1f} s: {theirs / ours:.1f} times as fast")
    print(
        f"same cost for {same.sum()} of {len(same)} classes; largest AP difference "
        f"{np.abs(one - two).max():.1e}; mAP {100 * one.mean():.3f} and {100 * two.mean():.3f}; largest "
        f"objective / liblinear's - 1 of {len(same) * len(costs) * 4:,} problems: {gap.max():.1e}"
    )


def lowshot(clone: str) -> None:
    """Every class of every k and sample: 26 costs, each tested."""
    import torch

    from eval_lowshot.batched import Batched
    from eval_lowshot.config import COSTS, SvmConfig
    from eval_lowshot.eigenbasis import eigenbasis
    from eval_lowshot.liblinear import train_svm
    from eval_lowshot.lowshot import lowshot_sample
    from eval_lowshot.samples import samples_of

    (x, y), (x_test, y_test) = make_features()
    x8, x8_test = x.astype(np.float64), x_test.astype(np.float64)
    config = SvmConfig(backbone="", data="", mode="lowshot")
    data = svm_data(y, y_test)
    costs, ap_of, rows = COSTS["fair"], reference_ap(clone), np.arange(len(x))
    start = time.perf_counter()
    solver = Timed(Batched(eigenbasis(with_ones(x), with_ones(x_test), torch.device("cpu"))))
    solver.training += time.perf_counter() - start
    whole, theirs = solver.training, np.zeros(2)
    differences, gaps, means = [], [], []
    for sample in samples_of(data, config, 0):
        before, start = solver.training, time.perf_counter()
        found = lowshot_sample(solver, sample, rows, y_test, y.shape[1], costs, 0)
        seconds = [time.perf_counter() - start, solver.training - before]
        whole += seconds[0]
        aps, spent = np.empty((y.shape[1], len(costs))), np.zeros(2)
        images, signs = sample.of(range(y.shape[1]))
        for column, (chosen, labels) in enumerate(zip(images, signs[:, :, 0], strict=True)):
            least = []
            for at, cost in enumerate(costs):
                start = time.perf_counter()
                svm = train_svm(x8[chosen], labels, cost)
                spent[0] += time.perf_counter() - start
                start = time.perf_counter()
                aps[column, at] = ap_of(y_test[:, column], svm.decision_function(x8_test))
                spent[1] += time.perf_counter() - start
                size = float((svm.coef_**2).sum() + svm.intercept_[0] ** 2)
                least.append(objective(size, labels, svm.decision_function(x8[chosen]), cost))
            for solution in solver.solver.solve(chosen, labels[None], costs):
                sizes = solution.weights.double().square().sum(-1).numpy()
                for at, cost in enumerate(solution.costs):
                    mine = solution.scores[at, 0].astype(np.float64)
                    mine = objective(float(sizes[at, 0]), labels, mine, costs[cost])
                    gaps.append(mine / least[cost] - 1)
        theirs += spent
        differences.append(np.abs(aps - found["AP"]).max())
        means.append((sample.k, aps, np.array(found["AP"])))
        print(
            f"k {sample.k:>2} sample {sample.number}: training {spent[0]:.1f} / {seconds[1]:.2f} s, "
            f"test {spent[1]:.1f} / {seconds[0] - seconds[1]:.2f} s, AP within {differences[-1]:.1e}",
            flush=True,
        )
    ours = np.array([solver.training, whole - solver.training])
    for name, one, two in zip(("training", "test side"), theirs, ours, strict=True):
        print(
            f"low-shot, {name}: reference {one:.1f} s, ours {two:.1f} s: {one / two:.1f} times as fast"
        )
    print(
        f"low-shot, whole: {theirs.sum():.1f} s, {whole:.1f} s: {theirs.sum() / whole:.1f} times as fast"
    )
    chosen, mean, at_it = [], [], []
    for k in config.k:
        one, two = (np.array([m[i] for m in means if m[0] == k]) for i in (1, 2))
        averages = one.mean((0, 1)), two.mean((0, 1))
        best = averages[0].argmax()
        chosen.append(best == averages[1].argmax())
        mean.append(100 * abs(averages[0].max() - averages[1].max()))
        at_it.append(np.abs(one - two)[..., best].max())
    print(
        f"same cost for {sum(chosen)} of {len(chosen)} k; AP at it within {max(at_it):.1e}, mAP within "
        f"{max(mean):.4f} points; at every cost AP within {max(differences):.1e}; objective / liblinear's - 1 of {len(gaps):,} problems at most "
        f"{max(gaps):.1e}"
    )


def svm_data(y: np.ndarray, y_test: np.ndarray):
    """Labels as the protocols take them; there are no images."""
    from eval_lowshot.data import Split, SvmData
    from siambench.record import DatasetInfo

    splits = (Split("trainval", None, y), Split("test", None, y_test))  # type: ignore[arg-type]
    return SvmData([f"class{n}" for n in range(y.shape[1])], *splits, DatasetInfo("made", "", {}))


def together(device: str) -> None:
    """Both protocols as the verb runs them; the last line is seconds of each and memory."""
    import torch

    import eval_lowshot.full
    from eval_lowshot.config import SvmConfig
    from eval_lowshot.features import make_solver
    from eval_lowshot.lowshot import lowshot
    from eval_lowshot.samples import samples_of
    from eval_lowshot.tasks import one_thread
    from siambench.evaluation import Job

    (x, y), (x_test, y_test) = make_features()
    tables = {("trainval", "avgpool"): x, ("test", "avgpool"): x_test}
    data, seconds = svm_data(y, y_test), []
    torch.ones(1, device=device)  # CUDA starts
    for mode in ("full", "lowshot"):
        config = SvmConfig(backbone="", data="", mode=mode)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(0, 0, torch.device(device), -1, Path(folder), "", mode)
            start = time.perf_counter()
            with one_thread():
                solver = make_solver(tables, "avgpool", data, config, job.device)
            if mode == "full":
                eval_lowshot.full.full(solver, "avgpool", data, config, job)
            else:
                samples = samples_of(data, config, 0)
                lowshot(solver, "avgpool", samples, np.arange(len(x)), data, config, job)
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([*seconds, peak]))


def main(what: str, clone: str) -> None:
    """Run one of the three."""
    if what in ("full", "lowshot"):
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)
        with threadpool_limits(1):
            (full if what == "full" else lowshot)(clone)
        return
    import torch

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        child = subprocess.run(
            [sys.executable, __file__, "together", device],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds, more, peak = json.loads(child.stdout.splitlines()[-1])
        print(f"{device}: full {seconds:.1f} s, low-shot {more:.1f} s, {peak:.2f} GB at most")


if __name__ == "__main__":
    if sys.argv[1:2] == ["together"]:
        together(sys.argv[2])
    else:
        main(*[*sys.argv[1:], "both", ""][:2] if len(sys.argv) < 3 else sys.argv[1:3])
