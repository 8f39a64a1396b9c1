"""For whoever has a GPU: `pytest -m gpu`. The CUDA kernels on the device against the CPU's, through autograd and streams."""

import threading
from typing import Any

import pytest
import torch

import snn_rules
from snn_rules.kernels import Compiled, executor, launch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device here: these tests are for whoever has one", allow_module_level=True)
pytest.importorskip("cupy", reason=f"CuPy is not installed; {launch.remedy()}")

VARIANTS: list[tuple[str, dict[str, Any], float]] = [
    ("surrogate", {}, 1.0), ("surrogate", {"surrogate": "atan", "reset": "subtract"}, 1.0),
    ("tssl", {}, 1.0), ("tssl", {"warmup": "layer"}, 1.0), ("tssl", {"psc": "output", "dadt": "continuous"}, 1.0),
    ("strsbp", {}, 8.0), ("strsbp", {"delay": 3, "t_ref": 0, "silent": "zero"}, 8.0), ("stdbp", {}, 0.1), ("stdbp", {"revive": 1.0}, 0.1),
]  # fmt: skip


def both(name: str, options: dict[str, Any], scale: float, shape: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(2))
    rule, found = snn_rules.get_rule(name, **options), []
    for device, by in (("cuda", launch.Launched()), ("cpu", Compiled())):
        spikes, state, tape, _ = by.forward(rule, (scale * (x + 0.5)).to(device), {})
        dx, values = by.backward(rule, tape, g.to(device))
        made = {"spikes": spikes, "dx": dx, **{f"state {n}": t for n, t in state.items()}, **{f"value {n}": t for n, t in values.items()}}
        found.append({key: value.cpu() for key, value in made.items()})
    return found


@pytest.mark.parametrize(("name", "options", "scale"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(23, 1000), (1, 7), (100, 16, 3, 11, 5), (5, 300_000)])
def test_the_gpu_equals_the_cpu(name: str, options: dict[str, Any], scale: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    by_gpu, by_cpu = both(name, options, scale, shape, dtype)
    assert torch.equal(by_gpu.pop("spikes"), by_cpu.pop("spikes"))
    for key, value in by_cpu.items():
        torch.testing.assert_close(by_gpu[key], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()), msg=key)


def test_several_launches_in_the_same_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = both("tssl", {}, 1.0, (50, 5000), torch.float32)
    monkeypatch.setattr(launch, "SCRATCH", 1 << 20)
    parts, _ = both("tssl", {}, 1.0, (50, 5000), torch.float32)
    assert torch.equal(whole["dx"], parts["dx"])


def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    node = snn_rules.RuleNode("tssl", step_mode="m").to(x.device)
    spikes = node(leaf)
    (spikes * x).sum().backward()
    assert leaf.grad is not None
    return spikes.detach(), leaf.grad


def test_a_node_learns_on_the_gpu_by_its_kernels() -> None:
    x = torch.randn(20, 8, 100, device="cuda")
    assert isinstance(executor(snn_rules.get_rule("tssl"), x), launch.Launched)
    for by_gpu, by_cpu in zip(step(x), step(x.cpu()), strict=True):
        assert torch.allclose(by_gpu.cpu(), by_cpu, rtol=1e-5, atol=1e-6)


def test_the_current_stream_is_used() -> None:
    """The input is still being made on a side stream when the kernel is launched there; autograd walks back in its own thread."""
    x = torch.randn(50, 64, 1000, device="cuda")
    wanted = step(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = torch.randn(2000, 2000, device="cuda")
            busy = busy @ busy
            found = step(x + 0 * busy.sum().clamp(0, 1))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_two_threads_at_once() -> None:
    x, found = torch.randn(20, 8, 1000, device="cuda"), []
    wanted = step(x)

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(step(x))
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    x = torch.randn(20, 8, 100, device="cuda:0")
    for a, b in zip(step(x), step(x.to("cuda:1")), strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outside_single_inside(dtype: torch.dtype) -> None:
    x = torch.randn(20, 8, 100, device="cuda").to(dtype)
    spikes = snn_rules.RuleNode("tssl", step_mode="m")(x)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), snn_rules.RuleNode("tssl", step_mode="m")(x.float()))


RECURRENT: list[tuple[str, dict[str, Any], float]] = [
    ("surrogate", {}, 2.0), ("tssl", {}, 1.0), ("tssl", {"psc": "output", "decay_input": True}, 5.0), ("stdbp", {"revive": 1.0}, 0.1),
    ("strsbp", {"v_threshold": 2.0}, 4.0), ("strsbp", {"v_threshold": 2.0, "delay": 0, "gradient": "paper", "solver": "exact"}, 4.0),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")  # one step of five neurons
@pytest.mark.parametrize(("name", "options", "scale"), RECURRENT)
@pytest.mark.parametrize("shape", [(12, 4, 70), (1, 1, 5), (100, 16, 400)])
def test_a_recurrent_layer_by_kernels_equals_eager_torch_on_the_gpu(
    name: str, options: dict[str, Any], scale: float, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: the two devices' products differ in the last bit, so both run here; a spike that such a bit flips fails."""
    draw, found = torch.Generator().manual_seed(0), []
    x, g = (torch.randn(shape, generator=draw, dtype=torch.float64).cuda() for _ in range(2))
    weight = scale * torch.randn(shape[-1], shape[-1], generator=draw, dtype=torch.float64) / shape[-1] ** 0.5
    for forced in ("", "eager"):
        monkeypatch.setattr("snn_rules.kernels.FORCED", forced)
        node = snn_rules.RecurrentNode(shape[-1], name, **options).double().cuda()
        node.weight.data.copy_(weight)
        leaf = (scale * (x + 0.5)).requires_grad_()
        assert isinstance(executor(node.rule, leaf, recurrent=True), launch.Launched) != bool(forced)
        spikes = node(leaf)
        (spikes * g).sum().backward()
        found.append((spikes.detach(), node.v, leaf.grad, node.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    for mine, want in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-10 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_event_layers_equal_those_of_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5, bias=False), snn_rules.RuleNode("stdbp"), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(2304, 300), snn_rules.RuleNode("stdbp"),
    )  # fmt: skip
    rule = snn_rules.get_rule("stdbp", mode="event", revive=1.0)
    rule.initialize(snn_rules.convert(net, rule)).to(dtype)
    times, found = rule.encode(torch.rand(32, 1, 28, 28, dtype=dtype), 1)[0], []
    assert rule.own_layers(times.cuda()) == ("compiled for the GPU", "CuPy is installed")
    for device in ("cpu", "cuda", "cuda"):
        net.to(device).zero_grad()
        out = net(times.to(device))
        out.square().mean().backward()
        found.append([out.detach().cpu(), *(p.grad.cpu().clone() for p in net.parameters() if p.grad is not None)])
    assert torch.equal(found[1][0], found[0][0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))  # no order is left to chance
    for mine, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=(1e-10 if dtype == torch.float64 else 1e-4) * float(want.abs().max()))
