"""Recurrent layers by their CUDA kernels without a GPU: interpreted through the real launch code, equal to the C++ ones to the bit."""

from typing import Any

import pytest
import torch

import snn_rules
from snn_rules.kernels import cuda, launch
from snn_rules.kernels.build import NoCompiler, compiler
from snn_rules.kernels.program import program
from snn_rules.kernels.steps import for_gpu
from snn_rules.rule import LearningRule
from snn_rules.testing import fake_cupy, nvrtc, proof, ptx
from snn_rules.testing.memory import MemoryFault

try:
    nvrtc.architectures(), compiler()
except (nvrtc.NoNvrtc, NoCompiler, OSError) as cause:
    pytest.skip(f"the proof needs NVRTC and a C++ compiler: {cause}", allow_module_level=True)

RULES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("surrogate", {}, {"scale": 2.0}), ("surrogate", {"surrogate": "atan", "reset": "subtract"}, {"scale": 2.0}),
    ("tssl", {}, {}), ("tssl", {"psc": "output", "dadt": "shift", "decay_input": True}, {"scale": 5.0}),
    ("strsbp", {"v_threshold": 2.0}, {"scale": 4.0}), ("strsbp", {"v_threshold": 2.0, "delay": 0, "gradient": "paper"}, {"scale": 4.0}),
    ("strsbp", {"v_threshold": 2.0, "delay": 3, "solver": "exact"}, {"scale": 4.0}),
    ("stdbp", {}, {"scale": 0.2, "warm": False}), ("stdbp", {"revive": 1.0}, {"scale": 0.1, "warm": False}),
]  # fmt: skip


def check(rule: LearningRule, **how: Any) -> None:
    results = proof.recurrent_agreement(rule, **how)
    spikes, dx = results["spikes"][1], results["dx"][1]
    assert 0 < spikes.count_nonzero() < spikes.numel()
    assert dx.count_nonzero() > dx.numel() / 20
    for name, (by_ptx, by_cpu) in results.items():
        assert torch.equal(by_ptx, by_cpu), name


@pytest.mark.parametrize(("name", "options", "how"), RULES)
def test_ptx_equals_the_cpu_build(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    check(snn_rules.get_rule(name, **options), **how)


@pytest.mark.parametrize("name", ["tssl", "strsbp"])
def test_float64_and_another_architecture(name: str) -> None:
    rule, scale = snn_rules.get_rule(name, v_threshold=1.0), 4.0
    check(rule, dtype=torch.float64, shape=(9, 2, 140), scale=scale)
    check(rule, arch=120, scale=scale)


def test_every_launch_sets_device_and_stream_and_compiles_once() -> None:
    x, g = 2 * torch.rand(6, 2, 150), torch.rand(6, 2, 150)
    results, parts = [], [x[:4], x[4:]]

    def train() -> None:
        torch.manual_seed(0)
        node = snn_rules.RecurrentNode(150, "tssl")
        for part in parts:
            leaf = part.clone().requires_grad_()
            spikes = node(leaf)
            (spikes * g[: len(part)]).sum().backward()
            node.detach()
            results.append([spikes.detach(), leaf.grad, node.weight.grad.clone()])

    train()
    with pytest.MonkeyPatch.context() as patch, fake_cupy.installed() as gpu:
        patch.setattr("snn_rules.kernels.autograd.executor", lambda *_, **__: launch.Launched())
        train()
    assert len(gpu.modules) == 1
    assert [run.kernel for run in gpu.launches] == [*["step"] * 4, *["step_back"] * 4, *["step"] * 2, *["step_back"] * 2]
    assert all(isinstance(run.stream, fake_cupy.Stream) and (run.grid, run.block) == (2, 256) for run in gpu.launches)
    for found, wanted in zip(results[2:], results[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_no_neurons() -> None:
    rule, x, weight = snn_rules.get_rule("tssl"), torch.zeros(3, 0, 5), torch.rand(5, 5)
    with fake_cupy.installed() as gpu:
        spikes, _, tape, _ = launch.Launched().forward(rule, x, {}, weight)
        dx, _, d_weight, _ = launch.Launched().recurrent_backward(rule, tape, spikes, weight)
    assert dx.shape == x.shape and not d_weight.any() and not gpu.launches


@pytest.mark.parametrize("name", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_source_has_wide_indices(name: str) -> None:
    source = cuda.source(for_gpu(program(snn_rules.get_rule(name), 23, recurrent=True)), torch.float32)
    assert "#include" not in source and " int " not in source.replace("typedef int I", "")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("p_s[t * M + j] =", "p_s[t * M + j + M] =", r"writes byte .* of 's', which has .*: out of bounds"),
        ("p_y[j] =", "p_y[j / 2 * 2] =", r"race: thread \d+ .* of 'y'"),
        ("const N t, const N M", "const int t, const N M", r"parameter '\w+' is .u32, 4 bytes; it was given int64"),
        ("p_dx[t * M + j]", "p_dx[(t - 1) * M + j]", "out of bounds"),
    ],
    ids=["beyond", "race", "int", "before"],
)
def test_broken_kernels_are_caught(monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str) -> None:
    whole = cuda.source

    def broken(kernels: Any, dtype: torch.dtype) -> str:
        assert old in whole(kernels, dtype)
        return whole(kernels, dtype).replace(old, new)

    monkeypatch.setattr(cuda, "source", broken)
    with pytest.raises((MemoryFault, ptx.PtxError), match=says):
        check(snn_rules.get_rule("tssl"))
