"""SimSiam's relatives: losses, momentum encoders, queues and assignments against plain restatements."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import identical

import pretrain.loop
import pretrain.methods
from pipeline.verbs import VERBS
from pretrain.config import AugmentConfig, PretrainConfig, check_config
from pretrain.loop import run, set_lr
from pretrain.methods import build_method, methods
from pretrain.methods.barlow_twins import BarlowTwins
from pretrain.methods.byol import regression
from pretrain.methods.heads import together
from pretrain.methods.mocov2 import info_nce
from pretrain.methods.simclr import nt_xent
from pretrain.methods.split_norm import SplitBatchNorm, split_batchnorm
from pretrain.methods.swav import sinkhorn
from pretrain.optim import build_optimizer
from siambench.config import make_config
from siambench.errors import UserError
from siambench.resnet import build_resnet


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


N, D = 12, 5
BATCH = 8
# Small, and such that all that a method has takes part within a few steps.
SMALL = {
    "simclr": {"dim": 16, "hidden_dim": 24},
    "mocov2": {"dim": 16, "options": {"queue": 48, "momentum": 0.9, "bn_groups": 2}},
    "byol": {"dim": 16, "hidden_dim": 24, "pred_dim": 8, "options": {"momentum": 0.9}},
    "swav": {
        "dim": 16,
        "options": {"prototypes": 20, "frozen_steps": 2, "queue": 2 * BATCH},
        "augment": AugmentConfig(crop=24, resize=24, small_views=2, small_crop=16),
    },
    "barlow_twins": {"dim": 16, "hidden_dim": 24, "base_lr": 0.01},
    "vicreg": {"dim": 16, "hidden_dim": 24, "base_lr": 0.01},
    "alternating": {"dim": 16, "pred_dim": 4, "options": {"steps": 2}},
    "moving_average": {"dim": 16, "pred_dim": 4, "predictor": "none"},
}


def config_of(name: str, **changes) -> PretrainConfig:
    base = PretrainConfig(
        data="", arch="resnet10-w8", batch_size=BATCH, epochs=2, zero_init_residual=False
    )
    return replace(base, method=name, **SMALL[name] | changes)


def rows(seed: int, n: int = N, d: int = D) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def views(seed: int, n: int = BATCH) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 24, 24, generator=made, dtype=torch.float64) for _ in range(2)]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def steps(method, config, count: int, hook=lambda step: None) -> list[float]:
    """The loop without its surroundings."""
    optimizer = build_optimizer(method, config, config.base_lr)
    losses = []
    for step in range(count):
        images = torch.arange(BATCH) + step
        batch = (views(step), torch.zeros(BATCH, dtype=torch.long), images)
        method.before_step(step)
        loss, _ = method(*batch[: 3 if method.per_image else 2])
        loss.backward()
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step + 1, count)
        losses.append(loss.item())
        hook(step)
    return losses


def test_nt_xent_is_the_papers_equation_1():
    a, b = (unit(rows(seed).numpy()) for seed in (0, 1))
    z, t, total = np.concatenate((a, b)), 0.3, 0.0
    for i in range(2 * N):
        j = (i + N) % (2 * N)
        others = [math.exp(z[i] @ z[k] / t) for k in range(2 * N) if k != i]
        total -= math.log(math.exp(z[i] @ z[j] / t) / sum(others))
    found = nt_xent(rows(0), rows(1), t).item()
    assert found == pytest.approx(total / N, rel=1e-12)  # the code's sum of both views' means


def test_info_nce_is_the_papers_equation_1():
    q, k, queue = (unit(rows(seed).numpy()) for seed in (0, 1, 2))
    t, total = 0.2, 0.0
    for i in range(N):
        positive = math.exp(q[i] @ k[i] / t)
        total -= math.log(positive / (positive + sum(math.exp(q[i] @ n / t) for n in queue)))
    found = info_nce(*(torch.from_numpy(x) for x in (q, k, queue)), t).item()
    assert found == pytest.approx(total / N, rel=1e-12)


def test_byols_loss_is_the_squared_distance_of_unit_vectors():
    p, t = rows(0), rows(1)
    expected = np.square(unit(p.numpy()) - unit(t.numpy())).sum(1).mean()
    assert regression(p, t).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_sinkhorn_scales_prototypes_and_images_in_turn(iterations):
    """main_swav.py's order: the whole to 1, prototypes to 1/K, images to 1/B, and B times in the end."""
    scores, eps = np.tanh(rows(0, 12, 4).numpy()), 0.25
    q = np.exp(scores / eps).T
    q /= q.sum()
    for _ in range(iterations):
        for k in range(4):
            q[k] /= q[k].sum() * 4
        for b in range(12):
            q[:, b] /= q[:, b].sum() * 12
    found = sinkhorn(torch.from_numpy(scores), eps, iterations).numpy()
    np.testing.assert_allclose(found, q.T * 12, rtol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    if iterations == 200:  # balanced
        np.testing.assert_allclose(found.sum(0), 12 / 4, rtol=1e-6)


def outputs_of(method, *z, together=False):
    """The method's loss of these outputs of its projector, whatever the images."""
    fixed = iter([torch.cat(z)] if together else z)
    method.backbone = torch.nn.Identity()
    method.projector = torch.nn.Module()
    method.projector.forward = lambda x: next(fixed)
    return method([torch.zeros(1) for _ in z], torch.zeros(1))[0].item()


def test_barlow_twins_loss_is_the_papers_equation_1():
    method = build_method(config_of("barlow_twins", dim=D), 10, 100).double()
    a, b = ((z := rows(s).numpy()) - z.mean(0) for s in (0, 1))
    a, b = (x / np.sqrt(x.var(0) + 1e-5) for x in (a, b))
    total = 0.0
    for i in range(D):
        for j in range(D):
            c = sum(a[n, i] * b[n, j] for n in range(N)) / N
            total += (1 - c) ** 2 if i == j else 0.0051 * c**2
    assert outputs_of(method, rows(0), rows(1)) == pytest.approx(total, rel=1e-9)


def test_vicreg_loss_is_the_papers_equation_6():
    options = {"invariance": 3.0, "variance": 5.0, "covariance": 7.0}
    method = build_method(config_of("vicreg", dim=D, options=options), 10, 100).double()
    a, b = (0.5 * rows(s) for s in (0, 1))
    total = 3 * np.square((a - b).numpy()).mean()
    for z in (a.numpy(), b.numpy()):
        cov = np.cov(z.T)
        std = np.sqrt(np.diag(cov) + 1e-4)
        total += 5 * np.maximum(0, 1 - std).mean() / 2  # half of each view, as the official code
        total += 7 * (np.square(cov).sum() - np.square(np.diag(cov)).sum()) / D
    assert outputs_of(method, a, b) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("small", [0, 1, 6])
def test_swavs_views_predict_the_codes_of_the_first_two(small):
    """main_swav.py's loop: the mean over the two targets of the mean over all views but the target."""
    options = {"prototypes": 7, "epsilon": 0.5, "frozen_steps": 0}
    method = build_method(config_of("swav", dim=D, options=options), 10, 100).double()
    c = method.prototypes.weight.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1, rtol=1e-6)
    outputs = [rows(s) for s in range(2 + small)]
    scores = [unit(z.numpy()) @ c.T for z in outputs]
    expected = 0.0
    for target in (0, 1):
        code = sinkhorn(torch.from_numpy(scores[target]), 0.5, 3).numpy()
        of_target = []
        for view, s in enumerate(scores):
            if view != target:
                log = s / 0.1 - np.log(np.exp(s / 0.1).sum(1, keepdims=True))
                of_target.append(-(code * log).sum() / N)
        expected += sum(of_target) / (1 + small) / 2
    assert outputs_of(method, *outputs, together=True) == pytest.approx(expected, rel=1e-9)


