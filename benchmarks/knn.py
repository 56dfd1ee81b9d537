"""kNN search: seconds, memory and neighbours, against raw faiss and torch's matmul and topk.

Usage: OMP_NUM_THREADS=1 python benchmarks/knn.py [ROUNDS [TRAIN QUERIES DIMENSIONS K]]. Linux only. By
default 1 round of 100,000 x 2,048 features, 5,000 queries, k = 200. Every measurement is a fresh
process that makes the same features (rectified, correlated, in 1,000 classes) and is timed from the
features as a backbone leaves them to neighbours: faiss's time is that of normalising in place, adding
to an IndexFlatIP and searching; its search alone, on features that are normalised and added already,
is shown beside it. Memory is the highest resident set above that after the imports, features included,
as a multiple of the training features in float32. On a machine with a GPU, torch and ours there too.

Expected, before the first measurement on two Zen 4 cores: exact as fast as faiss (both do the same
product at the processor's limit), the shortlist 1.4 times as fast (a bf16 product takes half, rescoring
a tenth), torch 1.3 times as slow (topk of whole rows); memory 1.1, 1.15, and 2 for both peers.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder

PEERS = {  # name: what it is
    "faiss": "faiss IndexFlatIP",
    "exact": "ours, exact",
    "shortlist": "ours, bf16 shortlist",
    "torch": "torch matmul + topk",
    "exact-gpu": "ours on the GPU",
    "torch-gpu": "torch matmul + topk on the GPU",
}
Found = tuple[np.ndarray, float, float | None]  # row numbers, search alone, share certified


def features(count: int, dimensions: int, seed: int) -> np.ndarray:
    """float32 (count, dimensions), as a backbone's: cosines of about 0.6 to 0.95."""
    import torch

    fixed, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    common = 0.7 * torch.randn(dimensions, generator=fixed).abs()
    classes = 0.35 * torch.randn(1000, dimensions, generator=fixed)
    mixing = 0.05 * torch.randn(64, dimensions, generator=fixed)
    out = torch.empty(count, dimensions)
    for part in torch.split(out, 1024):
        label = torch.randint(1000, (len(part),), generator=own)
        part.copy_(torch.randn(len(part), 64, generator=own) @ mixing).add_(classes[label])
        part.add_(common).add_(0.4 * torch.randn(part.shape, generator=own)).relu_()
    return out.numpy()


def by_faiss(train: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """What faiss's documentation says to do for cosine similarity."""
    import faiss

    faiss.normalize_L2(train)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    start = time.perf_counter()
    rows = index.search(queries, k)[1]
    return rows, time.perf_counter() - start, None


def by_torch(train: np.ndarray, queries: np.ndarray, k: int, device: str) -> Found:
    """One product of 256 queries with all rows after the other."""
    import torch
    import torch.nn.functional as F

    rows = F.normalize(torch.from_numpy(train).to(device), dim=1)
    start = time.perf_counter()
    found = [
        (F.normalize(part.to(device), dim=1) @ rows.T).topk(k).indices.cpu()
        for part in torch.split(torch.from_numpy(queries), 256)
    ]
    return torch.cat(found).numpy(), time.perf_counter() - start, None


def by_ours(train: np.ndarray, queries: np.ndarray, k: int, device: str, search: str) -> Found:
    """:func:`siambench.nearest.nearest`, with a count of what the shortlist is sure of."""
    import torch

    from siambench import shortlist
    from siambench.nearest import nearest

    sure: list[np.ndarray] = []
    real = shortlist.search

    def counted(*arguments):
        found = real(*arguments)
        sure.append(found[2])
        return found

    shortlist.search = counted
    start = time.perf_counter()
    rows = nearest(train, queries, k, torch.device(device), search)[1]
    seconds = time.perf_counter() - start
    return rows, seconds, float(np.concatenate(sure).mean()) if sure else None


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most since it was last reset."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def measure(who: str, out: str, *sizes: str) -> None:
    """In a fresh process: import, make features, search once; the last line says what was found."""
    import faiss
    import torch

    import siambench.nearest

    assert faiss
    assert siambench.nearest
    count, queries, dimensions, k = map(int, sizes)
    faiss.omp_set_num_threads(torch.get_num_threads())
    device = "cuda" if who.endswith("gpu") else "cpu"
    small = [features(100, dimensions, seed) for seed in (3, 4)]
    work = {
        "faiss": by_faiss,
        "torch": lambda *data: by_torch(*data, device),
        "exact": lambda *data: by_ours(*data, device, "auto"),
        "shortlist": lambda *data: by_ours(*data, device, "shortlist"),
    }[who.removesuffix("-gpu")]
    work(*small, 1)  # libraries load, kernels are made
    before = resident("VmRSS")
    data = features(count, dimensions, 1), features(queries, dimensions, 2)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start = time.perf_counter()
    rows, alone, sure = work(*data, k)
    seconds = time.perf_counter() - start
    peak = (resident("VmHWM") - before) / (4 * count * dimensions)
    np.save(out, rows)
    print(json.dumps([seconds, alone, peak, sure]))


def main(rounds: int, sizes: list[int]) -> None:
    """All peers in turn, ``rounds`` times; print a Markdown table."""
    import torch

    gpu = torch.cuda.is_available()
    peers = [who for who in PEERS if gpu or not who.endswith("gpu")]
    found: dict[str, list[list[float]]] = {who: [] for who in peers}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for who in peers:
                out = f"{folder}/{who}.npy"
                child = subprocess.run(
                    [sys.executable, __file__, "measure", who, out, *map(str, sizes)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                found[who].append(json.loads(child.stdout.splitlines()[-1]))
                rows[who] = np.sort(np.load(out), axis=1)
    count, queries, dimensions, k = sizes
    print(f"\n{count:,} x {dimensions:,}, {queries:,} queries, k = {k}; median of {rounds} rounds")
    print(f"{torch.get_num_threads()} threads; faiss's search alone: ", end="")
    alone = statistics.median(values[1] for values in found["faiss"])
    whole = statistics.median(values[0] for values in found["faiss"])
    print(f"{alone:.2f} s")
    print("\n| search | seconds | / faiss | / its search alone | memory | as faiss's | certified |")
    print("|---|---|---|---|---|---|---|")
    for who in peers:
        seconds, _, peak, sure = zip(*found[who], strict=True)
        middle = statistics.median(seconds)
        # both have each row once: what is there twice is in both
        both = np.sort(np.concatenate([rows["faiss"], rows[who]], axis=1), axis=1)
        same = (both[:, 1:] == both[:, :-1]).sum() / rows["faiss"].size
        cells = [
            PEERS[who],
            f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
            f"{middle / whole:.2f}",
            f"{middle / alone:.2f}",
            f"{statistics.median(peak):.2f}",
            f"{100 * same:.4f} %",
            "" if sure[0] is None else f"{100 * sure[0]:.2f} %",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        numbers = [int(argument) for argument in sys.argv[1:]]
        main(numbers[0] if numbers else 1, numbers[1:] or [100_000, 5_000, 2_048, 200])
