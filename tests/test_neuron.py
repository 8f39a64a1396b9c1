"""The neuron as a user of SpikingJelly expects it, and what it says when something is wrong."""

import copy
import pickle
import warnings

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate

import snn_rules
from snn_rules.rule import _warned

RULES = {"surrogate": {}, "tssl": {}, "strsbp": {"v_threshold": 1.0}, "stdbp": {}}
every_rule = pytest.mark.parametrize("rule", RULES)


def node(rule, **options):
    return snn_rules.RuleNode(rule=rule, step_mode="m", **{**RULES[rule], **options})


def signal(T=12, *shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(T, *(shape or (3, 5)), dtype=dtype) + 0.3


@every_rule
@pytest.mark.parametrize("shape", [(1,), (2, 7), (2, 3, 4, 4), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_output_is_spikes_of_the_input_s_shape_and_dtype(rule, shape, dtype):
    x = signal(9, *shape, dtype=dtype).requires_grad_()
    n = node(rule)
    out = n(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert set(out.detach().unique().tolist()) <= {0.0, 1.0}
    assert n.v.dtype == (dtype if dtype == torch.float64 else torch.float32)
    (out * signal(9, *shape)).sum().backward()
    assert x.grad.dtype == dtype and torch.isfinite(x.grad).all()


def test_surrogate_is_spikingjelly_s_lifnode():
    for kind, function in (("sigmoid", surrogate.Sigmoid()), ("atan", surrogate.ATan())):
        for options in ({}, {"tau": 4.0, "decay_input": False, "v_reset": None}, {"detach_reset": True, "v_threshold": 0.7}):
            x = signal(20, 4, 30)
            grads = []
            ours = snn_rules.RuleNode(rule="surrogate", surrogate=kind, alpha=function.alpha, step_mode="m", **options)
            for n in (neuron.LIFNode(surrogate_function=function, step_mode="m", **options), ours):
                leaf = x.clone().requires_grad_()
                out = n(leaf)
                (out * torch.arange(20.0).view(-1, 1, 1)).sum().backward()
                grads.append((out.detach(), leaf.grad))
            assert torch.equal(grads[0][0], grads[1][0])
            torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-4, atol=1e-5)


@every_rule
def test_no_parameters_no_buffers_and_memories_that_reset(rule):
    n = node(rule)
    assert not n.state_dict() and isinstance(n, neuron.BaseNode)
    x = signal()
    first = n(x)
    assert n.v.shape == x.shape[1:] and not n.v.requires_grad
    functional.reset_net(n)
    assert n.v == 0.0
    assert torch.equal(n(x), first)
    assert n(signal(12, 2, 5)).shape == (12, 2, 5)  # another batch size starts from rest


@every_rule
def test_deepcopy_and_pickle_with_a_live_graph(rule):
    n = node(rule)
    out = n(signal().requires_grad_())
    for twin in (copy.deepcopy(n), pickle.loads(pickle.dumps(n))):
        assert torch.equal(twin.v, n.v)
        functional.reset_net(twin)
        assert torch.equal(twin(signal()), out)
    (out * signal()).sum().backward()


@every_rule
def test_store_v_seq(rule):
    n = node(rule, store_v_seq=True)
    n(signal())
    assert n.v_seq.shape == (12, 3, 5) and torch.equal(n.v_seq[-1], n.v)


@every_rule
def test_nothing_is_kept_without_a_gradient(rule):
    n = node(rule)
    with torch.no_grad():
        assert n(signal().requires_grad_()).grad_fn is None
    assert n(signal()).grad_fn is None


@every_rule
def test_non_contiguous_and_expanded_inputs(rule):
    x = signal(5, 3, 12)
    want = node(rule)(x)
    assert torch.equal(node(rule)(x.transpose(0, 2).contiguous().transpose(0, 2)), want)
    constant = torch.full((1, 2), 0.8)
    assert torch.equal(node(rule)(constant.expand(6, 1, 2)), node(rule)(constant.repeat(6, 1, 1)))


@every_rule
def test_samples_are_independent(rule):
    x = signal(10, 4, 6)
    assert torch.equal(node(rule)(x)[:, 2], node(rule)(x[:, 2:3])[:, 0])


@every_rule
def test_single_steps_in_inference_are_the_train(rule):
    x = signal()
    want, n = node(rule)(x), node(rule)
    n.step_mode = "s"
    assert torch.equal(torch.stack([n(x_t) for x_t in x]), want)


def test_single_steps_learn_only_where_the_rule_can():
    x = signal()
    n = node("surrogate")
    leaf = x.clone().requires_grad_()
    n(leaf).sum().backward()
    want = leaf.grad
    n = node("surrogate")
    n.step_mode = "s"
    leaf = x.clone().requires_grad_()
    torch.stack([n(x_t) for x_t in leaf.unbind(0)]).sum().backward()
    torch.testing.assert_close(leaf.grad, want)
    for rule in ("tssl", "strsbp", "stdbp"):
        n = node(rule)  # no refusal while it is made
        n.step_mode = "s"
        message = rf"step mode 's', but '{rule}' learns from the whole spike train: call functional.set_step_mode\(net, 'm'\)"
        with pytest.raises(snn_rules.RuleError, match=message):
            n(x[0].clone().requires_grad_())


def test_attributes_can_be_set_as_on_a_lifnode():
    """They did nothing, in silence."""
    x = 3 * torch.rand(6, 2, 5)
    set_later, made = node("tssl"), node("tssl", tau=3.0, v_threshold=0.7)
    set_later.tau, set_later.v_threshold = 3.0, 0.7
    assert set_later.tau == set_later.tau_m == 3.0
    assert torch.equal(set_later(x), made(x))
    baseline = node("surrogate", detach_reset=True)
    assert baseline.detach_reset is True
    baseline.detach_reset, baseline.reset = False, "subtract"
    assert baseline.rule == snn_rules.get_rule("surrogate", reset="subtract") and baseline.v_reset is None
    baseline.reset = "zero"
    assert baseline.v_reset == 0.0
    ours, theirs = node("surrogate"), neuron.LIFNode(step_mode="m")
    ours.v = theirs.v = 0.9  # a number is the potential of them all
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("rule", "name", "value", "message"),
    [
        ("tssl", "tau", -1.0, "tau_m=-1.0 should lie between"),
        ("tssl", "v_reset", 0.5, r"v_reset=0.5 comes too late; the neuron was made with v_reset=0.0"),
        ("surrogate", "surrogate_function", surrogate.ATan(), "surrogate_function has no meaning here; the rule's options are .*alpha"),
        ("stdbp", "mode", "event", "mode='event' makes another neuron of it"),
        ("tssl", "rule", snn_rules.get_rule("stdbp"), r"rule='stdbp' comes too late; call snn_rules.convert\(net, that rule\)"),
        ("tssl", "v", "a", r"v='a' should be a tensor, or a number for all neurons"),
    ],
)
def test_attributes_that_cannot_be_set(rule, name, value, message):
    with pytest.raises(snn_rules.RuleError, match=message):
        setattr(node(rule), name, value)


def test_a_reset_is_changed_only_where_the_rest_stays():
    n = node("surrogate", v_reset=0.5)
    n.reset = "zero"  # which it is
    with pytest.raises(snn_rules.RuleError, match=r"reset='subtract' comes too late; the neuron was made with v_reset=0.5: make another"):
        n.reset = "subtract"
    assert n.v_reset == 0.5 and n.rule.reset == "zero"


def test_keywords_of_lifnode():
    assert node("tssl", tau=4).rule.tau_m == 4.0  # int becomes float
    assert node("tssl", v_reset=None).rule.reset == "subtract"
    assert snn_rules.RuleNode("strsbp", nu=3).v_threshold == 3.0
    n = node("tssl", v_threshold=1.0, v_reset=-0.5)
    assert (n.v_threshold, n.rule.v_threshold) == (1.0, 1.5)
    n.v_threshold = 2.0
    assert n.rule.v_threshold == 2.5
    _warned.clear()
    with pytest.warns(UserWarning) as said:
        node("tssl", surrogate_function=surrogate.ATan(), detach_reset=True, backend="cupy")
        node("tssl", backend="cupy")
    assert sorted(str(w.message) for w in said) == [
        f"{name!r} has no meaning for rule 'tssl' and is ignored" for name in ("backend", "detach_reset", "surrogate_function")
    ]
    with pytest.warns(UserWarning, match="'tau' has no meaning for rule 'stdbp'"):
        node("stdbp", tau=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"RuleNode: pass rule=, one of stdbp, strsbp, surrogate, tssl"),
        ({"rule": "tsl"}, r"unknown rule 'tsl' \(did you mean 'tssl'\?\); installed are stdbp, strsbp, surrogate, tssl"),
        ({"rule": 3}, r"rule=3 should be a name, one of stdbp"),
        ({"rule": "tssl", "taum": 2.0}, r"tssl: unknown option 'taum' \(did you mean 'tau_m'\?\)"),
        ({"rule": "tssl", "tau": 2.0, "tau_m": 3.0}, r"tssl: 'tau_m' is given twice"),
        ({"rule": "tssl", "tau_m": 0.5}, r"tssl: tau_m=0.5 should lie between 1 and inf"),
        ({"rule": "tssl", "warmup": "on"}, r"tssl: warmup='on' is not one of 'element', 'layer', 'off'"),
        ({"rule": "tssl", "tau_m": "5"}, r"tssl: tau_m='5' should be a number"),
        ({"rule": "tssl", "v_reset": "a"}, r"tssl: v_reset='a' should be a number, or None for a reset by subtraction"),
        ({"rule": "tssl", "v_reset": float("nan")}, r"tssl: v_reset=nan should be a number, or None for a reset by subtraction"),
        ({"rule": "strsbp", "v_reset": None}, r"strsbp: v_reset=None means reset by subtraction, which this rule does not know"),
        ({"rule": "tssl", "tau_m": float("inf"), "decay_input": True}, r"tssl: decay_input=True .* needs a finite one"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(snn_rules.RuleError, match=message):
        snn_rules.RuleNode(**options)


@every_rule
def test_bad_input(rule):
    n = node(rule)
    cases = [
        (torch.ones(3, 4, dtype=torch.int64), r"the input is dtype torch.int64; pass a floating-point tensor"),
        ([1.0], r"the input is a list"),
        (torch.ones(3, 4).to_sparse(), r"the input has the layout torch.sparse_coo; pass a dense tensor, x.to_dense\(\)"),
        (torch.ones(3, 4).to_mkldnn(), r"the input has the layout torch._mkldnn; pass a dense tensor, x.to_dense\(\)"),
        (torch.ones(7), r"the input has shape \[7\]; in step mode 'm' pass \[T, N, \*\]"),
        (torch.ones(0, 4), r"the input has shape \[0, 4\], T = 0 time steps"),
    ]
    for bad, position in ((float("nan"), (2, 1)), (float("inf"), (0, 0)), (-float("inf"), (4, 2))):
        x = torch.zeros(6, 3)
        x[position] = bad
        cases.append((x, rf"the input holds {bad} at \[{position[0]}, {position[1]}\]; look at the layer before it"))
    for x, message in cases:
        with pytest.raises(snn_rules.RuleError, match=rf"RuleNode \({rule}\): {message}"):
            n(x)
        n.reset()


@pytest.mark.filterwarnings("ignore:.*gradient of exactly zero")  # stdbp, of a loss of rates
@every_rule
def test_forgotten_reset(rule):
    n, x = node(rule), signal().requires_grad_()
    (n(x) * signal()).sum().backward()
    with torch.no_grad():
        n(x)  # looking on is no learning
    with pytest.raises(snn_rules.RuleError, match=r"call functional.reset_net\(net\) after each training step"):
        n(x)
    n.detach()
    (n(x) * signal()).sum().backward()  # truncated back-propagation: the train goes on
    functional.reset_net(n)
    (n(x) * signal()).sum().backward()


@pytest.mark.parametrize("rule", ["tssl", "strsbp", "stdbp"])
def test_double_backward_is_refused(rule):
    x = signal().requires_grad_()
    (grad,) = torch.autograd.grad((node(rule)(x) * signal()).sum() ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_training_goes_on_from_a_train_in_inference_mode():
    n, x = node("surrogate"), signal()
    with torch.inference_mode():
        n(x)
    leaf = x.clone().requires_grad_()
    n(leaf).sum().backward()
    assert leaf.grad.any()


def test_a_dead_layer_warns_once():
    n = node("tssl", warmup="off")
    with pytest.warns(UserWarning, match=r"RuleNode \(tssl\): .* none of its neurons can fire"):
        n(torch.zeros(4, 2, 3, requires_grad=True)).sum().backward()
    n.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n(torch.zeros(4, 2, 3, requires_grad=True)).sum().backward()


def test_a_layer_that_dies_later_warns_and_a_solved_task_does_not():
    n = node("tssl", warmup="off")

    def learn(drive, factor):
        (factor * n(torch.full((4, 2, 3), drive, requires_grad=True))).sum().backward()
        n.reset()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(9.0, 1.0)
        learn(0.0, 0.0)  # the loss asks for nothing
        learn(0.0, 1.0)  # the third pass, at which it does not look
    with pytest.warns(UserWarning, match="gave a gradient of exactly zero"):
        learn(0.0, 1.0)


def test_repr_shows_what_differs_from_the_paper():
    assert repr(snn_rules.RuleNode(rule="tssl", tau_m=4.0)) == "RuleNode(rule='tssl', tau_m=4.0, step_mode='s')"
