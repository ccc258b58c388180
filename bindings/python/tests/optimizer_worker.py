"""Run by torchrun: a ZeRO-3 checkpoint of two ranks goes into a model that FSDP2 shards over these, the optimizer's states included."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import shardwright
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

source = Path(sys.argv[1])
expected = torch.load(source / "expected.pt", weights_only=False)


class Layer(torch.nn.Module):
    """A module with parameters of any names, dots included."""

    def add(self, name, tensor, trained):
        head, _, rest = name.partition(".")
        if rest:
            if not hasattr(self, head):
                self.add_module(head, Layer())
            getattr(self, head).add(rest, tensor, trained)
        elif tensor.is_floating_point() and trained is not None:
            self.register_parameter(head, torch.nn.Parameter(torch.zeros(tensor.shape, dtype=tensor.dtype), requires_grad=trained))
        else:
            self.register_buffer(head, torch.zeros_like(tensor))


dist.init_process_group("gloo")
model = Layer()
for trained, tensors in ((True, expected["params"]), (False, expected["frozen"]), (None, expected["buffers"])):
    for name, tensor in tensors.items():
        model.add(name, tensor.float() if trained else tensor, trained)
frozen = [p for p in model.parameters() if not p.requires_grad]
fully_shard(model, ignored_params=set(frozen))
report = shardwright.fill(model, source, round_to=None, unexpected="ignore")
parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
optimizer = torch.optim.AdamW(list(parameters.values()), lr=1.0)
states = shardwright.fill_optimizer(model, optimizer, source)
assert states.filled and not states.missing, states
assert states.bytes_read >= states.bytes_needed > 0, states
for name, parameter in parameters.items():
    whole = parameter.full_tensor()
    assert torch.equal(whole, expected["params"][name]), name
    state = optimizer.state[parameter]
    assert float(state["step"]) == expected["steps"], name
    for key in ("exp_avg", "exp_avg_sq"):
        assert state[key].placements == parameter.placements, name
        assert torch.equal(state[key].full_tensor(), expected[key][name]), (name, key)
# The states are the optimizer's own: it goes on from them.
for parameter in parameters.values():
    parameter.grad = torch.zeros_like(parameter)
optimizer.step()
assert {float(optimizer.state[p]["step"]) for p in parameters.values()} == {expected["steps"] + 1.0}
other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
try:
    shardwright.fill_optimizer(model, other, source)
except shardwright.PlanError as error:
    assert "none of the model's" in str(error)
else:
    raise AssertionError("a parameter that is none of the model's was filled")
print(f"rank {dist.get_rank()}: states are exact")
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # without the interpreter's own end, during which gloo's threads may drop their last tensors, whereupon torch 2.15 aborts
