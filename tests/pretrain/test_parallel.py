"""The same trajectory however the batch is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import begin, begin_all, end, in_double, lines, weights

from pretrain.config import AugmentConfig
from pretrain.order import BatchOrder, check_divides
from siambench.errors import UserError

TIGHT = 1e-7  # a thousandth of the 1e-4 that float32 would be held to
NO_HEADS = {"fix_pred_lr": False, "dim": 2048, "pred_dim": 512}  # the defaults
MOCO = {
    **{"method": "mocov2", **NO_HEADS, "dim": 32},
    "options": {"queue": 128, "momentum": 0.9, "bn_groups": 4},
}
SWAV = {
    **{"method": "swav", **NO_HEADS, "dim": 32},
    "options": {"prototypes": 12, "frozen_steps": 3, "queue": 64, "epsilon": 0.1},
}
MULTI_CROP = AugmentConfig(crop=24, resize=24, small_views=2, small_crop=16)


@pytest.fixture
def config(config):
    return replace(
        config,
        epochs=7,  # of three steps
        batch_size=32,
        base_lr=0.4,
        fix_pred_lr=True,
        dim=32,
        pred_dim=8,
        augment=AugmentConfig(crop=24, resize=24),
        knn_every=0,
        log_every=1,
    )


@pytest.mark.parametrize(
    ("size", "switches"),
    [
        (2, {}),
        (4, {}),
        (2, {"accumulate": 2}),
        (2, {"predictor": "fixed", "mlp_bn": "all"}),
        (2, {"predictor": "none", "symmetric": False, "accumulate": 2}),
        (2, {"stop_gradient": False, "similarity": "cross_entropy", "mlp_bn": "none"}),
        (2, {"method": "supervised", "base_lr": 0.1, **NO_HEADS}),
        (2, {"method": "simclr", "base_lr": 0.1, **NO_HEADS, "dim": 32}),
        (2, MOCO),
        (4, MOCO | {"symmetric": False}),
        (2, {"method": "byol", **NO_HEADS, "dim": 32, "options": {"momentum": 0.9}}),
        (2, SWAV),
        (2, SWAV | {"optimizer": "lars", "base_lr": 8.0, "augment": MULTI_CROP}),
        (2, {"method": "barlow_twins", "base_lr": 0.004, **NO_HEADS, "dim": 32}),
        (2, {"method": "vicreg", "base_lr": 0.02, **NO_HEADS, "dim": 32}),
        (2, {"method": "alternating", "options": {"steps": 2}}),
        (2, {"method": "moving_average", "predictor": "none", "pred_dim": 512}),
    ],
)
def test_processes_follow_the_trajectory_of_one(config, tmp_path, size, switches):
    """21 steps in float64: in float32 two roundings of one trajectory part by a factor 3 a step."""
    config = replace(config, **switches)
    alone = replace(config, out=str(tmp_path / "alone"))
    assert end(begin(alone, tmp_path / "alone.log", work=in_double)) == 0
    processes = begin_all(config, tmp_path, size, work=in_double)
    assert [end(p) for p in processes] == [0] * size, (tmp_path / "0.log").read_text()
    last = "checkpoint_0007.pth"
    a, b = weights(tmp_path / "alone" / last), weights(tmp_path / "run" / last)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=TIGHT, rtol=TIGHT, msg=name)
    one, many = lines(alone.out, "steps.jsonl"), lines(config.out, "steps.jsonl")
    assert [x["step"] for x in one] == list(range(1, 22)) == [x["step"] for x in many]
    np.testing.assert_allclose([x["loss"] for x in one], [x["loss"] for x in many], atol=TIGHT)
    # The trajectory went somewhere: agreement is not that of two runs that stand still.
    # (MoCo's loss begins low, against a queue of random negatives.)
    assert max(abs(x["loss"] - one[0]["loss"]) for x in one) > 1e-2


def test_accumulation_is_the_mean_of_the_parts_gradients(config, tmp_path):
    """Without batch norm over the batch, parts and whole are the same; with it they are not."""
    from pretrain.loop import gradients
    from pretrain.run import lay_out, open_data
    from siambench.distributed import World

    def step(accumulate):
        settings = replace(config, accumulate=accumulate, batch_size=32)
        made = lay_out(settings, World(0, 1, torch.device("cpu")), open_data(settings))
        made.method.eval()  # running statistics: images do not see each other
        loss, _ = gradients(made, made.method)
        return loss, [p.grad for p in made.method.parameters()]

    (whole, expected), (parts, found) = step(1), step(4)
    torch.testing.assert_close(whole, parts)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_step_sees_the_same_images_however_it_is_cut():
    def steps(size, accumulate, start=0):
        orders = [
            BatchOrder(103, 24, 2, 5, start=start, accumulate=accumulate, rank=r, size=size)
            for r in range(size)
        ]
        pieces = [list(order) for order in orders]
        assert {len(p) for p in pieces} == {len(orders[0])} == {(8 - start) * accumulate}
        cut = [
            [
                key
                for piece in pieces
                for part in piece[s * accumulate :][:accumulate]
                for key in part
            ]
            for s in range(8 - start)
        ]
        return [sorted(batch) for batch in cut]

    whole = steps(1, 1)
    for epoch in (0, 1):
        seen = [key for batch in whole[4 * epoch : 4 * epoch + 4] for key in batch]
        assert len({image for _, image in seen}) == len(seen) == 96
        assert {e for e, _ in seen} == {epoch}
    assert whole[0] != [(0, i) for _, i in whole[4]]
    for size, accumulate in [(2, 1), (4, 1), (1, 3), (2, 3)]:
        assert steps(size, accumulate) == whole
        assert steps(size, accumulate, start=5) == whole[5:]


@pytest.mark.parametrize(
    ("batch", "accumulate", "size", "nearest"),
    [
        (100, 1, 8, "96 or 104"),
        (512, 3, 8, "504 or 528"),
        (8, 1, 8, "16"),
        (20, 1, 16, "32"),
        (33, 1, 2, "32 or 34"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(batch, accumulate, size, nearest):
    with pytest.raises(UserError, match=rf"the nearest that does is {nearest}$"):
        check_divides(batch, accumulate, size)


def test_batches_that_divide_are_not_refused():
    for batch, accumulate, size in [(32, 1, 1), (32, 2, 8), (512, 1, 8), (2, 1, 1), (33, 1, 1)]:
        check_divides(batch, accumulate, size)
