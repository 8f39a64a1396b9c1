"""SpikingJelly's model factories under the rules: what is kept, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import spike_dhs, spikformer
from torch import nn

import snn_rules

RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
SMALL = {"num_classes": 3}
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def nodes(net):
    return {path: module for path, module in net.named_modules() if isinstance(module, snn_rules.RuleNode)}


def test_the_neurons_of_a_factory_keep_their_thresholds():
    net = snn_rules.build("spikformer_ti", rule="tssl", img_size_h=32, img_size_w=32, **SMALL)
    own = {path: module for path, module in spikformer.spikformer_ti(**SMALL).named_modules() if isinstance(module, neuron.LIFNode)}
    assert {path: node.v_threshold for path, node in nodes(net).items()} == {path: module.v_threshold for path, module in own.items()}
    assert {node.v_threshold for node in nodes(net).values()} == {1.0, 0.5}
    assert {node.rule.decay_input for node in nodes(net).values()} == {True}
    undecayed = snn_rules.build("spikformer_ti", rule="tssl", decay_input=False, **SMALL)
    assert {(node.v_threshold, node.rule.decay_input) for node in nodes(undecayed).values()} == {(1.0, False), (0.5, False)}
    assert {(n.v_threshold, n.rule.tau_m) for n in nodes(snn_rules.build("ms_resnet18", rule="strsbp", **SMALL)).values()} == {(0.5, 4 / 3)}


def test_the_neuron_of_ottt_gives_way():
    net = snn_rules.build("ottt_spiking_vggws", rule="tssl", **SMALL)
    assert {(node.rule.tau_m, node.rule.reset, node.step_mode) for node in nodes(net).values()} == {(2.0, "subtract", "m")}
    assert net(torch.rand(2, 2, 3, 32, 32)).shape == (2, 2, 3)
    with pytest.raises(snn_rules.RuleError, match=r"'features.1' has v_reset=None .* build it with v_reset=0.0"):
        snn_rules.build("ottt_spiking_vggws", rule="strsbp", **SMALL)
    assert nodes(snn_rules.build("ottt_spiking_vggws", rule="strsbp", v_reset=0.0, **SMALL))
    assert snn_rules.convert(nn.Sequential(neuron.SLTTLIFNode(tau=3.0), spike_dhs.save_v_LIFNode()), "tssl")[0].rule.tau_m == 3.0


def snas():
    matrix = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 4], [0, 0, 0, 1], [0, 0, 0, 0]])
    size = SimpleNamespace(timestep=2, second_avgpooling=2, dataset="cifar10", celltype="backward", threshold=1.0, tau=4 / 3)
    return {"args": size, "con_mat": matrix}


def test_a_model_that_goes_through_time_itself():
    with pytest.raises(snn_rules.RuleError, match=r"the network is an SNASNet, which runs step by step, but 'tssl' .* use a model in step mode 'm'"):
        snn_rules.build("SNASNet", rule="tssl", **snas())
    torch.manual_seed(0)
    net = snn_rules.build("SNASNet", rule="surrogate", **snas())
    assert {node.step_mode for node in nodes(net).values()} == {"s"}
    torch.manual_seed(0)
    stock = snn_rules.conversion._factory("SNASNet")(**snas())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.eval()(x), stock.eval()(x))
    functional.reset_net(net)


@pytest.mark.parametrize("name", ["ms_resnet18", "spikformer_ti", "qkformer_10_384", "masnn_dvs128_gesture"])
def test_spike_times_are_refused_where_the_model_averages_them(name):
    with pytest.raises(snn_rules.RuleError, match=r"convert: the network \(\w+\) averages its output over time, but 'stdbp'.* use a model whose"):
        snn_rules.build(name, rule="stdbp", **SMALL)


def test_an_average_is_refused_by_its_path_and_only_if_the_rule_is_alone():
    net = nn.Sequential(spikformer.spikformer_ti(**SMALL))
    with pytest.raises(snn_rules.RuleError, match=r"convert: '0' \(Spikformer\) averages"):
        snn_rules.convert(net, "stdbp")
    assert not nodes(net)
    assert len(nodes(snn_rules.convert(net, "stdbp", where="0.patch_embed"))) == 5


def test_a_name_that_is_nearly_right():
    with pytest.raises(snn_rules.RuleError, match=r"no model factory 'spiking_resnet_18' \(did you mean 'spiking_resnet18'\?\)"):
        snn_rules.build("spiking_resnet_18", rule="tssl")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["sew_resnet18", "spiking_vgg11_bn", "MNISTNet", "sdt_8_384", "maxformer_cifar", "ms_resnet18"])
@pytest.mark.filterwarnings("ignore:'surrogate_function=Rect' has no meaning")  # MS-ResNet's, which the baseline has not
def test_conversion_keeps_parameters_hooks_optimiser_and_keys(name, rule):
    kwargs = {"MNISTNet": {"channels": 4}, "sew_resnet18": {"cnf": "ADD", **SMALL}}.get(name, SMALL)
    net = snn_rules.build(name, rule="surrogate", **kwargs)
    keys, parameters, modules = list(net.state_dict()), list(net.named_parameters()), list(net.modules())
    optimizer = torch.optim.Adam(net.parameters())
    state = {p: {"step": torch.tensor(1.0), "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)} for _, p in parameters}
    optimizer.state.update(state)
    first = next(iter(nodes(net).values()))
    called = []
    first.register_forward_hook(lambda *_: called.append(1))
    averages = name in ("sdt_8_384", "maxformer_cifar", "ms_resnet18")
    if rule == "stdbp" and averages:
        with pytest.raises(snn_rules.RuleError, match="averages"):
            snn_rules.convert(net, rule)
        assert {node.rule.name for node in nodes(net).values()} == {"surrogate"}
    else:
        assert snn_rules.convert(net, rule) is net
        assert {node.rule.name for node in nodes(net).values()} == {rule}
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(a == b and p is q for (a, p), (b, q) in zip(net.named_parameters(), parameters, strict=True))
    assert all(optimizer.state[p] is state[p] for p in net.parameters())
    first(torch.rand(2, 1, 4))
    assert called
