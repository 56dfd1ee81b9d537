"""One SimSiam step against the published equations in plain tensor operations."""

import numpy as np
import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.loop import set_lr
from pretrain.methods import build_method
from pretrain.methods.simsiam import SimSiam, negative_cosine
from pretrain.monitors import output_std
from siambench.resnet import build_resnet

CONFIG = PretrainConfig(data="", arch="resnet10-w16", dim=32, pred_dim=8, weight_decay=1e-2)


def _bn(x, weight=None, bias=None):
    """Batch normalisation with batch statistics, from its definition."""
    y = (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)
    return y if weight is None else y * weight + bias


def _projector(h, s):
    for i in (0, 3):
        h = _bn(
            h @ s[f"projector.{i}.weight"].T,
            s[f"projector.{i + 1}.weight"],
            s[f"projector.{i + 1}.bias"],
        )
        h = h.clamp(min=0)
    return _bn(h @ s["projector.6.weight"].T)


def _predictor(z, s):
    h = _bn(z @ s["predictor.0.weight"].T, s["predictor.1.weight"], s["predictor.1.bias"])
    return h.clamp(min=0) @ s["predictor.3.weight"].T + s["predictor.3.bias"]


def _cosine(p, z):
    return (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))


def test_a_step_equals_the_published_equations():
    torch.manual_seed(0)
    method = build_method(CONFIG, 10).double()
    images = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64)
    start = {k: v.clone() for k, v in method.state_dict().items()}

    # The reference: Algorithm 1 with stop-gradient, then SGD with weight decay on every parameter.
    s = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in start.items()}
    net = build_resnet(CONFIG.arch, zero_init_residual=True).double()
    names = [k for k in start if k.startswith("backbone.")]
    h = [
        torch.func.functional_call(
            net,
            {
                k[9:]: s[k] if "running" not in k and "num" not in k else start[k].clone()
                for k in names
            },
            (x,),
        )
        for x in images
    ]
    z = [_projector(x, s) for x in h]
    p = [_predictor(x, s) for x in z]
    loss = -(_cosine(p[0], z[1].detach()).mean() + _cosine(p[1], z[0].detach()).mean()) / 2
    loss.backward()

    ours, z1 = method([images[0], images[1]], torch.zeros(8))
    optimizer = torch.optim.SGD(method.param_groups(), 0.1, momentum=0.9, weight_decay=1e-2)
    ours.backward()
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(z1, z[0].detach())
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, s[name].grad, atol=1e-10, rtol=1e-7, msg=name)
    optimizer.step()
    for name, parameter in method.named_parameters():
        expected = start[name] - 0.1 * (s[name].grad + 1e-2 * start[name])
        torch.testing.assert_close(parameter.data, expected, atol=1e-10, rtol=1e-7, msg=name)


def test_each_view_has_its_own_batch_statistics():
    torch.manual_seed(0)
    method = build_method(CONFIG, 10)
    a, b = torch.randn(2, 8, 3, 32, 32)
    method([a, b + 3], torch.zeros(8))
    running = method.backbone.bn1.running_mean.clone()
    torch.manual_seed(0)
    net = build_resnet(CONFIG.arch, zero_init_residual=True)
    with torch.no_grad():
        net(a)
        net(b + 3)
    torch.testing.assert_close(running, net.bn1.running_mean)


def test_no_gradient_through_the_target():
    p, z = torch.randn(2, 4, 8, requires_grad=True)
    p, z = p.detach().requires_grad_(), z.detach().requires_grad_()
    negative_cosine(p, z).backward()
    assert p.grad is not None
    assert z.grad is None


def test_shapes_are_the_papers():
    with torch.device("meta"):
        method = SimSiam(PretrainConfig(data=""), 1000)
    shapes = {
        k: tuple(v.shape) for k, v in method.named_parameters() if not k.startswith("backbone")
    }
    assert shapes == {
        "projector.0.weight": (2048, 2048),
        "projector.1.weight": (2048,),
        "projector.1.bias": (2048,),
        "projector.3.weight": (2048, 2048),
        "projector.4.weight": (2048,),
        "projector.4.bias": (2048,),
        "projector.6.weight": (2048, 2048),
        "predictor.0.weight": (512, 2048),
        "predictor.1.weight": (512,),
        "predictor.1.bias": (512,),
        "predictor.3.weight": (2048, 512),
        "predictor.3.bias": (2048,),
    }


def test_std_monitor():
    gaussian = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))
    assert output_std(gaussian).item() == pytest.approx(64**-0.5, rel=0.01)
    assert output_std(torch.ones(100, 64)).item() == pytest.approx(0, abs=1e-6)


def test_learning_rates_follow_the_official_schedule():
    config = PretrainConfig(
        data="", arch="resnet10-w16", dim=32, pred_dim=8, epochs=10, fix_pred_lr=True
    )
    optimizer = torch.optim.SGD(build_method(config, 10).param_groups(), 0.1)
    rates = []
    for epoch in range(10):
        for step in (0, 4):
            set_lr(optimizer, 0.1, epoch, step, 5, config)
            rates.append([g["lr"] for g in optimizer.param_groups])
    encoder = [0.1 * 0.5 * (1 + np.cos(np.pi * e / 10)) for e in range(10) for _ in range(2)]
    np.testing.assert_allclose([r[0] for r in rates], encoder)
    assert {r[1] for r in rates} == {0.1}


def test_warm_up_is_linear_then_cosine_and_for_a_fixed_rate_too():
    config = PretrainConfig(
        data="",
        arch="resnet10-w16",
        dim=32,
        pred_dim=8,
        epochs=6,
        warmup_epochs=2,
        fix_pred_lr=True,
    )
    optimizer = torch.optim.SGD(build_method(config, 10).param_groups(), 1.0)
    rates, fixed = [], []
    for epoch in range(6):
        for step in range(2):
            set_lr(optimizer, 1.0, epoch, step, 2, config)
            rates.append(optimizer.param_groups[0]["lr"])
            fixed.append(optimizer.param_groups[1]["lr"])
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:6] == [1.0, 1.0]
    assert rates[-1] == pytest.approx(0.5 * (1 + np.cos(np.pi * 3 / 4)))
    assert fixed == [0.25, 0.5, 0.75, 1.0] + [1.0] * 8


def test_supervised_loss_is_cross_entropy():
    torch.manual_seed(0)
    config = PretrainConfig(data="", method="supervised", arch="resnet10-w16")
    method = build_method(config, 7).eval()
    x, y = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 6])
    with torch.no_grad():
        loss, z = method([x], y)
        logits = method.backbone(x) @ method.head.weight.T + method.head.bias
        expected = (
            -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[torch.arange(5), y].mean()
        )
    assert z is None
    torch.testing.assert_close(loss, expected)
