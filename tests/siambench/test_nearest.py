"""The search for neighbours against brute force in float64 and scikit-learn, on every road."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import siambench.nearest
import siambench.search
import siambench.shortlist
from siambench.errors import UserError
from siambench.nearest import check_search, nearest
from siambench.search import tolerance, unit_blocks

SEARCHES = ["faiss", "torch", "shortlist"]
CPU = torch.device("cpu")


class Table:
    """Rows that can do what the protocol asks and no more; remembers the most that was asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> np.ndarray:
        found = self.rows[index]
        self.most = max(self.most, len(found))
        return found.copy()


def features(count: int, seed: int = 0, dimensions: int = 96, noise: float = 0.6) -> np.ndarray:
    """Rectified, correlated and in classes, as a backbone's are: similarities of 0.6 to 0.95."""
    fixed = np.random.default_rng(7)
    common, classes = fixed.normal(1, 1, dimensions), fixed.normal(0, 0.5, (12, dimensions))
    mixing = fixed.normal(0, 0.1, (8, dimensions))
    rng = np.random.default_rng(seed)
    x = common + classes[rng.integers(12, size=count)] + rng.normal(size=(count, 8)) @ mixing
    x += rng.normal(0, noise, (count, dimensions))
    return (np.maximum(x, 0) * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)


def brute_force(train, queries, k, exclude_self=False):
    """Neighbours by float64 similarity, equals (to float32) by row number."""
    units = []
    for rows in (train, queries):
        rows = rows.astype(np.float64)
        units.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
    s = (units[1] @ units[0].T).astype(np.float32)
    if exclude_self:
        np.fill_diagonal(s, -np.inf)
    index = np.stack([np.lexsort((np.arange(len(train)), -row))[:k] for row in s])
    return np.take_along_axis(s, index, 1), index


def assert_same(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], wanted[1])
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64


def test_the_features_are_as_said():
    s = brute_force(features(300), features(50, 1), 300)[0]
    assert 0.55 < np.quantile(s, 0.01) < 0.75
    assert 0.85 < np.quantile(s, 0.99) < 0.95


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("search", SEARCHES)
def test_equals_brute_force(search, dtype):
    train, queries = features(900).astype(dtype), features(70, 1).astype(dtype)
    assert_same(nearest(train, queries, 40, search=search), brute_force(train, queries, 40))


@pytest.mark.parametrize("search", SEARCHES)
def test_equals_scikit_learn(search):
    train, queries = features(500, 2), features(60, 3)
    theirs = NearestNeighbors(n_neighbors=15, metric="cosine", algorithm="brute")
    distance, index = theirs.fit(train.astype(float)).kneighbors(queries.astype(float))
    assert_same(nearest(train, queries, 15, search=search), (1 - distance, index))


@pytest.mark.parametrize("search", SEARCHES)
def test_blocks_change_nothing_and_bound_what_is_read(monkeypatch, search):
    train, queries = Table(features(700, 4)), Table(features(90, 5))
    wanted = brute_force(train.rows, queries.rows, 20)
    monkeypatch.setattr(siambench.search, "_BLOCK", 96 * 37 + 5)
    monkeypatch.setattr(siambench.search, "_PRODUCTS", 37 * 11)
    monkeypatch.setattr(siambench.shortlist, "_PIECE", 4)
    monkeypatch.setattr(siambench.shortlist, "_SAMPLE", 50)
    monkeypatch.setattr(siambench.nearest, "_SETTLE", 96 * 3)
    assert_same(nearest(train, queries, 20, search=search), wanted)
    assert max(train.most, queries.most) <= 20 + siambench.nearest.SPARE + 32


@pytest.mark.parametrize("search", SEARCHES)
def test_equals_come_in_the_order_of_their_rows(search):
    """Duplicates, some of another length, whose float32 products differ in the last bits."""
    train, queries = features(200, 6, dimensions=97), features(50, 7, dimensions=97)
    order = np.random.default_rng(8).permutation(600)
    train = np.concatenate([train, train * np.float32(4), train])[order]
    found = nearest(train, queries, 30, search=search)
    assert_same(found, brute_force(train, queries, 30))
    same = order[found[1]] % 200
    triples = same.reshape(50, 10, 3)
    assert (triples == triples[:, :, :1]).all()
    assert (np.diff(found[1].reshape(50, 10, 3)) > 0).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_tie_across_the_last_place_goes_to_the_lowest_rows(search):
    train = np.concatenate([features(1, 9)] * 7 + [features(300, 10)])[
        np.random.default_rng(11).permutation(307)
    ]
    queries = features(1, 9)
    wanted = np.flatnonzero((train == queries).all(axis=1))[:4]
    assert nearest(train, queries, 4, search=search)[1].tolist() == [wanted.tolist()]


