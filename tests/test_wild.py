"""A stranger's rule, as wild as one may be, by eager torch, by C++ and by CUDA's intermediate code."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from snn_rules.kernels import Compiled, Eager, launch
from snn_rules.kernels.trains import ByKernels
from snn_rules.ops import heaviside, where
from snn_rules.rule import LearningRule, parameter, sweep
from snn_rules.testing import fake_cupy, nvrtc, proof

try:
    nvrtc.architectures()
except (nvrtc.NoNvrtc, OSError) as cause:
    pytest.skip(f"the proof needs NVRTC: {cause}", allow_module_level=True)


@dataclass(frozen=True)
class Wild(LearningRule):
    """What the bundled rules do not use: conditions joined and kept, a value of the neuron in ordinary torch, infinities; and names
    that could be taken for those of a kernel's own."""

    name: ClassVar[str] = "wild"
    state: ClassVar[dict[str, float]] = {"v": -0.5, "cv": 0.0, "v_REST": 0.25, "FEEDBACK": 0.5, "f_v": 1.0}
    top: float = parameter(float("inf"), "", "")

    def step(self, m: Any, x: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        v = m.v * 0.5 + x
        fires = (v >= 1.0) & ((v < self.top) | (m.cv > 2.0))
        s = heaviside(where(fires, v, -1.0))
        v_rest, feedback, f_v = 0.5 * m.v_REST + s, 0.5 * m.FEEDBACK + v, 0.5 * m.f_v - v
        return s, {"v": where(fires, 0.0, v), "cv": m.cv + s, "v_REST": v_rest, "FEEDBACK": feedback, "f_v": f_v}, {"fires": fires}

    @sweep(reverse=False, v=0.0)
    def ahead(self, c: Any, m: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"v": c.v + m.g}

    def between(self, sums: Any) -> dict[str, Any]:
        return {"scale": torch.tanh(sums.v), "offset": torch.ones_like(sums.v)}

    @sweep(reverse=True, later=0.0)
    def back(self, c: Any, m: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        later = where(m.fires, m.g, 0.5 * c.later)
        return {"dx": later + m.offset * m.cv + 0.1 * (m.v_REST + m.FEEDBACK - m.f_v)}, {"later": later}


@pytest.mark.parametrize("T", [7, 23])
def test_by_every_executor(T: int) -> None:
    x, g = torch.randn(T, 300), torch.randn(T, 300)
    spikes, after, tape, _ = Eager().forward(Wild(), x, {})
    dx, values = Eager().backward(Wild(), tape, g)

    def run(by: ByKernels) -> tuple[Any, ...]:
        spikes, after, tape, _ = by.forward(Wild(), x, {})
        return spikes, after, *by.backward(Wild(), tape, g)

    with fake_cupy.installed() as gpu:
        by_ptx = run(launch.Launched())
    for found, after_found, dx_found, values_found in (by_ptx, run(Compiled())):
        assert torch.equal(found, spikes) and all(torch.equal(after_found[name], after[name]) for name in Wild.state)
        torch.testing.assert_close(values_found["v"], values["v"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(dx_found, dx, rtol=1e-6, atol=1e-6)
    assert [run.kernel for run in gpu.launches] == ["forward", "backward0", "backward1"]
    assert all(row.compiled and not row.spills for row in proof.resources(Wild()))
