"""The lens: equal rules are equal, a flipped sign is seen, every number can be had by hand, the network stays as it was."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from typer.testing import CliRunner

import snn_rules
from snn_rules import RuleError, compare_gradients, data
from snn_rules.cli import app
from snn_rules.lens_report import tables
from snn_rules.ops import heaviside, spike
from snn_rules.registry import Registry
from snn_rules.surrogate import Surrogate

pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")
FAST = ["--network", "8-10", "--samples", "20", "--T", "6", "--steps", "0.01,0.1"]


@pytest.fixture
def flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule "flipped": the baseline, with the sign of every neuron's slope wrong."""
    for name, value in {"_registry": (own := Registry()), "rules": own.rules, "register": own.register}.items():
        monkeypatch.setattr(f"snn_rules.registry.{name}", value)

    @dataclass(frozen=True)
    class Flipped(Surrogate):
        """Learns the wrong way."""

        name = "flipped"

        def step(self, m, x):  # type: ignore[no-untyped-def]
            u = (1 - 1 / self.tau_m) * m.v + x
            s = spike(u - self.v_threshold, -self.slope(u - self.v_threshold))
            return s, {"v": u * (1.0 - heaviside(u - self.v_threshold))}, {}

    own.register(Flipped)


def net(*widths: int) -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential()
    for number, (before, after) in enumerate(pairwise(widths), 1):
        made.add_module(f"dense{number}", nn.Linear(before, after))
        made.add_module(f"neuron{number}", neuron.LIFNode(decay_input=False))
        nn.init.uniform_(made[-2].weight, -0.5, 1.0)
    return made


def batch(samples: int = 7, features: int = 5) -> tuple[Tensor, Tensor]:
    return torch.rand(samples, features, generator=torch.Generator().manual_seed(1)), torch.arange(samples) % 3


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_a_rule_agrees_with_itself() -> None:
    seen = compare_gradients(net(5, 6, 3), *batch(), ["surrogate", ("surrogate", {"tau_m": 2.0})])
    assert seen.rules == ("surrogate", "surrogate:tau_m=2.0") and seen.layers == ("dense1", "dense2", "all")
    assert (seen.norms > 0).all() and seen.same_forward
    torch.testing.assert_close(seen.cosine, torch.ones_like(seen.cosine), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen.ratio, torch.ones_like(seen.ratio), atol=1e-12, rtol=0)
    assert torch.equal(seen.loss[0], seen.loss[1]) and torch.equal(seen.loss[:, 0], seen.loss[:, 1])


def test_a_flipped_sign_is_seen_in_its_layer(flipped: None) -> None:
    rules = [("surrogate", {"detach_reset": True}), "flipped"]
    one = compare_gradients(net(5, 3), *batch(), rules)
    assert one.cosine[:, 0, 1].tolist() == pytest.approx([-1, -1]) and one.same_forward
    two = compare_gradients(net(5, 6, 3), *batch(), rules)
    assert two.cosine[:2, 0, 1].tolist() == pytest.approx([1, -1])  # through two neurons the sign is right again
    assert two.ratio[:, 0, 1].tolist() == pytest.approx([1, 1, 1]) and two.cosine[2, 0, 1].abs() < 1


def test_a_gradient_of_zero_has_no_cosine() -> None:
    dead = net(5, 6, 3)
    nn.init.constant_(dead.dense2.weight, -1.0)  # the output is silent: under ST-RSBP's silent="zero" nothing learns
    with pytest.warns(UserWarning, match="gradient of exactly zero"):
        seen = compare_gradients(dead, *batch(), ["surrogate", ("strsbp", {"silent": "zero"})])
    assert seen.norms[-1, 1] == 0 and seen.cosine[:, 0, 1].isnan().all() and seen.ratio[:, 0, 1].isnan().all()
    assert torch.equal(seen.loss[:, 1], seen.loss[:, 1, :1].expand_as(seen.loss[:, 1]))  # no direction, no change