@pytest.mark.parametrize("search", SEARCHES)
def test_leave_one_out(search):
    """Own rows go by number: a copy of a row is its nearest neighbour."""
    x = features(250, 12)
    x[200:] = x[:50]
    found = nearest(x, x, 12, search=search, exclude_self=True)
    assert_same(found, brute_force(x, x, 12, exclude_self=True))
    assert found[1][:50, 0].tolist() == list(range(200, 250))
    assert nearest(x[:5], x[:5], 4, search=search, exclude_self=True)[1].shape == (5, 4)


@pytest.mark.parametrize("search", SEARCHES)
def test_leave_one_out_of_more_copies_than_are_found(search):
    x = np.ones((100, 5), np.float32)
    similarity, index = nearest(x, x, 3, search=search, exclude_self=True)
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    assert not (index == np.arange(100)[:, None]).any()
    assert all(len(set(row)) == 3 for row in index.tolist())


@pytest.mark.parametrize("search", SEARCHES)
def test_rows_of_zeros_are_similar_to_nothing(search):
    train, queries = features(60, 13), features(4, 14)
    train[[3, 30]] = 0
    queries[1] = 0
    similarity, index = nearest(train, queries, 60, search=search)
    assert (similarity[1] == 0).all()
    assert index[1].tolist() == list(range(60))
    assert index[0, -2:].tolist() == [3, 30]


def counted(monkeypatch) -> list[np.ndarray]:
    """What the shortlist says it is sure of, for each block of queries."""
    said, real = [], siambench.shortlist.search

    def search(*arguments):
        found = real(*arguments)
        said.append(found[2])
        return found

    monkeypatch.setattr(siambench.shortlist, "search", search)
    return said


def test_the_shortlist_is_sure_of_most_queries(monkeypatch):
    said = counted(monkeypatch)
    train, queries = features(6000, 15, 512), features(300, 16, 512)
    assert_same(nearest(train, queries, 50, search="shortlist"), brute_force(train, queries, 50))
    assert np.concatenate(said).mean() > 0.95


@pytest.mark.parametrize("spread", [1e-4, 0.05, 0.1])
def test_the_shortlist_is_not_sure_of_near_duplicates(monkeypatch, spread):
    """600 rows nearer to each other than bf16 can tell: searched again, and right."""
    said = counted(monkeypatch)
    rng = np.random.default_rng(17)
    queries = features(20, 18)
    train = np.concatenate([features(900, 19), np.repeat(queries[:3], 200, axis=0)])
    train[900:] *= 1 + rng.normal(0, spread, (600, 96)).astype(np.float32)
    similarity, index = nearest(train, queries, 40, search="shortlist")
    wanted = brute_force(train, queries, 40)
    # 1e-4 is too near for float32 too, so that which 40 of the 200 are the first is open
    known = slice(3 if spread == 1e-4 else 0, None)
    np.testing.assert_allclose(similarity, wanted[0], atol=1e-6)
    np.testing.assert_array_equal(index[known], wanted[1][known])
    (sure,) = said
    assert not sure[:3].any()
    assert sure[3:].mean() > 0.5


@pytest.mark.parametrize("kind", ["normal", "sparse", "spikes", "offset", "bf16", "small"])
@pytest.mark.parametrize("seed", range(3))
def test_what_the_shortlist_is_sure_of_is_so(kind, seed):
    """No query that it vouches for misses a neighbour, whatever the features are like."""
    rng = np.random.default_rng([20, seed])
    x = rng.normal(size=(1500, 64))
    x = {
        "normal": lambda: x,
        "sparse": lambda: x * (rng.random(x.shape) < 0.05),
        "spikes": lambda: x**5,
        "offset": lambda: x + 20,
        "bf16": lambda: torch.tensor(x).bfloat16().double().numpy(),
        "small": lambda: 1 + 0.02 * x,
    }[kind]().astype(np.float32)
    train, queries = x[:1400], x[1400:]
    (_, unit) = next(unit_blocks(queries, CPU))
    _, index, sure = siambench.shortlist.search(train, unit, 10, 18)
    wanted = brute_force(train, queries, 10)[1]
    missed = np.array([len(set(w) - set(i)) for w, i in zip(wanted, index, strict=True)])
    assert not missed[sure].any()