def test_views_pass_together_as_one_batch_to_the_norms():
    """The backbone's statistics are of all views of one size, the projector's of all views."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    ).double()
    projector = torch.nn.BatchNorm1d(12).double()
    large, small = views(0, 4), [view[..., :16, :16] ** 2 for view in views(1, 4)]
    found = together(backbone, projector, [*large, *small])
    features = []
    for pair in (large, small):
        x = torch.cat(pair).numpy()
        x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        half = x.shape[-1] // 2
        features.append(x.reshape(8, 3, 2, half, 2, half).mean((3, 5)).reshape(8, 12))
    features = np.concatenate(features)
    expected = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
    assert found.shape == (4, 4, 12)
    np.testing.assert_allclose(
        found.flatten(0, 1).detach().numpy(), expected, rtol=1e-9, atol=1e-12
    )


def test_swavs_prototypes_are_frozen_then_move_and_stay_unit_vectors():
    config = config_of("swav")
    method = build_method(config, 10, 100).double()
    seen = []
    steps(method, config, 4, lambda step: seen.append(method.prototypes.weight.detach().clone()))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-15)
    assert (seen[2] - seen[1]).abs().max() > 1e-6
    torch.testing.assert_close(seen[3].norm(dim=1), torch.ones(20).double())


@pytest.mark.parametrize("name", ["mocov2", "byol"])
def test_the_momentum_encoder_is_the_average_that_it_says(name):
    config = config_of(name)
    method = build_method(config, 10, 100).double()
    follower = {"mocov2": "key_", "byol": "target_"}[name]
    parts = [(getattr(method, follower + p), getattr(method, p)) for p in ("backbone", "projector")]
    expected = [p.detach().clone() for f, _ in parts for p in f.parameters()]
    if name == "mocov2":  # starts as the query encoder; BYOL's target does not
        assert all(map(torch.equal, expected, (p for _, m in parts for p in m.parameters())))
    else:
        assert not all(map(torch.equal, expected, (p for _, m in parts for p in m.parameters())))

    def check(step: int) -> None:
        m = 0.9 if name == "mocov2" else 1 - 0.1 * (math.cos(math.pi * step / 3) + 1) / 2
        leaders = [p.detach() for _, lead in parts for p in lead.parameters()]
        for mine, leader in zip(expected, leaders, strict=True):
            mine.copy_(m * mine + (1 - m) * leader)
        followers = [p for f, _ in parts for p in f.parameters()]
        for mine, found in zip(expected, followers, strict=True):
            torch.testing.assert_close(mine, found, rtol=1e-10, atol=1e-12)
        assert not any(p.requires_grad for p in followers)

    steps(method, config, 3, check)


@pytest.mark.parametrize("symmetric", [False, True])
def test_mocos_queue_holds_the_last_keys(symmetric):
    config = config_of("mocov2", symmetric=symmetric)
    method = build_method(config, 10, 100).double()
    start, kept = method.queue.clone(), []
    keys = method.keys
    method.keys = lambda images: kept.append(keys(images)) or kept[-1]
    steps(method, config, 5)
    fresh = torch.cat(kept)  # 5 steps of 8 or 16 keys into 48 places
    expected = start.clone()
    for number, key in enumerate(fresh):
        expected[number % 48] = key
    torch.testing.assert_close(method.queue, expected, rtol=0, atol=0)


def test_mocos_keys_come_back_in_order_and_their_shuffle_says_nothing_of_their_queries():
    config = config_of("mocov2")
    method = build_method(config, 10, 100).double()
    for encoder in (method.backbone, method.key_backbone):  # of two parts, 8 images
        norms = [
            m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)
        ]
        assert {(type(m), m.groups) for m in norms} == {(SplitBatchNorm, 2)}
    images = views(0)[0]
    order = method.shuffle(BATCH, images.device)[0].numpy()
    method.train()
    found = method.keys(images)
    shuffled = images[torch.from_numpy(order)]
    plain = build_resnet(config.arch).double()
    plain.load_state_dict(method.key_backbone.state_dict())
    expected = torch.empty_like(found)
    for part in (
        slice(0, 4),
        slice(4, 8),
    ):  # an ordinary batch norm on each part of the shuffled batch
        plain.train()
        z = F.normalize(method.key_projector(plain(shuffled[part])), dim=1)
        expected[torch.from_numpy(order[part])] = z
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    # Image i is in part i // 4 as a query. Over many steps and their passes its key is in either part
    # equally often, together with ever other images.
    shared, seen = np.zeros((BATCH, BATCH)), set()
    for step in range(300):
        method.before_step(step)
        for passes in range(2):
            method._fresh = [torch.empty(0)] * passes
            order, back = method.shuffle(BATCH, images.device).numpy()
            assert (order[back] == np.arange(BATCH)).all()
            seen.add(tuple(order))
            part = back // 4
            shared += part[:, None] == np.arange(BATCH)[None] // 4
    assert np.abs(shared / 600 - 0.5).max() < 0.1
    assert len(seen) > 580
    method.eval()
    with torch.no_grad():
        z = F.normalize(method.key_projector(method.key_backbone(images)), dim=1)
    torch.testing.assert_close(method.keys(images), z, rtol=1e-9, atol=1e-10)


def linear(method, *names):
    """Fixed linear maps instead of the networks; their weights (D, 9) by the projectors' names."""
    weights = {}
    for number, name in enumerate(names):
        setattr(method, name.replace("projector", "backbone"), torch.nn.Flatten())
        layer = torch.nn.Linear(9, D, bias=False).double()
        layer.weight.data = rows(100 + number, D, 9)
        setattr(method, name, layer)
        weights[name] = layer.weight.detach().numpy()
    return weights