def by_hand(stock: nn.Module, name: str, x: Tensor, y: Tensor, T: int | None) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    made, rule = snn_rules.convert(copy.deepcopy(stock), name), snn_rules.get_rule(name)
    functional.set_step_mode(made, "m")
    sent: list[Tensor] = []
    for module in made:
        if isinstance(module, snn_rules.RuleNode):
            module.register_forward_hook(lambda _, __, out: sent.append(out))
    rule.loss(made(x if T is None else x.expand(T, *x.shape)), y).backward()
    return made, [p.grad for p in made.parameters() if p.grad is not None], sent


def test_the_numbers_by_hand() -> None:
    stock, (x, y), T = net(5, 6, 3), batch(), 6
    seen = compare_gradients(stock, x, y, ["surrogate", "tssl", "strsbp"], T=T, steps=[0.2, 0.05], seed=4)
    nets, grads, sent = zip(*(by_hand(stock, name, x, y, T) for name in seen.rules), strict=True)
    for rows, layers in ((slice(0, 2), 0), (slice(2, 4), 1), (slice(0, 4), 2)):
        vectors = [torch.cat([g.flatten() for g in grad[rows]]).double() for grad in grads]
        for a in range(3):
            assert seen.norms[layers, a].item() == pytest.approx(vectors[a].norm().item())
            for b in range(3):
                assert seen.cosine[layers, a, b].item() == pytest.approx(torch.cosine_similarity(vectors[a], vectors[b], dim=0).item())
                assert seen.ratio[layers, a, b].item() == pytest.approx((vectors[b].norm() / vectors[a].norm()).item())
    for n, path in enumerate(("neuron1", "neuron2")):
        assert seen.differs[path] == pytest.approx([(sent[r][n] != sent[0][n]).double().mean().item() for r in range(3)])
        assert seen.firing[path] == pytest.approx([sent[r][n].double().mean().item() for r in range(3)])
    assert not any(seen.differs[path][1] for path in seen.differs) and seen.differs["neuron1"][2] > 0 and not seen.same_forward

    start = torch.cat([p.flatten() for p in stock.parameters()]).detach()
    assert seen.steps == (0.0, 0.05, 0.2) and seen.directions == ("surrogate", "tssl", "strsbp", "random")
    for judge in range(3):
        rule, made = snn_rules.get_rule(seen.rules[judge]), nets[judge]
        for d in range(3):
            direction = torch.cat([g.flatten() for g in grads[d]])
            for s, length in enumerate(seen.steps):
                nn.utils.vector_to_parameters(start - length * start.norm() * direction / direction.norm(), made.parameters())
                functional.reset_net(made)
                out = made(x.expand(T, *x.shape))
                assert seen.loss[judge, d, s].item() == pytest.approx(rule.loss(out, y).item(), rel=1e-5)
                assert seen.accuracy[judge, d, s].item() == pytest.approx((rule.predict(out) == y).float().mean().item())
    torch.testing.assert_close(seen.fall, 1 - seen.loss.min(-1).values / seen.loss[..., 0])


def test_the_loss_falls_by_the_norm_of_an_exact_gradient() -> None:
    stock = net(5, 6, 3).double()
    size = torch.cat([p.flatten() for p in stock.parameters()]).norm().item()
    x, y = batch()
    seen = compare_gradients(stock, x.double(), y, [("stdbp", {"mode": "event"})], steps=[1e-5])
    assert seen.norms[-1, 0] > 1e-3
    assert ((seen.loss[0, 0, 0] - seen.loss[0, 0, 1]) / (1e-5 * size)).item() == pytest.approx(seen.norms[-1, 0].item(), rel=1e-3)


def test_a_common_loss_and_own_codes() -> None:
    stock, (x, y) = net(5, 6, 3), batch()
    common = compare_gradients(stock, x, y, ["surrogate", "tssl"], T=6, loss="surrogate")
    assert common.losses == ("surrogate", "surrogate") and torch.equal(common.loss[0], common.loss[1])  # same spikes, same loss
    own = compare_gradients(stock, x, y, ["surrogate", "stdbp"], own_code=True)
    assert all(math.isnan(own.differs[path][1]) for path in own.differs) and not own.same_forward  # 10 steps, and 32
    times = compare_gradients(stock, x, y, ["surrogate", ("stdbp", {"mode": "event"})])
    assert math.isnan(times.firing["neuron1"][1]) and (times.norms > 0).all()