def test_the_shortlist_knows_how_far_products_round():
    """In many dimensions factors' errors cancel, while similarities of 0.9 round by up to 0.002."""
    rng = np.random.default_rng(23)
    one = rng.normal(size=4096)
    train = rng.normal(size=(800, 4096)) * rng.normal(0.4, 0.02, (800, 1)) + one
    train = np.concatenate([train, -train]).astype(np.float32)  # so that the mean takes nothing off
    queries = (rng.normal(size=(60, 4096)) * rng.uniform(0.01, 0.4, (60, 1)) + one).astype(
        np.float32
    )
    (_, unit) = next(unit_blocks(queries, CPU))
    _, index, sure = siambench.shortlist.search(train, unit, 10, 18)
    wanted = brute_force(train, queries, 10)[1]
    assert all(set(wanted[i]) <= set(index[i]) for i in np.flatnonzero(sure))
    assert 0 < sure.sum() < 60


def test_features_that_would_all_be_rounded_alike_do_not_deceive_the_shortlist():
    """One row's 4,065 equal numbers lose 0.4 % each in bf16, the others' are powers of two."""
    rng, d = np.random.default_rng(0), 4096

    def row(length, flipped):
        signs = np.where(np.arange(length) < flipped, -1.0, 1.0)
        return rng.permutation(np.pad(signs / length**0.5, (0, d - length)))

    rows = [row(d, 1024) for _ in range(60)] + [row(d, 1019), row(4065, 1005)]
    train = np.concatenate([rows, np.negative(rows)]).astype(np.float32)
    queries = np.full((1, d), 1 / 64, np.float32)
    assert brute_force(train, queries, 1)[1][0, 0] == 61
    assert nearest(train, queries, 1, search="shortlist")[1][0, 0] == 61


def test_the_tolerance_holds():
    """float32 products err by less than half of it, so that two differ by less than it."""
    (_, train), (_, queries) = (next(unit_blocks(features(*a), CPU)) for a in [(600,), (200, 1)])
    exact = queries.double() @ train.double().T
    assert (queries @ train.T - exact).abs().max() < tolerance(96) / 2
    assert tolerance(96) < 2e-6


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(search, value):
    bad = features(50)
    bad[31, 5] = value
    for train, queries in ((bad, features(3)), (features(50), bad)):
        with pytest.raises(UserError, match="NaN or infinity"):
            nearest(train, queries, 2, search=search)


def test_searches_that_a_gpu_cannot_do(monkeypatch):
    import faiss

    gpu = torch.device("cuda")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(UserError, match="for CPUs"):
        check_search("shortlist", gpu)
    with pytest.raises(UserError, match="faiss cannot use cuda"):
        check_search("faiss", gpu)
    check_search("auto", gpu)


def test_torch_multiplies_in_float32_whatever_is_set():
    train, queries = features(300, 21), features(30, 22)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with siambench.search._all_of_float32(torch.device("cuda")):
            inside = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    assert inside in ("ieee", None)
    assert after == "high"
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(train, queries, 9, search="torch")
    assert_same(found, brute_force(train, queries, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("search", ["auto", "torch"])
def test_gpu_equals_brute_force(monkeypatch, search):
    train, queries = features(900), features(70, 1)
    gpu = torch.device("cuda")
    wanted = brute_force(train, queries, 40)
    assert_same(nearest(train, queries, 40, gpu, search), wanted)
    monkeypatch.setattr(siambench.search, "_GPU_BLOCK", 96 * 101)
    monkeypatch.setattr(siambench.search, "_GPU_PRODUCTS", 101 * 13)
    assert_same(nearest(train, queries, 40, gpu, search), wanted)
