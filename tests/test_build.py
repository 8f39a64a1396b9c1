"""The compiler, its cache, and what is said and done where they fail: no crash, no wrong result, one clear line."""

import os
import stat
import subprocess
import sys
import textwrap

import pytest
import torch

import snn_rules
from snn_rules.kernels import Compiled, Eager, build

TINY = 'extern "C" int one() { return 1; }'
TRY = """
import warnings
import snn_rules, torch
from snn_rules.kernels import Eager, executor
rule, x = snn_rules.get_rule("surrogate", tau_m=3.0), torch.linspace(-1, 3, 60).view(12, 5)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    runner = executor(rule, x)
    runner = executor(rule, x)
    spikes = runner.forward(rule, x, {})[0]
    executor(rule, x.double())
assert torch.equal(spikes, Eager().forward(rule, x, {})[0]) and spikes.count_nonzero()
print(runner.name, "|", runner.why, "|", *sorted({str(w.message) for w in said}))
"""


def run(code=TRY, **environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_kernel_that_was_cut_short_is_compiled_again(tmp_path):
    made = build._compiled(tmp_path, "one", TINY, build.compiler()[0])
    whole = made.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        made.write_bytes(whole[:size])
        assert build._compiled(tmp_path, "one", TINY, build.compiler()[0]) == made
        assert build._whole(made) and made.stat().st_size == len(whole)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and a compiler that is asked for anew."""
    monkeypatch.setenv("SNN_RULES_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "compiler", build.compiler.__wrapped__)  # which is asked once a process
    return tmp_path


def test_compiles_into_the_cache_and_finds_it_again(fresh):
    assert build.build(TINY).one() == 1
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    at = made.stat().st_mtime_ns
    assert build.build(TINY).one() == 1 and list(fresh.iterdir()) == [made] and made.stat().st_mtime_ns == at


def test_flags_of_the_environment(fresh, monkeypatch):
    asks = 'extern "C" int optimized() {\n#ifdef __OPTIMIZE__\nreturn 1;\n#endif\nreturn 0; }'
    for kernels, (flags, optimized) in enumerate((("", 1), ("-O0", 0), ("-O1 -DNDEBUG", 1)), 1):
        monkeypatch.setenv("SNN_RULES_CXXFLAGS", flags)
        assert build.build(asks).optimized() == optimized
        assert len(list(fresh.iterdir())) == kernels  # those of other flags are other kernels
    monkeypatch.setenv("SNN_RULES_CXXFLAGS", "-fno-such")
    with pytest.raises(build.NoCompiler, match=r" -fno-such failed: .*-fno-such"):
        build.build(asks)


@pytest.mark.parametrize(
    ("variable", "given", "says"),
    [
        *(("SNN_RULES_CXXFLAGS", flag, rf" {flag} failed: kernel.cpp:2:2: error: .*look for NaN, and are told that there is none; take -ffast-math, ")
          for flag in ("-ffast-math", "-Ofast", "-ffinite-math-only")),
        ("SNN_RULES_CXXFLAGS", "-O2 '", r"""^SNN_RULES_CXXFLAGS="-O2 '" has no closing quotation; mend its quotes$"""),
        ("CXX", "g++ '", r"""^CXX="g\+\+ '" has no closing quotation; mend its quotes$"""),
        ("CXX", "true", r"/true makes no file; set CXX to a C\+\+ compiler$"),
    ],
    ids=["-ffast-math", "-Ofast", "-ffinite-math-only", "quotes of flags", "quotes of CXX", "no file"],
)  # fmt: skip
def test_what_the_environment_says_of_the_compiler_is_refused(variable, given, says, fresh, monkeypatch):
    monkeypatch.setenv(variable, given)
    with pytest.raises(build.NoCompiler, match=says) as refusal:
        build.build(TINY)
    assert "\n" not in str(refusal.value) and not list(fresh.iterdir())


def test_two_processes_with_an_empty_cache_at_once_and_a_third_after_them(tmp_path):
    environment = {**os.environ, "SNN_RULES_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", TRY], stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    for process in both:
        assert process.communicate()[0].startswith("compiled for the CPU") and process.returncode == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert made and all(path.suffix == ".so" for path in made)
    assert run(SNN_RULES_CACHE_DIR=str(tmp_path)).startswith("compiled for the CPU | a C++ compiler is installed |")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made


def test_the_compiler_may_have_options(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "env g++ -DANSWER=7")
    answer = 'extern "C" int answer() { return ANSWER; }'
    assert build.build(answer).answer() == 7
    monkeypatch.setenv("CXX", "env g++ -DANSWER=8")
    assert build.build(answer).answer() == 8  # no kernel of other options
    monkeypatch.setenv("CXX", "env g++ -DANSWER=7")
    assert build.compiler()[1].startswith("g++ ")


def test_no_compiler_gives_eager_torch_said_once():
    name, why, said = run(CXX="/nonexistent").split(" | ")
    assert name == "eager torch" and why == "CXX='/nonexistent' is no program"
    assert said == "'surrogate' runs on torch tensors, many times slower: CXX='/nonexistent' is no program"


def test_a_compiler_that_fails(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        [ "$1" = --version ] && echo "broken 1.0" && exit 0
        echo "kernel.cpp:1:1: fatal error: out of luck" >&2; exit 1
        """)
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    name, why, _ = run(CXX=str(compiler), SNN_RULES_CACHE_DIR=str(tmp_path / "cache")).split(" | ")
    assert name == "eager torch" and why.endswith("failed: kernel.cpp:1:1: fatal error: out of luck")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_cache_that_cannot_be_written_and_a_full_disk(tmp_path):
    file = tmp_path / "a file, no folder"
    file.write_text("")
    name, _, said = run(SNN_RULES_CACHE_DIR=str(file / "cache")).split(" | ")
    assert name == "compiled for the CPU" and said.startswith("kernels are kept in ") and "Not a directory" in said  # said once, for two dtypes
    assert said.count("kernels are kept in") == 1 and said.endswith("set SNN_RULES_CACHE_DIR to a folder that can be written")
    full = TRY + textwrap.dedent("""
        from pathlib import Path
        from snn_rules.kernels import build
        def no_space(*_, **__): raise OSError(28, "No space left on device")
        Path.mkdir = no_space
        try: build.build("int nothing;  // never compiled before")
        except build.NoCompiler as cause: print(cause)
        """)
    assert "No space left on device); set SNN_RULES_CACHE_DIR" in run(full)