def pictures(seed: int, count: int = 2) -> list[torch.Tensor]:
    return [rows(10 * seed + view, BATCH, 9).view(BATCH, 1, 3, 3) for view in range(count)]


def flat(images: torch.Tensor) -> np.ndarray:
    return images.flatten(1).numpy()


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_compares_a_view_with_the_key_of_the_other(symmetric):
    method = build_method(config_of("mocov2", dim=D, symmetric=symmetric), 10, 100).double()
    w = linear(method, "projector", "key_projector")
    images, queue = pictures(0), method.queue.numpy()
    losses = []
    for query, key in [(0, 1), (1, 0)] if symmetric else [(0, 1)]:
        q = unit(flat(images[query]) @ w["projector"].T)
        k = unit(flat(images[key]) @ w["key_projector"].T)
        for i in range(BATCH):
            logits = np.array([q[i] @ k[i], *(q[i] @ n for n in queue)]) / 0.2
            losses.append(np.log(np.exp(logits).sum()) - logits[0])
    loss, shown = method(images, torch.zeros(BATCH))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-9)
    np.testing.assert_allclose(shown, unit(flat(images[0]) @ w["projector"].T), rtol=1e-9)


def test_byol_predicts_the_targets_of_the_other_view():
    method = build_method(config_of("byol", dim=D), 10, 100).double()
    w = linear(method, "projector", "target_projector")
    method.predictor = torch.nn.Linear(D, D, bias=False).double()
    h = method.predictor.weight.detach().numpy()
    images = pictures(0)
    total = 0.0
    for online, target in [(0, 1), (1, 0)]:
        p = unit(flat(images[online]) @ w["projector"].T @ h.T)
        t = unit(flat(images[target]) @ w["target_projector"].T)
        total += np.square(p - t).sum(1).mean()
    assert method(images, torch.zeros(BATCH))[0].item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_swavs_queue_takes_part_when_it_is_full_and_old_enough(weight_norm):
    """Seven steps of two views and a smaller one, by lists; codes of a view see its own queue."""
    options = {"prototypes": 7, "epsilon": 0.5, "queue": 3 * BATCH, "queue_from": 4}
    options |= {"weight_norm": weight_norm, "frozen_steps": 99}
    method = build_method(config_of("swav", dim=D, options=options), 10, 100).double()
    w = linear(method, "projector")["projector"]
    if weight_norm:
        method.prototypes.weight.data *= 3  # its length is of no account
    queues: list[list[np.ndarray]] = [[], []]
    for step in range(7):
        images = pictures(step, 3)
        c = unit(method.prototypes.weight.detach().numpy())
        z = [unit(flat(x) @ w.T) for x in images]
        expected = 0.0
        for target in (0, 1):
            with_queue = z[target]
            if step >= 4:  # full after 3 steps
                with_queue = np.concatenate([z[target], *queues[target][-3:]])
            code = sinkhorn(torch.from_numpy(with_queue @ c.T), 0.5, 3).numpy()[:BATCH]
            for view in {0, 1, 2} - {target}:
                s = z[view] @ c.T / 0.1
                log = s - np.log(np.exp(s).sum(1, keepdims=True))
                expected += -(code * log).sum() / BATCH / 4
        method.before_step(step)
        loss, _ = method(images, torch.zeros(BATCH))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        method.after_update(step + 1, 7)
        for view in (0, 1):
            queues[view].append(z[view])
    length = method.prototypes.weight.detach().norm(dim=1)
    assert (length.mean() > 1.1) == weight_norm  # with it, only the gradient sees unit length
    found = {tuple(row) for row in method.queue[1].numpy().round(6)}
    assert found == {tuple(row) for row in np.concatenate(queues[1][-3:]).round(6)}


