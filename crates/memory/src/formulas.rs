//! The formulas behind every amount, each with its source. Versions: torch 2.15, DeepSpeed 0.19.8, transformers 5.24.

use crate::{
    ledger::{Category, Phase, Place},
    output::{Certainty, Formula},
    settings::{Engine, Settings},
};

const EXACT: Certainty = Certainty::Exact;
const MODELLED: Certainty = Certainty::Modelled;
const ASSUMED: Certainty = Certainty::Assumed;

type Row = (&'static str, &'static str, &'static str, Certainty);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("fsdp2.parameters", "for each tensor ceil(rows / N) × row, in the storage dtype: padding is allocated on every rank",
        "torch/distributed/fsdp/_fully_shard/_fsdp_param.py: FSDPParam._init_sharded_param", EXACT),
    ("fsdp2.gathered", "unsharded parameters of the root and of the group in use, in the compute dtype, padding included; all groups where reshard_after_forward is false",
        "_fsdp_param_group.py: FSDPParamGroup.wait_for_unshard, reshard", EXACT),
    ("fsdp2.gradients", "sharded: the padded shard in the storage dtype; while a group is in its backward pass, its whole gradients in the compute dtype; the root's last until the end",
        "_fsdp_collectives.py: foreach_reduce, _cast_and_view_sharded_grads", EXACT),
    ("fsdp2.communication", "forward: the output of the last gather is kept until the next one is awaited; backward: the output of the prefetched gather, and the input of the last reduce-scatter in the reduce dtype",
        "_fsdp_collectives.py: foreach_all_gather; _fsdp_param_group.py: post_backward, reduce_scatter_max_input_buffers = 1", MODELLED),
    ("fsdp2.states", "AdamW: two tensors as large as the shard without padding, in the storage dtype, and a float32 step for each",
        "torch/optim/adamw.py: _init_group; zeros_like of a DTensor is its local shard", EXACT),
    ("fsdp2.temporary.step", "the square root of the second moments: on a GPU of all shards at once, on a CPU of the largest shard, twice",
        "torch/optim/adam.py: _multi_tensor_adam, _single_tensor_adam", MODELLED),
    ("fsdp2.temporary.load", "init_on_default: the whole model in host memory of every rank; init_on_rank0: of rank 0; init_on_meta: nothing",
        "LLaMA-Factory v1: core/model_engine.py, plugins/trainer_plugins/distributed/fsdp2.py", MODELLED),
    ("zero3.parameters", "ceil(numel / N) elements of each tensor, in one flat buffer; with offload_param in pinned host memory, and on NVMe beyond max_in_cpu",
        "deepspeed/runtime/zero/stage3.py: _create_fp16_partitions_with_defragmentation", EXACT),
    ("zero3.gathered", "persistent parameters always; others from their gather until no use lies within stage3_max_reuse_distance, prefetched by stage3_prefetch_bucket_size within stage3_max_live_parameters",
        "partitioned_param_coordinator.py: fetch_sub_module, __params_to_release", MODELLED),
    ("zero3.gradients", "a flat buffer as large as the trainable partitions in data_types.grad_accum_dtype, else the model's; offloaded: in host memory, with a float32 copy; and the gradients that have not been reduced",
        "stage3.py: _setup_for_real_optimizer, initialize_optimizer_states", EXACT),
    ("zero3.masters", "4 bytes for each element of the trainable partitions; none where parameters are float32 on the same device",
        "stage3.py: _create_fp32_partitions", EXACT),
    ("zero3.states", "two tensors like the masters for AdamW, by sub-group; padding included",
        "stage3.py: initialize_optimizer_states; the optimizer's own code on flat sub-groups", EXACT),
    ("zero3.communication", "reduce_bucket_size elements in the reduce dtype, always; the bucket interleaved by rank while it is reduced; the outputs of gathers that are under way or being copied apart",
        "stage3.py: _setup_for_real_optimizer, __avg_scatter_grads; runtime/comm/coalesced_collectives.py: reduce_scatter_coalesced; partition_parameters.py: AllGatherCoalescedHandle", MODELLED),
    ("zero3.temporary.step", "the gradients of a sub-group, flattened and cast to float32, and the optimizer's square root of the second moments on it",
        "stage3.py: _prepare_fp32_grad_for_sub_group; torch/optim/adam.py", MODELLED),
    ("zero3.temporary.load", "a float32 gradient as large as the largest sub-group; in host memory the buffer that partitions are defragmented through",
        "stage3.py: initialize_optimizer_states; zero/utils.py: defragment", MODELLED),
    ("whole.parameters", "every parameter on every rank",
        "torch/nn/parallel/distributed.py; deepspeed/runtime/zero/stage_1_and_2.py", EXACT),
    ("whole.gathered", "copies of matrices in the compute dtype, which autocast caches over a forward pass",
        "torch/amp/autocast_mode.py: cache_enabled", MODELLED),
    ("whole.gradients", "DDP and stage 0 and 1: as large as the parameters; stage 2: a share of one N-th",
        "torch/nn/parallel/distributed.py; stage_1_and_2.py: partition_gradients", MODELLED),
    ("whole.masters", "4 bytes for each element of the rank's share", "stage_1_and_2.py: DeepSpeedZeroOptimizer.__init__", MODELLED),
    ("whole.states", "of all parameters under DDP, of one N-th under stages 1 and 2", "torch/optim/adamw.py; stage_1_and_2.py: initialize_optimizer_states", MODELLED),
    ("whole.communication", "DDP: buckets as large as the gradients (gradient_as_bucket_view=False); stages 1 and 2: reduce_bucket_size elements",
        "torch/nn/parallel/distributed.py; stage_1_and_2.py", MODELLED),
    ("whole.temporary.step", "DDP as FSDP2; stages 1 and 2: the rank's share of the gradients in float32 and the optimizer's temporaries",
        "torch/optim/adam.py; stage_1_and_2.py: step", MODELLED),
    ("whole.temporary.load", "the model in host memory before it is moved", "transformers: from_pretrained", MODELLED),
    ("buffers", "whole on every rank, in their own dtype", "torch/nn/modules/module.py", EXACT),
    ("activations", "", "transformers' modules, operation by operation: what autograd saves", MODELLED),
    ("activations.unknown", "", "no formula for this architecture", ASSUMED),
    ("loss", "tokens × vocabulary × (compute dtype for the logits + 4 for log_softmax), and 4 for a float32 copy of logits that are not; backward another 2 × 4 for the gradients of nll_loss and log_softmax",
        "transformers/loss/loss_utils.py: ForCausalLMLoss; aten: cross_entropy_loss", MODELLED),
    ("temporary.save", "a rank's shards and states are copied to host memory; rank 0 collects the whole model there where it is saved as one",
        "torch/distributed/checkpoint/state_dict.py: cpu_offload; deepspeed/runtime/engine.py: _zero3_consolidated_16bit_state_dict", MODELLED),
    ("gathered.save", "the largest parameter, gathered to be written", "torch/distributed/checkpoint/state_dict.py: full_state_dict", MODELLED),
    ("reserve", "1 GiB for the driver's context and the buffers of the collective library; measure yours with nvidia-smi", "no source", ASSUMED),
    ("swap", "buffers through which NVMe is read and written: offload_optimizer.buffer_count sub-groups, offload_param.buffer_count × buffer_size",
        "deepspeed/runtime/swap_tensor/{partitioned_param_swapper,optimizer_utils}.py", MODELLED),
];

