"""The CUDA kernels without a GPU: compiled for every architecture, interpreted through the real launch code, broken on purpose."""

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import snn_rules
from snn_rules.kernels import Eager, build, cuda, executor, launch
from snn_rules.kernels.build import NoCompiler, compiler
from snn_rules.kernels.program import program
from snn_rules.kernels.steps import for_gpu
from snn_rules.rule import LearningRule, RuleError
from snn_rules.testing import fake_cupy, nvrtc, proof, ptx
from snn_rules.testing.memory import MemoryFault

try:
    ARCHITECTURES = nvrtc.architectures()
    compiler()
except (nvrtc.NoNvrtc, NoCompiler, OSError) as cause:
    pytest.skip(f"the proof needs NVRTC and a C++ compiler: {cause}", allow_module_level=True)

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {}, "stdbp": {}}
VARIANTS = [
    ("surrogate", {"surrogate": "atan", "reset": "subtract", "decay_input": False}),
    ("surrogate", {"detach_reset": True}),
    ("tssl", {"reset": "subtract", "dadt": "shift", "fire": ">"}),
    ("tssl", {"dadt": "continuous", "warmup": "off", "intra": False}),
    ("tssl", {"psc": "output", "leak": False}),
    ("tssl", {"warmup": "layer"}),
    ("tssl", {"decay_input": True}),
    ("strsbp", {"silent": "zero", "delay": 0, "t_ref": 0}),
    ("strsbp", {"delay": 3}),
    ("stdbp", {"revive": 1.0}),
]  # fmt: skip
INPUT: dict[str, Any] = {"strsbp": {"scale": 8.0}, "stdbp": {"scale": 0.1, "warm": False}}  # so that neurons fire, and late enough


def rule_of(name: str, options: dict[str, Any]) -> LearningRule:
    return snn_rules.get_rule(name, **options)


def check(rule: LearningRule, **how: Any) -> None:
    results = proof.agreement(rule, **INPUT.get(rule.name, {}), **how)
    spikes, dx = results["spikes"][1], results["dx"][1]
    assert 0 < spikes.count_nonzero() < spikes.numel() and dx.count_nonzero() > dx.numel() / 20
    for name, (by_ptx, by_cpu) in results.items():
        assert torch.equal(by_ptx, by_cpu), name


# ---- compiled for every architecture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_kernel_compiles_for_every_architecture_without_spills(name: str) -> None:
    assert tuple(ARCHITECTURES) == nvrtc.ARCHITECTURES
    rows = [row for row in proof.resources(rule_of(name, {})) if "event" not in row.kernel]  # stdbp's own: see its tests
    assert {row.arch for row in rows} == set(nvrtc.ARCHITECTURES)
    assert {row.kernel for row in rows} == {"forward", "backward0", "recurrent step", f"recurrent {'backward0' if name == 'strsbp' else 'step_back'}"}
    for row in rows:
        assert row.compiled and not row.spills and 0 < row.registers <= 64, row


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_variants_compile_without_spills(name: str, options: dict[str, Any]) -> None:
    for row in proof.resources(rule_of(name, options), archs=[80]) + proof.resources(rule_of(name, options), archs=[90], dtype=torch.float64):
        assert row.compiled and not row.spills, row


def test_source_has_no_include_and_wide_indices() -> None:
    source = cuda.source(for_gpu(program(rule_of("strsbp", {}), 23)), torch.float32)
    assert "#include" not in source
    assert "(N)blockIdx.x * blockDim.x" in source
    assert " int " not in source


# ---- interpreted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [*RULES.items(), *VARIANTS])
def test_ptx_equals_the_cpu_build(name: str, options: dict[str, Any]) -> None:
    check(rule_of(name, options))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != 80])
@pytest.mark.parametrize("name", RULES)
def test_ptx_of_every_architecture_equals_the_cpu_build(name: str, arch: int) -> None:
    check(rule_of(name, {}), arch=arch, shape=(9, 300))


@pytest.mark.parametrize("name", RULES)
def test_float64(name: str) -> None:
    check(rule_of(name, {}), dtype=torch.float64, shape=(23, 260))