@pytest.mark.parametrize("name", ["mocov2", "swav", "moving_average"])
def test_what_is_kept_of_a_step_in_parts_is_of_all_parts(name):
    method = build_method(config_of(name), 10, 100).double()
    for part in (0, 1):
        arguments = (views(part), torch.zeros(BATCH), torch.arange(BATCH) + part * BATCH)
        method(*arguments[: 3 if method.per_image else 2])
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.after_update(1, 10)
    kept = {"mocov2": "queue", "swav": "queue", "moving_average": "averages"}[name]
    changed = (method.state_dict()[kept] != before[kept]).any(-1)
    places = {"mocov2": 4 * BATCH, "swav": 2 * 2 * BATCH, "moving_average": 2 * BATCH}[name]
    assert int(changed.sum()) == places


def in_bf16(method, given, enabled: bool):
    """Loss and gradients of fixed outputs of the networks."""
    outputs = [x.clone().requires_grad_() for x in given]
    arguments = (outputs, torch.zeros(N, dtype=torch.long), torch.arange(N))
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        loss, _ = method(*arguments[: 3 if method.per_image else 2])
    loss.backward()
    return [loss, *(x.grad for x in outputs if x.grad is not None)]


@pytest.mark.parametrize("name", [*SMALL, "simsiam"])
def test_losses_are_float32_under_autocast(name):
    """Cosines close to 1, which bfloat16 takes to 1; autocast takes products of matrices there."""
    config = replace(config_of("alternating", options={}), method=name)
    config = config_of(name) if name in SMALL else config
    method = build_method(config, 10, 100)
    for child in [name for name, _ in method.named_children()]:
        if child not in ("prototypes", "norm"):
            setattr(method, child, torch.nn.Identity())
    method.keys = lambda images: F.normalize(images.detach(), dim=1)
    base = rows(0, N, 16).float()
    given = [base + 0.05 * rows(seed, N, 16).float() for seed in (1, 2)]
    for found, expected in zip(
        in_bf16(method, given, True), in_bf16(method, given, False), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert in_bf16(method, [x.bfloat16() for x in given], True)[0].dtype == torch.float32


@pytest.mark.parametrize("name", [*SMALL, "simsiam"])
def test_every_head_setting_that_a_method_reads_changes_it(name):
    other = {
        **{"dim": 12, "hidden_dim": 20, "pred_dim": 6, "fix_pred_lr": True, "predictor": "fixed"},
        **{"mlp_bn": "all", "stop_gradient": False, "symmetric": False},
        "similarity": "cross_entropy",
    }
    plain = {"dim": 16, "hidden_dim": 24, "pred_dim": 8, "predictor": "mlp"}
    options = SMALL.get(name, {}).get("options", {})
    plain = {k: v for k, v in plain.items() if k in methods()[name].uses}
    base = replace(PretrainConfig(data=""), method=name, **plain, options=options)
    base = replace(base, arch="resnet10-w8", batch_size=BATCH)

    def made(config):
        torch.manual_seed(0)
        method = build_method(config, 10, 100).double()
        if name == "moving_average":
            method.averages += rows(3, 100, config.dim)
        arguments = (views(0), torch.zeros(BATCH), torch.arange(BATCH))
        loss, _ = method(*arguments[: 3 if method.per_image else 2])
        loss.backward()
        grads = [p.grad is not None and p.grad.sum().item() for p in method.parameters()]
        groups = [(len(g["params"]), g["fix_lr"]) for g in method.param_groups()]
        shapes = [p.shape for p in method.parameters()]
        return shapes, groups, loss.item(), grads

    assert made(base) == made(base)
    for setting in methods()[name].uses:
        assert made(base) != made(replace(base, **{setting: other[setting]})), setting


# Layers of the in1k presets' heads, by the papers and codes that the presets name.
HEADS = {
    "in1k-simclr-100e": {"projector": [(2048, 2048), (2048, 2048), (128, 2048)]},
    "in1k-simclr-1000e": {"projector": [(2048, 2048), (128, 2048)]},
    "in1k-simclr-100e-3layer": {"projector": [(2048, 2048), (2048, 2048), (128, 2048)]},
    "in1k-mocov2-200e": {"projector": [(2048, 2048), (128, 2048)]},
    "in1k-byol-1000e": {
        "projector": [(4096, 2048), (256, 4096)],
        "predictor": [(4096, 256), (256, 4096)],
    },
    "in1k-swav-400e": {"projector": [(2048, 2048), (128, 2048)], "prototypes": [(3000, 128)]},
    "in1k-swav-100e-3layer": {"projector": [(2048, 2048), (2048, 2048), (128, 2048)]},
    "in1k-barlow-twins-1000e": {"projector": [(8192, 2048), (8192, 8192), (8192, 8192)]},
    "in1k-vicreg-100e": {"projector": [(8192, 2048), (8192, 8192), (8192, 8192)]},
}
NORMS = {"simclr": 1, "mocov2": -1}  # batch norms of a projector beyond those of hidden layers


@pytest.mark.parametrize("preset", HEADS)
def test_heads_have_the_layers_of_their_papers(preset):
    config = make_config(VERBS["pretrain"], {"preset": preset, "data": "x"})
    with torch.device("meta"):
        method = build_method(config, 1000, 1_281_167)
    for head, expected in HEADS[preset].items():
        part = getattr(method, head)
        layers = [m for m in part.modules() if isinstance(m, torch.nn.Linear)]
        assert [tuple(layer.weight.shape) for layer in layers] == expected
    norms = [m for m in method.projector if isinstance(m, torch.nn.BatchNorm1d)]
    hidden = len(HEADS[preset]["projector"]) - 1
    assert len(norms) == hidden + NORMS.get(config.method, 0)
    if config.method == "simclr":
        assert norms[-1].weight.requires_grad
        assert not norms[-1].bias.requires_grad


def test_split_batch_norm_is_an_ordinary_one_on_each_part():
    torch.manual_seed(0)
    split, x = torch.nn.BatchNorm2d(3), torch.randn(8, 3, 5, 5, requires_grad=True)
    ordinary = [torch.nn.BatchNorm2d(3) for _ in range(4)]
    split_batchnorm(split, 4, 8)
    assert isinstance(split, SplitBatchNorm)
    expected = torch.cat([norm(part) for norm, part in zip(ordinary, x.chunk(4), strict=True)])
    torch.testing.assert_close(split(x), expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in ordinary]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(split))
    assert converted[0] is split
    with pytest.raises(UserError, match="bn_groups is 3"):
        split_batchnorm(torch.nn.BatchNorm2d(3), 3, 8)


