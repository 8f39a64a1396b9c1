"""The kit; the eligibility traces of every synapse, as the paper computes them online; and what the reverse scan keeps."""

import numpy as np
import pytest
import torch
from snn_rules_eprop import reference

import snn_rules
from snn_rules.testing import check_rule, parametrize_with_checks

OPTIONS = [{}, {"beta": 0.3, "tau_a": 30.0}, {"beta": 0.3, "reset": "zero", "t_ref": 0}]


@parametrize_with_checks(["eprop"])
def test_kit(rule, check):
    check(rule)


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_adaptation_and_the_other_reset(options):
    check_rule(snn_rules.get_rule("eprop", **options), only=["equals_its_reference", "cpu_kernels_equal_eager", "rows_are_independent"])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recurrent_layer_learns_from_eligibility_traces(options):
    """dE/dW_ji = sum_t L_j e_ji of the recurrent and of the input weights: no error passes through the recurrent ones."""
    torch.manual_seed(0)
    T, inputs, neurons = 25, 3, 5
    synapse = torch.nn.Linear(inputs, neurons, bias=False, dtype=torch.float64)
    node = snn_rules.RecurrentNode(neurons, "eprop", **options).double()
    torch.nn.init.normal_(synapse.weight, 0.5, 0.5)
    torch.nn.init.normal_(node.weight, 0.0, 0.6)
    trains, signal = (torch.rand(T, 1, inputs) < 0.4).double(), torch.randn(T, 1, neurons, dtype=torch.float64)
    out = node(synapse(trains))
    (out * signal).sum().backward()

    arriving = synapse(trains)[:, 0].detach().numpy()
    weight, wanted = node.weight.detach().numpy(), signal[:, 0].numpy()
    spikes, recurrent = reference.layer(node.rule, arriving, weight, wanted)
    feed = np.broadcast_to(trains[:, 0].numpy()[:, None, :], (T, neurons, inputs))
    _, below = reference.layer(node.rule, arriving, weight, wanted, feed)
    assert 0.1 < spikes.mean() < 0.6
    np.testing.assert_array_equal(out[:, 0].detach().numpy(), spikes)
    np.testing.assert_allclose(node.weight.grad.numpy(), recurrent, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(synapse.weight.grad.numpy(), below, rtol=1e-10, atol=1e-12)


def test_the_reverse_scan_keeps_one_number_a_neuron_and_step():
    """Forward, e-prop has two traces a synapse; the scan has the layer's input, whatever the number of synapses."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    x = torch.rand(50, 4, 30, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        snn_rules.RuleNode("eprop", beta=0.3, step_mode="m")(x * 1.0)
    assert sum(kept.values()) <= x.numel() + 8


def test_learns_in_a_recurrent_network():
    """Which of two patterns came first: what is asked for at the end, the layer must remember."""
    torch.manual_seed(1)
    synapse, node, readout = torch.nn.Linear(4, 30), snn_rules.RecurrentNode(30, "eprop", beta=0.2), torch.nn.Linear(30, 2)
    y = torch.arange(64) % 2
    x = torch.zeros(20, 64, 4)
    for n, order in enumerate(y.tolist()):
        x[:5, n, 2 * order : 2 * order + 2] = x[8:13, n, 2 - 2 * order : 4 - 2 * order] = 1.0
    x = x * (torch.rand(x.shape) < 0.7)
    parameters = [*synapse.parameters(), *node.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(60):
        node.reset()
        out = readout(node(2 * synapse(x))).sum(0)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
    assert (out.argmax(1) == y).float().mean() > 0.9