/// The formula behind an amount.
pub fn id(engine: &Engine, phase: Phase, place: Place, category: Category, known_architecture: bool) -> &'static str {
    use Category as C;
    let family = match engine {
        Engine::Zero(zero) if zero.stage == 3 => 1,
        Engine::Zero(_) | Engine::Ddp => 2,
        _ => 0,
    };
    let of = |ids: [&'static str; 3]| ids[family];
    match category {
        C::Parameters => of(["fsdp2.parameters", "zero3.parameters", "whole.parameters"]),
        C::Buffers => "buffers",
        C::Gathered if phase == Phase::Save && family == 0 => "gathered.save",
        C::Gathered => of(["fsdp2.gathered", "zero3.gathered", "whole.gathered"]),
        C::Gradients => of(["fsdp2.gradients", "zero3.gradients", "whole.gradients"]),
        C::Masters => of(["fsdp2.states", "zero3.masters", "whole.masters"]),
        C::OptimizerStates => of(["fsdp2.states", "zero3.states", "whole.states"]),
        C::Activations if known_architecture => "activations",
        C::Activations => "activations.unknown",
        C::Loss => "loss",
        C::Communication if place == Place::Host => "swap",
        C::Communication => of(["fsdp2.communication", "zero3.communication", "whole.communication"]),
        C::Temporary if phase == Phase::Save => "temporary.save",
        C::Temporary if phase == Phase::Load => of(["fsdp2.temporary.load", "zero3.temporary.load", "whole.temporary.load"]),
        C::Temporary => of(["fsdp2.temporary.step", "zero3.temporary.step", "whole.temporary.step"]),
        C::Reserve => "reserve",
    }
}

/// All formulas; `activations` is that of the model's architecture.
pub fn all(activations: &str, settings: &Settings) -> Vec<Formula> {
    let kept = if settings.checkpointing {
        "checkpointing keeps tokens × a × h for each block, and one block at a time is recomputed: "
    } else {
        "for each block "
    };
    ROWS.iter()
        .map(|&(id, text, source, certainty)| Formula {
            id: id.to_owned(),
            text: if id.starts_with("activations") { format!("{kept}{activations}") } else { text.to_owned() },
            source: source.to_owned(),
            certainty,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_amount_has_a_formula_and_every_formula_an_amount() {
        let ids: BTreeSet<&str> = ROWS.iter().map(|row| row.0).collect();
        assert_eq!(ids.len(), ROWS.len(), "an id occurs twice");
        let zero = |stage| Engine::Zero(crate::settings::Zero { stage, ..crate::settings::tests::zero() });
        let mut used = BTreeSet::new();
        for engine in [Engine::Fsdp2 { pin_memory: true }, zero(3), zero(1), Engine::Ddp, Engine::Other] {
            for (phase, place) in Phase::ALL.into_iter().flat_map(|p| Place::ALL.map(|place| (p, place))) {
                for known in [true, false] {
                    used.extend(Category::ALL.map(|category| id(&engine, phase, place, category, known)));
                }
            }
        }
        assert_eq!(used, ids);
    }
}