def test_alternating_with_one_step_is_simsiam_and_with_two_keeps_its_targets():
    config = config_of("alternating", options={"steps": 1})
    torch.manual_seed(0)
    simsiam = build_method(replace(config, method="simsiam", options={}), 10, 100).double()
    torch.manual_seed(0)
    alternating = build_method(config, 10, 100).double()
    for method in (simsiam, alternating):
        method.train()
    assert steps(simsiam, config, 4) == pytest.approx(steps(alternating, config, 4), rel=1e-12)
    for name, weight in simsiam.state_dict().items():
        torch.testing.assert_close(weight, alternating.state_dict()[name], rtol=1e-9, atol=1e-12)

    config = config_of("alternating", options={"steps": 2})
    method = build_method(config, 10, 100).double()
    kept = [[p.detach().clone() for p in method.backbone.parameters()]]

    def check(step: int) -> None:
        if step % 2:
            kept.append([p.detach().clone() for p in method.backbone.parameters()])
        assert all(map(torch.equal, kept[-1], method.kept_backbone.parameters()))

    steps(method, config, 5, check)
    assert build_method(config_of("alternating", options={"steps": 0}), 10, 100).interval == 12


def test_the_moving_average_is_that_of_each_image():
    config = config_of("moving_average")
    method = build_method(config, 10, 100).double()
    method.averages = method.averages.double()
    known: dict[int, torch.Tensor] = {}
    outputs, expected = [], []
    encode = method.encode
    method.encode = lambda x: outputs.append(encode(x)) or outputs[-1]

    def check(step: int) -> None:
        o1, o2 = (F.normalize(z.detach(), dim=1) for z in outputs[-2:])
        cosines = []
        for row in range(BATCH):
            image, new = row + step, (o1[row] + o2[row]) / 2
            for own, other in ((o1[row], o2[row]), (o2[row], o1[row])):
                target = 0.8 * known[image] + 0.2 * other if image in known else other
                cosines.append(F.cosine_similarity(own, target, dim=0).item())
            known[image] = 0.8 * known[image] + 0.2 * new if image in known else new
        for image, average in known.items():
            torch.testing.assert_close(method.averages[image], average)
        assert int(method.averages.any(1).sum()) == len(known)
        expected.append(-np.mean(cosines))

    losses = steps(method, config, 3, check)
    assert losses == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("exclude_1d", [False, True])
