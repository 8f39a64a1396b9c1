"""Stub distributions, as strangers' plugins are; and how kernels are compiled for tests."""

import sys
from pathlib import Path

import pytest

from snn_rules.kernels import compiled, zeros, zeros_conv
from snn_rules.registry import Registry

BUNDLED = ("stdbp", "strsbp", "tssl")
GOOD = """
from dataclasses import dataclass
from snn_rules import LearningRule, hookimpl, parameter

@dataclass(frozen=True)
class Rule(LearningRule):
    tau_m: float = parameter(5.0, "steps", "membrane time constant", low=1.0)
    name = "NAME"

@hookimpl
def learning_rule():
    return Rule
"""


AS_SHIPPED = (
    "test_kernels.py",
    "test_recurrent_kernels.py",
    "test_build.py",
    "test_zeros.py",
    "test_zeros_conv.py",
    "test_zeros_recurrent.py",
)  # and the plugins' own tests


@pytest.fixture(autouse=True, scope="module")
def compiler(request: pytest.FixtureRequest):
    """Compiling is most of a first run: where kernels are not what is tested, they are compiled without optimisation.

    It changes no result: the operations are IEEE's, in one order.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()  # graphs of one module count against the limit of the next
    if request.path.name in AS_SHIPPED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNN_RULES_CXXFLAGS", "-O0")  # for the processes that a test starts, too
        _forget()
        yield
    _forget()


def _forget() -> None:
    compiled.executor.forget()
    compiled._made.cache_clear()
    zeros._kernels.cache_clear()
    zeros_conv._kernels.cache_clear()
    zeros._failure.cache_clear()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The bundled rules as a new process finds them, for get_rule, too; other plugins of this environment are left out."""
    monkeypatch.delenv("SNN_RULES_DISABLE", raising=False)
    fresh = Registry()
    monkeypatch.setenv("SNN_RULES_DISABLE", ",".join(set(fresh.rules()) - {"surrogate", *BUNDLED}))
    monkeypatch.setattr("snn_rules.registry._registry", fresh)
    return fresh


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution `stub-NAME` of one module: a good rule, or that with one text replaced by another, or `body`.

    Returns the module's path.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def stub(name: str, body: str | tuple[str, str] = ("", ""), *, distribution: str = "", version: str = "1.0", metadata: bool = True) -> Path:
        distribution = distribution or f"stub-{name}"
        module = distribution.replace("-", "_")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[snn_rules]\n{name} = {module}\n")
        path = tmp_path / f"{module}.py"
        text = body if isinstance(body, str) else GOOD.replace(*body)
        path.write_text(text.replace("NAME", name))
        return path

    yield stub
    for module in set(sys.modules) - before:
        if module.startswith("stub_"):
            del sys.modules[module]
