"""torchrun --nproc_per_node=W gen_mesh.py OUT.json, for W = 4, 6, 8

What each rank holds of tensors whose elements are their own flat indices, on meshes of two and three axes, on gloo:
`distribute`: distribute_tensor with Shard and Replicate in every combination; `fully_shard`: FSDP2 and HSDP over parameters that are
DTensors already, on one axis (tp) or two (ep, tp).

A row is [mesh, shape, placements, ranks]. Placements are one a mesh axis, "S0" or "R", in the order of the axes; those of `fully_shard`
begin with the data-parallel axes, as torch's own placements of the result do, `_StridedShard` being "S" too. A rank is "SHAPE: VALUES", or
"SHAPE/PADDED: VALUES" with the elements of its padded buffer; values as runs, "0-5 9-14"."""
import itertools, json, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

out = sys.argv[1]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
meshes = {4: [(2, 2), (4, 1)], 6: [(2, 3), (3, 2)], 8: [(2, 4), (4, 2), (2, 2, 2)]}[world]
shapes = [(7,), (1,), (0,), (7, 3), (8, 6), (1, 5), (5, 0), (0, 3), (5, 3, 4), (2, 1, 6)]


def placements(shape, axes):
    return itertools.product([Replicate()] + [Shard(d) for d in range(len(shape))], repeat=axes)


def text(all_placements):
    return [f"S{p.dim}" if p.is_shard() or type(p).__name__ == "_StridedShard" else "R" for p in all_placements]


def held(local, padded=None):
    flat, runs = local.reshape(-1).long().tolist(), []
    for x in flat:
        if runs and x == runs[-1][1] + 1:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    size = f"{list(local.shape)}" + (f"/{padded}" if padded is not None else "")
    return f"{size}: " + " ".join(f"{a}-{b}" for a, b in runs)


def whole(shape):
    n = 1
    for d in shape:
        n *= d
    return torch.arange(n, dtype=torch.float32).reshape(shape)


def gathered(mine):
    ranks = [None] * world
    dist.all_gather_object(ranks, mine)
    return ranks


rows = dict(distribute=[], fully_shard=[])
refused = set()
local = dict(distribute=[], fully_shard=[])
for sizes in meshes:
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=tuple("abc"[: len(sizes)]))
    for shape in shapes:
        for cuts in placements(shape, len(sizes)):
            t = distribute_tensor(whole(shape), mesh, list(cuts))
            rows["distribute"].append([list(sizes), list(shape), text(cuts)])
            local["distribute"].append(held(t.to_local()))


def shards(mesh, model, data_parallel, shape, cuts, dim):
    """One parameter, cut over the model's axes, then by fully_shard."""
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(distribute_tensor(whole(shape), model, list(cuts)))
    fully_shard(module, mesh=data_parallel, shard_placement_fn=(lambda _: Shard(dim)) if dim else None)
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    padded = groups[0].fsdp_params[0].padded_sharded_param_size.numel()
    t = module.w
    assert isinstance(t, DTensor)
    return held(t.detach().to_local(), padded)


kinds = [((a, b), ("fsdp", "tp"), ("fsdp",)) for a, b in [s for s in meshes if len(s) == 2]]
if world == 8:
    kinds += [((2, 2, 2), ("replicate", "fsdp", "tp"), ("replicate", "fsdp")), ((2, 2, 2), ("fsdp", "ep", "tp"), ("fsdp",))]
for sizes, names, data_parallel in kinds:
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    over_data, over_model = mesh[data_parallel], mesh[tuple(n for n in names if n not in data_parallel)]
    for shape in shapes:
        for cuts in placements(shape, len(names) - len(data_parallel)):
            for dim in range(min(len(shape), 2)):
                first = ["R", f"S{dim}"] if len(data_parallel) == 2 else [f"S{dim}"]
                rows["fully_shard"].append([list(sizes), list(shape), first + text(cuts)])
                local["fully_shard"].append(None)
                try:
                    local["fully_shard"][-1] = shards(mesh, over_model, over_data, shape, cuts, dim)
                except (NotImplementedError, ValueError, AssertionError, RuntimeError) as e:
                    refused.add(f"{sizes} {shape} {text(cuts)} on dim {dim}: {type(e).__name__}: {str(e).splitlines()[0][:160]}")
everyone = {kind: gathered(mine) for kind, mine in local.items()}
counts = gathered(sorted(refused))
if rank == 0:
    for kind, ranks in everyone.items():
        for i, row in enumerate(rows[kind]):
            row.append([held[i] for held in ranks])
        # What torch refuses on some rank, such as an uneven dim that is not dim 0, is no row.
        rows[kind] = [row for row in rows[kind] if None not in row[3]]
    text_of = lambda all_rows: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in all_rows) + "\n]"
    with open(out, "w") as f:
        f.write(f'{{"engine":{json.dumps("torch " + torch.__version__)},\n"distribute":{text_of(rows["distribute"])},\n"fully_shard":{text_of(rows["fully_shard"])}}}\n')
    print(len(rows["distribute"]), len(rows["fully_shard"]), "refused", len(refused))
    for r in sorted(set(sum(counts, []))):
        print("refused", r)
dist.destroy_process_group()