def test_lars_scales_each_layer(exclude_1d):
    config = config_of("simclr", optimizer="lars", weight_decay=0.1, exclude_1d=exclude_1d)
    method = build_method(config, 10, 100).double()
    optimizer = build_optimizer(method, config, 0.5)
    params = {k: p for k, p in method.named_parameters() if p.requires_grad}
    expected = {k: p.detach().numpy().copy() for k, p in params.items()}
    momenta = {k: np.zeros_like(w) for k, w in expected.items()}
    for turn in range(3):
        for number, p in enumerate(params.values()):
            p.grad = torch.from_numpy(np.random.default_rng([turn, number]).normal(size=p.shape))
        for name, p in params.items():
            g, w = p.grad.numpy().copy(), expected[name]
            if not (exclude_1d and w.ndim == 1):
                g = g + 0.1 * w
                norm = np.linalg.norm(w)
                g = g * (0.001 * norm / np.linalg.norm(g) if norm > 0 else 1)
            momenta[name] = 0.9 * momenta[name] + g
            expected[name] = w - 0.5 * momenta[name]
        optimizer.step()
    for name, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=1e-9, atol=1e-12)


def test_rates_of_the_relatives_schedules():
    """Barlow Twins' main.py: 10 epochs of warm-up, a cosine per step to a thousandth, biases apart."""
    config = config_of(
        "barlow_twins",
        options={"bias_rate": 0.024},
        optimizer="lars",
        exclude_1d=True,
        warmup_epochs=10,
        epochs=100,
        cosine="step",
        final_lr=0.001,
    )
    method = build_method(config, 10, 100)
    assert isinstance(method, BarlowTwins)
    optimizer = build_optimizer(method, config, 1.6)
    weights, rest = optimizer.param_groups
    assert {p.ndim for p in rest["params"]} == {1}
    for epoch, step in [(10, 0), (10, 3), (55, 2), (99, 4)]:
        set_lr(optimizer, 1.6, epoch, step, 5, config)
        q = 0.5 * (1 + math.cos(math.pi * ((epoch - 10) * 5 + step) / (90 * 5)))
        assert weights["lr"] == pytest.approx(1.6 * (q + 0.001 * (1 - q)))
        assert rest["lr"] == pytest.approx(0.024 * weights["lr"])
    set_lr(optimizer, 1.6, 0, 0, 5, replace(config, warmup_start=0.0625))
    assert weights["lr"] == pytest.approx(1.6 * (0.0625 + 0.9375 / 50))