@pytest.mark.parametrize("scale", [1e-38, 1e37, float("nan")])
@pytest.mark.parametrize("name", RULES)
def test_denormal_infinite_and_undefined_inputs(name: str, scale: float) -> None:
    for by_ptx, by_cpu in proof.agreement(rule_of(name, {}), shape=(12, 260), scale=scale).values():
        torch.testing.assert_close(by_ptx, by_cpu, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 300), (2, 300), (5, 256), (6, 3, 4, 25), (40, 13)])
@pytest.mark.parametrize("warm", [True, False])
def test_shapes_and_first_states(shape: tuple[int, ...], warm: bool) -> None:
    rule = rule_of("strsbp", {"delay": 3, "tau_s": 1.0, "v_threshold": 1.0})
    for name, (by_ptx, by_cpu) in proof.agreement(rule, shape=shape, scale=60.0, warm=warm).items():
        assert torch.equal(by_ptx, by_cpu), name


def test_no_neurons() -> None:
    with fake_cupy.installed() as gpu:
        spikes, _, tape, _ = launch.Launched().forward(rule_of("surrogate", {}), torch.zeros(3, 0), {})
        dx, _ = launch.Launched().backward(rule_of("surrogate", {}), tape, spikes)
    assert dx.shape == (3, 0)
    assert not gpu.launches


def test_many_neurons_take_several_launches_in_the_same_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, x, g = rule_of("tssl", {}), torch.rand(8, 1000), torch.rand(8, 1000)
    held = len(program(rule, 8).stages[0].scratch) * 8 * 4
    results = []
    for scratch in (1 << 20, 256 * held, 700 * held, 1):
        monkeypatch.setattr(launch, "SCRATCH", scratch)
        with fake_cupy.installed() as gpu:
            _, _, tape, _ = launch.Launched().forward(rule, x, {})
            results.append((launch.Launched().backward(rule, tape, g)[0], len(gpu.launches) - 1))
    assert [launches for _, launches in results] == [1, 4, 2, 4]
    assert all(torch.equal(dx, results[0][0]) for dx, _ in results)


# ---- the launch ------------------------------------------------------------------------------------------------------


def test_every_launch_sets_device_and_stream_and_compiles_once() -> None:
    rule, x = rule_of("surrogate", {}), torch.rand(5, 300)
    with fake_cupy.installed() as gpu:
        for _ in range(3):
            _, _, tape, _ = launch.Launched().forward(rule, x, {})
            launch.Launched().backward(rule, tape, x.sum().expand_as(x))  # a gradient of stride 0
    assert len(gpu.modules) == 1
    assert [run.kernel for run in gpu.launches] == ["forward", "backward0"] * 3
    for run in gpu.launches:
        assert isinstance(run.stream, fake_cupy.Stream)
        assert (run.grid, run.block) == (2, 256)
        assert {type(given) for given in run.arguments} == {np.uint64, np.int64}
    assert not gpu.entered


@pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")  # stdbp, of a loss of rates
@pytest.mark.parametrize("name", RULES)
def test_a_neuron_learns_through_the_launch_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, g = 2 * torch.rand(9, 2, 150), torch.rand(9, 2, 150)

    def train() -> list[torch.Tensor]:
        node, results = snn_rules.RuleNode(name, step_mode="m", **({"v_threshold": 1.0} if name == "strsbp" else {})), []
        for part in (x[:4], x[4:]):
            leaf = part.clone().requires_grad_()
            spikes = node(leaf)
            (spikes * g[: len(part)]).sum().backward()
            assert leaf.grad is not None
            node.detach()
            results += [spikes.detach(), leaf.grad]
        return results

    wanted = train()
    monkeypatch.setattr("snn_rules.kernels.autograd.executor", lambda *_, **__: launch.Launched())
    with fake_cupy.installed() as gpu:
        found = train()
    assert [run.kernel for run in gpu.launches] == ["forward", "backward0"] * 2
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_cupy_is_imported_only_for_a_cuda_tensor() -> None:
    code = (
        "import sys, torch, snn_rules, snn_rules.kernels.launch\n"
        "node = snn_rules.RuleNode('tssl', step_mode='m')\n"
        "node(torch.rand(4, 2, 3, requires_grad=True)).sum().backward()\n"
        "assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_what_cupy_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, device = rule_of("surrogate", {}), torch.device("cpu")
    launch.forget()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(launch.NoCupy, match=r"cannot be imported .*pip install 'snn-rules\[cuda1\d\]'"):
        launch.kernels(rule, 5, torch.float32, device)

    def old_driver(index: Any) -> None:
        raise RuntimeError("cudaErrorInsufficientDriver\nand more")

    launch.forget()
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(Device=old_driver)))
    with pytest.raises(launch.NoCupy, match=r"cannot load the kernels of 'surrogate' \(cudaErrorInsufficientDriver\); see snn-rules doctor"):
        launch.kernels(rule, 5, torch.float32, device)


