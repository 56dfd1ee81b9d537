"""One SimSiam step, whatever the switches, against the published equations in plain tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.loop import set_lr
from pretrain.methods import build_method
from pretrain.methods.simsiam import SimSiam
from pretrain.monitors import output_std
from siambench.resnet import build_resnet

CONFIG = PretrainConfig(data="", arch="resnet10-w8", dim=32, pred_dim=8)
LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-2
CLOSE = {"atol": 1e-10, "rtol": 1e-7}
CONV_STATS = ("running_mean", "running_var", "num_batches_tracked")


class Restated:
    """Algorithm 1 in tensor operations on a state dict (float64); only the ResNet is a module.

    Attributes:
        tensors: name to parameter (with a gradient) or buffer, under the method's names.
    """

    def __init__(self, config, state):
        self.config = config
        self.net = build_resnet(config.arch).double()
        self.tensors = {
            k: v.clone() if k.endswith(CONV_STATS) else v.clone().requires_grad_()
            for k, v in state.items()
        }

    def norm(self, x, name):
        """Batch normalisation from its definition; the running statistics with momentum 0.1."""
        t, n = self.tensors, len(x)
        mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        t[f"{name}.running_mean"] = 0.9 * t[f"{name}.running_mean"] + 0.1 * mean.detach()
        t[f"{name}.running_var"] = 0.9 * t[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
        t[f"{name}.num_batches_tracked"] = t[f"{name}.num_batches_tracked"] + 1
        y = (x - mean) / torch.sqrt(var + 1e-5)
        if f"{name}.weight" in t:
            y = y * t[f"{name}.weight"] + t[f"{name}.bias"]
        return y

    def mlp(self, x, head, layers, hidden_bn, output_bn):
        """fc, (BN), ReLU, ..., fc, (BN), numbered as they come."""
        number = 0
        for layer in range(layers):
            hidden = layer + 1 < layers
            x = x @ self.tensors[f"{head}.{number}.weight"].T
            number += 1
            if hidden_bn if hidden else output_bn:
                x = self.norm(x, f"{head}.{number}")
                number += 1
            else:
                x = x + self.tensors[f"{head}.{number - 1}.bias"]
            if hidden:
                x = torch.where(x > 0, x, 0.0)
                number += 1
        return x

    def z(self, x):
        prefix = "backbone."
        state = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        h = torch.func.functional_call(self.net, state, (x,))  # writes into the running statistics
        bn = self.config.mlp_bn
        return self.mlp(h, "projector", 3, bn != "none", bn in ("default", "all"))

    def p(self, z):
        if self.config.predictor == "none":
            return z
        return self.mlp(
            z, "predictor", 2, self.config.mlp_bn != "none", self.config.mlp_bn == "all"
        )

    def distance(self, p, z):
        if self.config.stop_gradient:
            z = z.detach()
        if self.config.similarity == "cross_entropy":
            q, r = z.exp() / z.exp().sum(1, keepdim=True), p.exp() / p.exp().sum(1, keepdim=True)
            return -(q * r.log()).sum(1).mean()
        return -((p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))).mean()

    def loss(self, x1, x2):
        z1, z2 = self.z(x1), self.z(x2)
        p1 = self.p(z1)
        if not self.config.symmetric:
            return self.distance(p1, z2), z1
        p2 = self.p(z2)
        return (self.distance(p1, z2) + self.distance(p2, z1)) / 2, z1


SWITCHES = {
    "default": {},
    "no stop-gradient": {"stop_gradient": False},
    "no predictor": {"predictor": "none"},
    "no predictor, no stop-gradient": {"predictor": "none", "stop_gradient": False},
    "fixed predictor": {"predictor": "fixed"},
    "bn none": {"mlp_bn": "none"},
    "bn hidden": {"mlp_bn": "hidden"},
    "bn all": {"mlp_bn": "all"},
    "asymmetric": {"symmetric": False},
    "asymmetric, no stop-gradient": {"symmetric": False, "stop_gradient": False},
    "asymmetric, no predictor": {"symmetric": False, "predictor": "none"},
    "cross entropy": {"similarity": "cross_entropy"},
    "cross entropy, no stop-gradient": {"similarity": "cross_entropy", "stop_gradient": False},
    "fixed, bn all, asymmetric": {"predictor": "fixed", "mlp_bn": "all", "symmetric": False},
    "another size": {"dim": 24, "hidden_dim": 40, "pred_dim": 6},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_two_steps_equal_the_published_equations(switches):
    """Loss, output, every gradient, parameter, momentum and running statistic, step by step."""
    config = replace(CONFIG, **switches)
    torch.manual_seed(0)
    method = build_method(config, 10, 100).double()
    # what starts at zero or one would hide a missing term
    for parameter in method.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    optimizer = torch.optim.SGD(method.param_groups(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    ref = Restated(config, method.state_dict())
    velocity = {}
    for _ in range(2):
        x1, x2 = torch.randn(2, 6, 3, 32, 32, dtype=torch.float64)
        expected, z1 = ref.loss(x1, x2)
        expected.backward()
        loss, z = method([x1, x2], torch.zeros(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        torch.testing.assert_close(loss, expected, **CLOSE)
        torch.testing.assert_close(z, z1.detach(), **CLOSE)
        for name, parameter in method.named_parameters():
            theirs = ref.tensors[name]
            if name.startswith("predictor.") and config.predictor == "fixed":
                assert parameter.grad is None
                assert torch.equal(parameter, theirs)
                continue
            torch.testing.assert_close(parameter.grad, theirs.grad, **CLOSE, msg=name)
            step = theirs.grad + DECAY * theirs.detach()
            velocity[name] = MOMENTUM * velocity.get(name, torch.zeros_like(step)) + step
            ref.tensors[name] = (theirs.detach() - LR * velocity[name]).requires_grad_()
            torch.testing.assert_close(parameter, ref.tensors[name], **CLOSE, msg=name)
            momentum = optimizer.state[parameter]["momentum_buffer"]
            torch.testing.assert_close(momentum, velocity[name], **CLOSE, msg=name)
        assert dict(method.named_buffers()).keys() == {
            k for k in ref.tensors if k.endswith(CONV_STATS)
        }
        for name, buffer in method.named_buffers():
            torch.testing.assert_close(buffer, ref.tensors[name], **CLOSE, msg=name)


def test_each_view_has_its_own_batch_statistics():
    torch.manual_seed(0)
    method = build_method(CONFIG, 10, 100)
    a, b = torch.randn(2, 8, 3, 32, 32)
    method([a, b + 3], torch.zeros(8))
    running = method.backbone.bn1.running_mean.clone()
    torch.manual_seed(0)
    net = build_resnet(CONFIG.arch, zero_init_residual=True)
    with torch.no_grad():
        net(a)
        net(b + 3)
    torch.testing.assert_close(running, net.bn1.running_mean)
    assert method.backbone.bn1.num_batches_tracked == 2


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_gradient_through_the_target(symmetric):
    """Each loss reaches the pixels of the views that it predicts from, and no others."""
    method = build_method(replace(CONFIG, symmetric=symmetric), 10, 100)
    views = [torch.randn(4, 3, 32, 32, requires_grad=True) for _ in range(2)]
    method(views, torch.zeros(4))[0].backward()
    assert views[0].grad.abs().max() > 0
    assert (views[1].grad is not None) == symmetric


def test_a_view_that_needs_no_gradient_still_counts_in_the_running_statistics():
    method = build_method(replace(CONFIG, symmetric=False), 10, 100)
    method(list(torch.randn(2, 4, 3, 32, 32)), torch.zeros(4))
    assert method.projector[1].num_batches_tracked == 2
    assert method.predictor[1].num_batches_tracked == 1


def _head_shapes(**switches):
    with torch.device("meta"):
        method = SimSiam(PretrainConfig(data="", **switches), 1000, 100)
    return {k: tuple(v.shape) for k, v in method.named_parameters() if not k.startswith("backbone")}


def test_shapes_are_the_papers():
    assert _head_shapes() == {
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


@pytest.mark.parametrize(
    ("mlp_bn", "projector", "predictor"),
    [
        ("none", ["fc+b", "relu", "fc+b", "relu", "fc+b"], ["fc+b", "relu", "fc+b"]),
        ("hidden", ["fc", "bn", "relu", "fc", "bn", "relu", "fc+b"], ["fc", "bn", "relu", "fc+b"]),
        (
            "all",
            ["fc", "bn", "relu", "fc", "bn", "relu", "fc", "bn-affine"],
            ["fc", "bn", "relu", "fc", "bn"],
        ),
    ],
)
def test_batch_norm_stands_where_table_3_has_it(mlp_bn, projector, predictor):
    """A fc has a bias exactly where no batch norm follows it."""
    method = build_method(replace(CONFIG, mlp_bn=mlp_bn), 10, 100)

    def kinds(head):
        for module in head:
            if isinstance(module, torch.nn.Linear):
                yield "fc" if module.bias is None else "fc+b"
            elif isinstance(module, torch.nn.BatchNorm1d):
                yield "bn" if module.affine else "bn-affine"
            else:
                yield type(module).__name__.lower()

    assert list(kinds(method.projector)) == projector
    assert list(kinds(method.predictor)) == predictor


@pytest.mark.parametrize(
    ("switches", "groups"),
    [
        ({}, [False, False]),
        ({"fix_pred_lr": True}, [False, True]),
        ({"fix_pred_lr": True, "predictor": "none"}, [False]),
        ({"fix_pred_lr": True, "predictor": "fixed"}, [False]),
    ],
)
def test_only_a_trained_predictor_has_a_learning_rate_of_its_own(switches, groups):
    method = build_method(replace(CONFIG, **switches), 10, 100)
    assert [group["fix_lr"] for group in method.param_groups()] == groups
    given = [id(p) for group in method.param_groups() for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in method.parameters() if p.requires_grad)


def test_std_monitor():
    gaussian = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0))
    assert output_std(gaussian).item() == pytest.approx(64**-0.5, rel=0.01)
    assert output_std(torch.ones(100, 64)).item() == pytest.approx(0, abs=1e-6)


def test_learning_rates_follow_the_official_schedule():
    config = replace(CONFIG, epochs=10, fix_pred_lr=True)
    optimizer = torch.optim.SGD(build_method(config, 10, 100).param_groups(), 0.1)
    rates = []
    for epoch in range(10):
        for step in (0, 4):
            set_lr(optimizer, 0.1, epoch, step, 5, config)
            rates.append([g["lr"] for g in optimizer.param_groups])
    encoder = [0.1 * 0.5 * (1 + np.cos(np.pi * e / 10)) for e in range(10) for _ in range(2)]
    np.testing.assert_allclose([r[0] for r in rates], encoder)
    assert {r[1] for r in rates} == {0.1}


def test_warm_up_is_linear_then_cosine_and_for_a_fixed_rate_too():
    config = replace(CONFIG, epochs=6, warmup_epochs=2, fix_pred_lr=True)
    optimizer = torch.optim.SGD(build_method(config, 10, 100).param_groups(), 1.0)
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
    method = build_method(config, 7, 100).eval()
    x, y = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 6])
    with torch.no_grad():
        loss, z = method([x], y)
        logits = method.backbone(x) @ method.head.weight.T + method.head.bias
        expected = (
            -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[torch.arange(5), y].mean()
        )
    assert z is None
    torch.testing.assert_close(loss, expected)