def test_samples_that_are_spike_trains() -> None:
    trains, y = (torch.rand(7, 6, 5, generator=torch.Generator().manual_seed(2)) < 0.4).float(), batch()[1]  # [N, S, F]
    asked = []

    def encode(rule: snn_rules.LearningRule, x: Tensor, T: int) -> Tensor:
        asked.append((rule.name, T))
        return x.transpose(0, 1)

    seen = compare_gradients(net(5, 6, 3), trains, y, ["surrogate", "tssl"], T=6, encode=encode)
    _, grads, sent = by_hand(net(5, 6, 3), "tssl", trains.transpose(0, 1), y, None)
    assert asked == [("surrogate", 6), ("surrogate", 6)] and seen.firing["neuron2"][1] == pytest.approx(sent[1].double().mean().item())
    assert seen.norms[-1, 1].item() == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item(), rel=1e-5)


# ---- what stays as it was -----------------------------------------------------------------------------------------------


def test_the_network_and_the_generator_stay_as_they_were() -> None:
    stock = nn.Sequential(layer.Linear(5, 6), layer.BatchNorm1d(6), neuron.LIFNode(decay_input=False), layer.Dropout(0.5), layer.Linear(6, 3))
    stock.append(neuron.LIFNode(decay_input=False))
    functional.set_step_mode(stock, "m")
    before, modes = copy.deepcopy(stock.state_dict()), [module.training for module in stock.modules()]
    identities, state = [id(p) for p in stock.parameters()], torch.get_rng_state()
    first = compare_gradients(stock, *batch(), ["surrogate", "strsbp"])
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first.loss, compare_gradients(stock, *batch(), ["surrogate", "strsbp"]).loss)
    assert all(torch.equal(before[key], value) for key, value in stock.state_dict().items()) and identities == [id(p) for p in stock.parameters()]
    assert all(p.grad is None for p in stock.parameters()) and modes == [module.training for module in stock.modules()]
    assert type(stock[2]) is neuron.LIFNode and isinstance(stock[2].v, float)


@pytest.mark.parametrize("node", [lambda: neuron.LIFNode(decay_input=False), neuron.IFNode, lambda: snn_rules.RuleNode("tssl")])
def test_in_the_middle_of_a_step(node: Callable[[], nn.Module]) -> None:
    made = nn.Sequential(nn.Linear(5, 3), node())
    functional.set_step_mode(made, "m")
    out = made(batch()[0].expand(4, 7, 5))
    v = made[1].v.clone()
    compare_gradients(made, *batch(), ["tssl", "strsbp"])
    out.sum().backward()  # the graph is still there
    assert torch.equal(made[1].v, v) and made[0].weight.grad is not None