def test_a_tensor_that_a_kernel_would_misread_is_refused() -> None:
    with fake_cupy.installed(), pytest.raises(RuleError, match=r"'in_v' is \[3\] of torch\.float64 on cpu, strides \[1\]; it should be"):
        launch.Launched().forward(rule_of("surrogate", {}), torch.zeros(5, 3), {"v": torch.zeros(3).double()})


def test_a_cuda_tensor_finds_its_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = rule_of("surrogate", {})
    x: Any = SimpleNamespace(device=torch.device("cuda", 0), is_cpu=False, is_cuda=True, shape=(5, 2, 3), dtype=torch.float32, numel=int)
    launch.forget()
    build.say_once.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.warns(UserWarning, match=r"'surrogate' runs on torch tensors, many times slower: CuPy cannot be imported .*; pip install"):
        assert type(executor(rule, x)) is Eager
    with warnings.catch_warnings(action="error"):  # said once
        assert "pip install" in executor(rule, x).why
    with fake_cupy.installed() as gpu:
        assert isinstance(executor(rule, x), launch.Launched)
        monkeypatch.setattr("snn_rules.kernels.FORCED", "eager")
        assert type(executor(rule, x)) is Eager
    assert len(gpu.modules) == 1


# ---- broken on purpose -----------------------------------------------------------------------------------------------


def run_broken(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    whole = cuda.source

    def broken(kernels: Any, dtype: torch.dtype) -> str:
        assert old in whole(kernels, dtype)
        return whole(kernels, dtype).replace(old, new)

    monkeypatch.setattr(cuda, "source", broken)
    check(rule_of("tssl", {}), shape=(5, 600), warm=False)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("t * M + j", "t * (M + 1) + j", r"reads byte .* of 'x', which has 12000: out of bounds"),
        ("t * M + j", "t * (M - 1) + j", r"race: thread \d+ writes what thread \d+ writes, word \d+ of 's'"),
        ("(N)blockIdx.x * blockDim.x + threadIdx.x", "threadIdx.x", r"race: thread \d+ writes what thread \d+ writes, word"),
        ("if (i >= M) return;", "", r"race: thread \d+ writes what thread \d+ writes, word \d+ of 's'"),
        ("p_in_v ? p_in_v[j]", "p_x ? p_in_v[j]", "a null pointer"),
        ("t * 3 + 2) * W + i] =", "t * 3 + 2) * W + (i ^ 1)] =", r"race: thread \d+ .* of 'scratch'"),
        ("const N T, const N M) {", "const int T, const N M) {", r"parameter 'forward_param_\d+' is .u32, 4 bytes; it was given int64"),
        ("const N T, const N M) {", "const float T, const N M) {", r"parameter 'forward_param_\d+' is .f32, 4 bytes; it was given int64"),
        ("const N T, const N M) {", "const double T, const N M) {", r"parameter 'forward_param_\d+' is .f64, 8 bytes; it was given int64"),
        ("const N M) {", "const N M, const N more) {", "takes 12 arguments and was given 11"),
    ],
    ids=["stride, beyond", "stride, race", "race", "no bound", "null", "race in scratch", "int", "float", "double", "count"],
)  # fmt: skip
def test_broken_kernels_are_caught(monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str) -> None:
    with pytest.raises((MemoryFault, ptx.PtxError), match=says):
        run_broken(monkeypatch, old, new)