def test_a_temporary_folder_of_others_is_not_trusted(tmp_path):
    shared = tmp_path / f"snn_rules-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    file = tmp_path / "a file"
    file.write_text("")
    name, why, _ = run(SNN_RULES_CACHE_DIR=str(file / "cache"), TMPDIR=str(tmp_path)).split(" | ")
    assert name == "eager torch" and "can be written by others" in why
    assert not list(shared.iterdir())


def test_eager_can_be_forced(monkeypatch):
    monkeypatch.setattr("snn_rules.kernels.FORCED", "eager")
    runner = snn_rules.kernels.executor(snn_rules.get_rule("tssl"), torch.zeros(2, 2))
    assert (type(runner), runner.why) == (Eager, "SNN_RULES_EXECUTOR=eager")
    monkeypatch.setattr("snn_rules.kernels.FORCED", "")
    assert type(snn_rules.kernels.executor(snn_rules.get_rule("tssl"), torch.zeros(2, 2))) is Compiled


def test_a_misspelt_executor_is_said():
    command = [sys.executable, "-c", "import snn_rules.kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SNN_RULES_EXECUTOR": "eagre"})
    assert done.returncode == 0 and "SNN_RULES_EXECUTOR='eagre' is not known and changes nothing; leave it out, or set 'eager'" in done.stderr


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_the_neuron_gives_the_same_under_both(rule, monkeypatch):
    torch.manual_seed(0)
    x, g = torch.randn(20, 3, 7) * 0.5, torch.randn(20, 3, 7)
    found = []
    for forced in ("eager", ""):
        monkeypatch.setattr("snn_rules.kernels.FORCED", forced)
        node = snn_rules.RuleNode(rule, step_mode="m", **({"v_threshold": 0.5} if rule == "strsbp" else {}))
        leaf = x.clone().requires_grad_()
        out = node(leaf)
        out.backward(g)
        found.append((out.detach(), leaf.grad, node.v))
    assert found[0][0].count_nonzero() and found[0][1].count_nonzero()
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-5, atol=1e-6)
