"""Large outputs live on recycled memory; nobody can tell."""

import copy
import gc
import pickle
import subprocess
import sys

import torch

import snn_rules
from snn_rules.kernels.buffers import PAGE, SMALLEST, Pool, memory


def test_a_block_comes_back_when_its_last_user_is_gone():
    pool = Pool(4 * PAGE)
    first = pool.take(SMALLEST)
    view = memoryview(first)
    del first
    gc.collect()
    assert pool.waiting == 0  # the view still needs it
    del view
    gc.collect()
    assert pool.waiting == SMALLEST
    again = pool.take(SMALLEST - 5)
    assert pool.waiting == 0 and len(again) >= SMALLEST - 5


def test_the_pool_is_capped():
    pool = Pool(3 * PAGE)
    blocks = [pool.take(2 * PAGE) for _ in range(3)]
    del blocks
    gc.collect()
    assert pool.waiting == 2 * PAGE


def test_tensors_of_the_pool_are_ordinary():
    x = torch.randn(3, 1 << 19)
    made = memory(x)(x).copy_(x)
    row = made[1]
    twin, loaded = copy.deepcopy(made), pickle.loads(pickle.dumps(made))
    del made
    gc.collect()
    memory(x)(x).zero_()  # takes whatever came back
    assert torch.equal(row, x[1]) and torch.equal(twin, x) and torch.equal(loaded, x)
    assert memory(x)(x[0]).data_ptr() != row.data_ptr()


def test_training_on_recycled_memory_is_the_same():
    torch.manual_seed(0)
    x, g = torch.randn(8, 4, 40000), torch.randn(8, 4, 40000)
    node, found = snn_rules.RuleNode("tssl", step_mode="m"), []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        out = node(leaf)
        out.backward(g)
        found.append((out.detach().clone(), leaf.grad.clone()))
        node.reset()
    small = x[:, :, :4000].clone().requires_grad_()
    out = node(small)
    out.backward(g[:, :, :4000])
    for spikes, grad in found:
        assert torch.equal(spikes[:, :, :4000], out) and torch.equal(grad[:, :, :4000], small.grad)


def test_the_allocator_can_be_tuned():
    code = "import snn_rules, torch; print(snn_rules.tune_cpu_allocator()); a = torch.ones(1 << 24); del a; print(float(torch.ones(1 << 24).sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(float(1 << 24))]
