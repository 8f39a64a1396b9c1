"""What a newcomer from SpikingJelly brings, and types."""

import gzip
import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from spikingjelly.activation_based import neuron, surrogate
from typer.testing import CliRunner

import snn_rules
from snn_rules import RuleError, data
from snn_rules.cli import app

T = 6


def test_the_baseline_keeps_the_surrogate_of_the_neuron() -> None:
    made = neuron.LIFNode(surrogate_function=surrogate.ATan(3.0), detach_reset=True)
    net = snn_rules.convert(torch.nn.Sequential(made), "surrogate")
    assert (net[0].rule.surrogate, net[0].rule.alpha, net[0].rule.detach_reset) == ("atan", 3.0, True)
    mine = snn_rules.convert(torch.nn.Sequential(neuron.IFNode(surrogate_function=surrogate.ATan())), "surrogate", surrogate="sigmoid", alpha=1.0)
    assert (mine[0].rule.surrogate, mine[0].rule.alpha, mine[0].rule.detach_reset) == ("sigmoid", 1.0, False)
    with pytest.warns(UserWarning, match="'surrogate_function=SoftSign' has no meaning for rule 'surrogate'"):
        snn_rules.convert(torch.nn.Sequential(neuron.IFNode(surrogate_function=surrogate.SoftSign())), "surrogate")


def test_a_parallel_neuron_is_refused_by_path() -> None:
    with pytest.raises(RuleError, match="convert: '1' is a PSN, which no rule can stand in for"):
        snn_rules.convert(torch.nn.Sequential(neuron.LIFNode(), neuron.PSN(T=4)), "tssl")


NO_TIMES = [(torch.full((1, 2, 4), float("inf")), "holds inf"), (torch.ones(1, 2, 4, dtype=torch.int64), "dtype torch.int64")]


@pytest.mark.parametrize(("x", "says"), NO_TIMES)
@pytest.mark.filterwarnings("ignore:'tau' has no meaning")
def test_what_is_no_spike_time_is_refused(x: torch.Tensor, says: str) -> None:
    net = snn_rules.convert(torch.nn.Sequential(torch.nn.Linear(4, 3), neuron.LIFNode()), "stdbp", mode="event")
    with pytest.raises(RuleError, match=rf"layer '0' \(stdbp\): the input .*{says}; pass the spike times of rule.encode"):
        net(x)
    with pytest.raises(RuleError, match=r"has shape \[5, 2, 4\]; pass times \[1, N, 4\], each sent once"):
        net(torch.rand(5, 2, 4))
    with pytest.raises(RuleError, match=r"has shape \[5, 2, 3\], but mode='event' sends each time once"):
        net[1].rule.loss(torch.rand(5, 2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_losses_refuse_what_they_cannot_read(name: str) -> None:
    rule, out = snn_rules.get_rule(name), torch.rand(T, 2, 3)
    for target, reduction, says in (
        (torch.tensor([0, 3]), "mean", "the target holds classes 0 to 3, the output has 3"),
        (torch.tensor([0.0, 1.0]), "mean", "the target is dtype torch.float32; pass class indices"),
        (torch.tensor([0, 1]), "none", "reduction='none' should be 'mean'"),
    ):
        with pytest.raises(RuleError, match=says):
            rule.loss(out, target, reduction)


def test_a_place_for_results_is_made_before_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (["compare", "--rules", "tssl"], ["lens", "--rules", "tssl,surrogate"]):
        done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "file" / "x")])
        assert done.exit_code == 2 and "cannot be made" in " ".join(done.output.split()) and "epoch" not in done.output


def test_the_loop_of_the_start_page_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "index.md").read_text()
    code, said = re.search(r"```python\n(.*?)```\n\nprints ([\d.]+)", page, re.DOTALL).groups()  # type: ignore[union-attr]
    exec(code, {})
    assert float(re.findall(r"[\d.]+", capsys.readouterr().out)[0]) == pytest.approx(float(said), abs=0.03)


def test_another_data_set_in_the_same_layout_is_refused(tmp_path: Path) -> None:
    def put(name: str, values: torch.Tensor) -> None:
        head = b"\0\0\x08" + bytes([values.dim()]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(head + values.to(torch.uint8).numpy().tobytes()))

    labels = torch.arange(4)
    for test_labels, size, says in ((labels + 40, 28, "labels up to 43"), (labels, 14, r"images of \[14, 14\]")):
        for name, values in (("train-images-idx3-ubyte", torch.zeros(4, 28, 28)), ("train-labels-idx1-ubyte", labels)):
            put(name, values)
        put("t10k-images-idx3-ubyte", torch.zeros(4, size, size))
        put("t10k-labels-idx1-ubyte", test_labels)
        with pytest.raises(RuleError, match=says):
            data.load("mnist", tmp_path)
    (tmp_path / "fsdd_lyon_bsa.npz").write_bytes(b"PK\3\4")
    with pytest.raises(RuleError, match="cannot be read"):
        data.load("spoken-digits", tmp_path)


def trained(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["train", "--rule", "tssl", "--limit-train", "40", "--network", "8-10", "--out", str(folder), *more])


def test_fewer_epochs_than_there_are_and_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    assert trained(tmp_path, "--epochs", "2").exit_code == 0
    fewer = trained(tmp_path, "--epochs", "1", "--resume")
    assert fewer.exit_code == 2 and "has 2 epochs already; pass at least so many" in " ".join(fewer.output.split())
    path = tmp_path / "checkpoint.pt"
    for key, value in (("history", [1]), ("rng", []), ("network", 3), ("identity", None)):
        state = torch.load(path, weights_only=True)
        torch.save({**state, key: value}, tmp_path / "other.pt")
        other = tmp_path / key
        other.mkdir()
        (tmp_path / "other.pt").rename(other / "checkpoint.pt")
        done = trained(other, "--epochs", "3", "--resume")
        assert done.exit_code == 2 and "holds something else" in " ".join(done.output.split()), (key, done.output)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("rotation=15", "rotation=15 does nothing without augment=elastic; add --setting augment=elastic, or leave it out"),
        ("desired=3", "desired=3 does nothing without loss=count"),
        ("exp_beta=0.1", "exp_beta=0.1 does nothing without regularize=sum or regularize=mean"),
        ("crop_padding=2", "crop_padding=2 does nothing without augment=crop-flip"),
    ],
)
def test_settings_that_do_nothing_alone_are_refused(tmp_path: Path, setting: str, says: str) -> None:
    done = trained(tmp_path, "--setting", setting)
    assert done.exit_code == 2 and says in " ".join(done.output.split())


def test_a_place_for_a_new_rule_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["new", "mine", "--out", str(tmp_path / "file" / "rule")])
    assert done.exit_code == 2 and "pass another --out" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "cause",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 10 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes."),
        MemoryError("Unable to allocate 728. TiB for an array with shape (100000000000000,) and data type float64"),
    ],
)
def test_memory_that_is_too_small_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    def refuse(*_: object) -> None:
        raise cause

    monkeypatch.setattr("snn_rules.experiments.made", refuse)
    done = trained(tmp_path)
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "to allocate" in said and "; lower --batch-size or --T, or take a smaller network" in said
    monkeypatch.setattr("snn_rules.experiments.made", lambda *_: 1 / 0)
    assert isinstance(trained(tmp_path).exception, ZeroDivisionError)