def test_a_factory_recurrent_layers_and_progress() -> None:
    told: list[tuple[int, int]] = []
    made = nn.Sequential(nn.Linear(5, 6), snn_rules.RecurrentNode(6, "surrogate"), nn.Linear(6, 3), snn_rules.RuleNode("surrogate"))
    seen = compare_gradients(lambda: made, *batch(), ["surrogate", "tssl"], T=4, steps=[0.1], on_step=lambda *at: told.append(at))
    assert seen.layers == ("0", "1", "2", "all") and set(seen.firing) == {"1", "3"}
    assert told == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rules": []}, "rules none; name at least one"),
        ({"rules": ["tssl", "tssl"]}, "rules tssl, tssl; name at least one, and each once"),
        ({"rules": "tssl"}, r"^compare_gradients: rules='tssl' should be a list of them: \['tssl'\]$"),
        ({"rules": ["tsl"]}, "unknown rule 'tsl'"),
        ({"target": torch.arange(3)}, r"x is \[7, 5\] and target \[3\]; pass samples"),
        ({"net": lambda: 3}, "the network is a int; pass a module"),
        ({"net": net(5, 3).requires_grad_(False)}, "Sequential has no parameters that learn"),
        ({"steps": [0.1, -1]}, r"steps \[0.1, -1\] should be numbers above 0"),
        ({"loss": "tssl", "rules": ["surrogate", ("stdbp", {"mode": "event"})]}, "loss of 'tssl' reads spikes, but 'stdbp:mode=event' sends times"),
        ({"x": torch.full((7, 5), math.nan)}, "neuron 'neuron1' .* the input holds nan"),
    ],
)
def test_refusals(change: dict[str, object], says: str) -> None:
    x, y = batch()
    with pytest.raises(RuleError, match=says):
        compare_gradients(**{"net": net(5, 3), "x": x, "target": y, "rules": ["tssl"], **change})  # type: ignore[arg-type]


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snn_rules.console.out.width", 200)
    result = CliRunner().invoke(app, ["lens", "--rules", "surrogate,tssl,stdbp:mode=event", *FAST, "--out", "here"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.startswith("8-10 on digits, 20 samples, after 1 epoch by surrogate\n")
    assert "cosines and losses compare different networks" in result.stdout and "spike times" in result.stdout
    report = json.loads(Path("here/lens.json").read_text())
    assert report["rules"] == ["surrogate", "tssl", "stdbp:mode=event"] and report["layers"] == ["dense1", "dense2", "all"]
    cosine, norms = report["cosine"][0][0][1], report["norms"][0]
    assert ["dense1", "surrogate,", "tssl", f"{cosine:+.3f}", f"{norms[0] / norms[1]:.3g}", ":", "1"] in lines
    assert report["differs"]["neuron1"] == [0.0, 0.0, None] and report["command"].startswith("snn-rules lens --rules surrogate")
    assert ["random", *(word for s in (1, 2) for word in (f"{report['loss'][0][3][s]:.4g}", f"{report['accuracy'][0][3][s]:.0%}"))] in lines
    assert Path("here/lens.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_at_first_weights_of_a_silent_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["lens", "--rules", "tssl", *FAST, "--epochs", "0"])
    assert result.exit_code == 0 and "at its first weights" in result.stdout and "No step changes the loss under tssl" in result.stdout
    assert [path.name for path in Path("runs").iterdir()] == ["digits-lens-1"]


def test_the_command_on_spike_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trains = (torch.rand(30, 6, 5, generator=torch.Generator().manual_seed(2)) < 0.4).to(torch.uint8)
    held = data.Data("heard", trains[:20], torch.arange(20) % 3, trains[20:], torch.arange(10) % 3, 3, temporal=True)
    monkeypatch.setattr(data, "load", lambda *_: held)
    result = CliRunner().invoke(app, ["lens", "--rules", "tssl,surrogate", *FAST, "--network", "8-3", "--dataset", "heard", "--out", "here"])
    assert result.exit_code == 0 and result.stdout.startswith("8-3 on heard, 20 samples, after 1 epoch by tssl\n"), result.output
    assert "All rules make the same spikes here" in result.stdout and json.loads(Path("here/lens.json").read_text())["T"] == 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rules", "tsl"], "unknown rule 'tsl'"),
        (["--rules", "tssl:tau_m"], "option 'tau_m' should be KEY=VALUE"),
        (["--rules", "tssl", "--steps", "0.1,x"], "--steps '0.1,x' should be numbers"),
        (["--rules", "tssl", "--steps", "0"], "steps [0.0] should be numbers above 0"),
        (["--rules", "tssl", "--samples", "0"], "--samples 0 should be at least 1"),
        (["--rules", "tssl", "--epochs", "-1"], "--epochs -1 should be 0"),
        (["--rules", "surrogate,stdbp:mode=event", "--network", "4C3-P2-10"], "'pool2' (AvgPool2d) has no meaning for spike times"),
    ],
)
def test_refusals_of_the_command_are_one_line(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["lens", *FAST, *words])
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not Path("runs").exists()


def test_one_rule_alone_is_measured() -> None:
    seen = compare_gradients(net(5, 3), *batch(), ["tssl"])
    assert seen.directions == ("tssl", "random") and len(tables(seen)) == 2
