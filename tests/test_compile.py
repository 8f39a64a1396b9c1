"""The neuron inside `torch.compile` and under DistributedDataParallel."""

import os
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import spiking_resnet
from torch import nn

import snn_rules
from snn_rules.kernels import ops

RULES = {"surrogate": {"v_threshold": 0.2}, "tssl": {}, "strsbp": {"v_threshold": 0.2}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


@pytest.fixture(autouse=True)
def fresh():
    """Networks that were compiled before count against torch's limit of recompilations."""
    torch._dynamo.reset()


def network(rule):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(4, 6), snn_rules.RuleNode(rule, **RULES[rule]), layer.Linear(6, 3))
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@every_rule
def test_the_operator_keeps_torch_s_contract(rule):
    configured = snn_rules.get_rule(rule, **RULES[rule])
    x = torch.rand(7, 2, 6, requires_grad=True)
    shapes = [(configured.delay, 2, 6) if name == "late" else (2, 6) for name in ops._states(configured)]
    state = [torch.full(shape, configured.state.get(name, 0.0)) for shape, name in zip(shapes, ops._states(configured), strict=True)]
    done = torch.library.opcheck(torch.ops.snn_rules.layer.default, (x, state, ops.key(configured)))
    assert set(done.values()) == {"SUCCESS"}
    assert ops.rule_of(ops.key(configured)) == configured


@every_rule
def test_a_whole_graph_compiles_and_learns_the_same(rule):
    net, x, w = network(rule), 4 * torch.rand(10, 2, 4), torch.randn(10, 2, 3)
    want = net(x)
    (want * w).sum().backward()
    grads, v = [p.grad.clone() for p in net.parameters()], net[1].v
    functional.reset_net(net)
    net.zero_grad()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    (out * w).sum().backward()
    torch.testing.assert_close(out, want)
    assert torch.equal(net[1].v, v)
    for p, grad in zip(net.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)
    functional.reset_net(net)
    net[1].v_threshold = 5.0  # another rule value: the graph is made again
    assert not torch.equal(compiled(x), want)


@every_rule
def test_a_spiking_resnet_compiles_whole(rule):
    torch.manual_seed(0)
    net = spiking_resnet.SpikingResNet(spiking_resnet.BasicBlock, [1, 1, 1, 1], num_classes=4, spiking_neuron=neuron.LIFNode, decay_input=False)
    functional.set_step_mode(snn_rules.convert(net, rule, v_threshold=0.2), "m")
    x, w = torch.rand(4, 2, 3, 16, 16), torch.randn(4, 2, 4)
    compiled, found = torch.compile(net, fullgraph=True, backend="aot_eager"), []
    for run in (net, compiled):
        out = run(x)
        (out * w).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
        net.zero_grad()
        functional.reset_net(net)
    assert all(g.any() for g in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_the_graph_leaves_out_is_said():
    node = snn_rules.RuleNode("tssl", step_mode="m", store_v_seq=True)
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"store_v_seq=True records nothing inside torch.compile"):
        compiled(torch.rand(5, 2, 3))


def test_event_layers_are_operators():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(1, 3, 3), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(27, 4), neuron.LIFNode())
    rule = snn_rules.convert(net, "stdbp", mode="event", revive=1.0)[1].rule
    rule.initialize(net)
    x, y, found = rule.encode(torch.rand(5, 1, 8, 8), T=1)[0], torch.arange(5) % 4, []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        out = run(x)
        rule.loss(out, y).backward()
        found.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))
    arguments = torch.rand(3, 4, requires_grad=True), torch.rand(2, 4), net[0].key
    checks = "test_schema", "test_faketensor", "test_autograd_registration"
    done = torch.library.opcheck(torch.ops.snn_rules_stdbp.first_spikes.default, arguments, test_utils=checks)
    assert set(done.values()) == {"SUCCESS"}


PROCESS = """
import sys
import torch, snn_rules
import torch.distributed as dist
from spikingjelly.activation_based import functional, layer
from torch.nn.parallel import DistributedDataParallel
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for rule in ("surrogate", "tssl", "strsbp", "stdbp"):
    torch.manual_seed(0)
    inner = torch.nn.Sequential(layer.Linear(4, 6), snn_rules.RuleNode(rule, v_threshold=0.2), layer.Linear(6, 3))
    functional.set_step_mode(inner, "m")
    net = DistributedDataParallel(inner)
    torch.manual_seed(1)
    x, w = torch.rand(10, 8, 4), torch.randn(10, 8, 3)
    half = slice(4 * rank, 4 * rank + 4)
    (net(x[:, half]) * w[:, half]).sum().backward()
    shared = [2 * p.grad for p in inner.parameters()]  # DDP averages over processes
    functional.reset_net(inner)
    inner.zero_grad()
    (inner(x) * w).sum().backward()
    assert inner[0].weight.grad.any()
    for a, p in zip(shared, inner.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-5)
dist.destroy_process_group()
print("equal")
"""


def test_two_processes_share_their_gradients(tmp_path):
    command = [sys.executable, "-c", PROCESS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == "equal", err