def test_milestones_are_torchs_multi_step_schedule():
    settings = {"epochs": 9, "milestones": [3, 6], "method": "supervised", "warmup_epochs": 2}
    config = replace(config_of("simclr"), **settings, dim=2048, hidden_dim=0)
    method = build_method(config, 10, 100)
    optimizer = build_optimizer(method, config, 0.4)
    theirs = torch.optim.SGD(method.parameters(), 0.4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(theirs, config.milestones)
    for epoch in range(9):
        set_lr(optimizer, 0.4, epoch, 4, 5, config)  # the last of five steps
        expected = theirs.param_groups[0]["lr"] * min((epoch + 1) / 2, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        schedule.step()
    with pytest.raises(UserError, match=r"--final_lr is 0\.1; it must be 0 with --milestones"):
        check_config(replace(config, final_lr=0.1))


def run_of(name, config):
    options = {**SMALL[name].get("options", {})}
    options |= {k: v // BATCH * 20 for k, v in options.items() if k == "queue"}
    changes = {"dim": 16, "pred_dim": 512, **SMALL[name], "options": options}
    return replace(config, method=name, epochs=2, knn_every=0, **changes)


@pytest.mark.parametrize("name", SMALL)
def test_killed_it_goes_on_bit_for_bit_and_leaves_a_backbone(name, config, tmp_path, monkeypatch):
    """Queue, prototypes, averages and momentum encoder included; the optimiser is LARS."""
    config = replace(run_of(name, config), optimizer="lars", exclude_1d=True, checkpoint_every=3)
    whole = run(replace(config, out=str(tmp_path / "whole")))
    one_step, left = pretrain.loop.gradients, [4 + 3]

    def killed(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return one_step(*arguments)

    for _ in range(2):  # in step 7 (checkpoint 6), then a step after going on
        monkeypatch.setattr(pretrain.loop, "gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
        left[0] = 2
    monkeypatch.undo()
    path = run(config)
    assert identical(path, whole)
    state = torch.load(path, weights_only=True)
    assert state["method"] == methods()[name].label
    own = {k: v for k, v in state["state_dict"].items() if k.startswith("backbone.")}
    net = build_resnet(config.arch)
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in own.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "simclrr"}, "there is no 'simclrr'; is simclr meant?"),
        ({"options": {"temprature": 1.0}}, "is temperature meant?"),
        (
            {"options": {"temperature": "warm"}},
            "--options.temperature is 'warm'; it must be of type",
        ),
        ({"options": {"layers": 2.5}}, "must be of type int"),
        ({"stop_gradient": False}, "--stop_gradient is of no use to --method simclr"),
        ({"method": "alternating", "symmetric": False}, "--symmetric is of no use to"),
        ({"options": {"temperature": 0.0}}, "--options.temperature is 0.0; it must be above 0"),
        ({"options": {"temperature": math.nan}}, "--options.temperature is nan"),
        ({"options": {"layers": 0}}, "--options.layers is 0; it must be at least 1"),
        ({"method": "swav", "options": {"iterations": 0}}, "must be at least 1"),
        ({"method": "swav", "options": {"epsilon": 0.0}}, "must be above 0 and finite"),
        ({"method": "swav", "options": {"queue": -8}}, "must be at least 0"),
        (
            {"method": "mocov2", "options": {"queue": 0}},
            "--options.queue is 0; it must be at least 1",
        ),
        ({"method": "mocov2", "options": {"bn_groups": 0}}, "must be at least 1"),
        ({"method": "byol", "options": {"momentum": 1.5}}, "it must be 0 to 1"),
        ({"method": "vicreg", "options": {"variance": math.inf}}, "is inf; it must be at least 0"),
        ({"augment": AugmentConfig(small_views=6)}, "--method simclr takes 2 views"),
        ({"method": "supervised", "dim": 2048, "hidden_dim": 0}, None),
        ({"method": "swav", "options": {"queue": 9}}, "must be a multiple of --batch_size 8"),
        ({"method": "mocov2", "options": {"queue": 24}}, "must be a multiple of 16"),
        ({"method": "mocov2", "options": {"bn_groups": 5}}, "--options.bn_groups is 5"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    config = replace(config_of("simclr"), **changes)
    if message is None:
        build_method(config, 10, 100)
        return
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        build_method(config, 10, 100)


TOY = """
from pretrain.methods.method import Method
from siambench.resnet import build_resnet


class Toy(Method):
    label = "Toy"

    def __init__(self, config, classes, images):
        super().__init__(config, classes, images)
        self.backbone = build_resnet(config.arch)

    def forward(self, views, labels):
        a, b = (self.backbone(view) for view in views)
        return (a - b).square().mean(), a.detach()
"""


def test_a_method_is_one_file(config, tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(pretrain.methods, "__path__", [*pretrain.methods.__path__, str(tmp_path)])
    methods.cache_clear()
    try:
        path = run(replace(config, method="toy", dim=2048, pred_dim=512, epochs=1, knn_every=0))
    finally:
        methods.cache_clear()
    assert torch.load(path, weights_only=True)["method"] == "Toy"
