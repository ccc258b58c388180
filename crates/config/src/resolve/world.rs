//! How many ranks there are, and how the YAML arranges them.

use shardwright_core::{
    Mesh,
    diagnostic::{COMMAND_LINE, Diagnostic, Source},
    document::{Origin, Sourced},
    tree::Node,
};

use super::Resolver;
use crate::{
    draft::{Draft, variable},
    keys::Values,
};

impl Resolver<'_> {
    pub(super) fn world(&mut self, draft: &Draft) -> Sourced<u32> {
        let in_document = draft.document.as_ref().and_then(|root| root.find(&["mesh", "world_size"]));
        let in_file = draft.original.as_ref().and_then(|root| root.get("num_processes"));
        let kind = draft.original.as_ref().and_then(|root| root.get("distributed_type")?.as_str()).unwrap_or("NO");
        let written = in_document.or(in_file).filter(|n| !n.is_null());
        let processes = written.and_then(|n| {
            // Where accelerate only hands it to torchrun, a string does; elsewhere it calculates with it.
            let is_handed_on = in_document.is_some() || ["FSDP", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU"].contains(&kind);
            let count = n.as_integer().or_else(|| n.as_str().filter(|_| is_handed_on)?.trim().parse().ok());
            let count = count.and_then(|i| u32::try_from(i).ok()).filter(|n| *n > 0);
            if count.is_none() {
                self.error(
                    "config-value",
                    format!("number of processes: expected a positive integer, found {}", n.describe()),
                    Some(n.at.clone()),
                );
            }
            Some(Sourced { value: count?, origin: Origin::Written(n.at.clone()) })
        });
        let Some(size) = self.supplied.world_size else {
            let launched = draft
                .original
                .as_ref()
                .filter(|root| written.is_none() && root.get("distributed_type").and_then(Node::as_str) != Some("NO"));
            if let Some(root) = launched {
                let message = "num_processes is missing, and accelerate launch refuses to start without it";
                let help = "write num_processes, or give --world-size here and --num_processes there";
                self.diagnostics.push(Diagnostic::error("accelerate-launch", message).at(root.at.clone()).help(help));
            }
            return processes.unwrap_or(Sourced::default(1));
        };
        if let Some(processes) = processes.filter(|p| p.value != size) {
            let message = format!("the file is for {} processes, but the world has {size} ranks, and that counts", processes.value);
            self.diagnostics.push(Diagnostic::warning("world-disagrees", message).at(processes.location()));
        }
        let flag = Source::new(COMMAND_LINE, format!("--world-size {size}"));
        const SIZES: [&str; 7] = [
            "WORLD_SIZE",
            "SLURM_NTASKS",
            "OMPI_COMM_WORLD_SIZE",
            "FLUX_JOB_SIZE",
            "MV2_COMM_WORLD_SIZE",
            "JSM_NAMESPACE_SIZE",
            "PMI_SIZE",
        ];
        let from_env = || SIZES.iter().find_map(|name| variable(&draft.sources[2], name));
        let at = if self.supplied.world_size_is_flag { None } else { from_env() };
        if size == 0 {
            self.error("world-size", "the world size is 0, expected at least 1", None);
        }
        Sourced { value: size.max(1), origin: Origin::Written(at.unwrap_or_else(|| flag.at(0..flag.text.len()))) }
    }

    /// The model's mesh, as LLaMA-Factory's `DistributedStrategy` checks it.
    pub(super) fn mesh(&mut self, values: &Values, world: &Sourced<u32>) -> Option<Mesh> {
        let replicate = values.uint("mp_replicate_size");
        let shard = values.uint("mp_shard_size");
        let pair = [("mp_replicate_size", &replicate), ("mp_shard_size", &shard)];
        let (replicate, shard) = self.product(world, pair);
        // An outcome without a mesh says why: a failure without a word would be all that is left.
        Mesh::replicate_shard(replicate, shard).map_err(|why| self.error("mesh-product", why, world.location())).ok()
    }

    /// Two sizes whose product is the world; the second is inferred where it is not given.
    pub(super) fn product(&mut self, world: &Sourced<u32>, pair: [(&str, &Sourced<Option<u64>>); 2]) -> (u32, u32) {
        let [(first_name, first), (second_name, second)] = pair;
        let total = u64::from(world.value);
        let size = first.value.unwrap_or(1);
        let at = [first, second].into_iter().find_map(Sourced::location);
        let fits = |n: u64| u32::try_from(n).unwrap_or(1);
        if self.supplied.world_size.is_none() && world.origin == Origin::Default {
            if size > 1 || second.value.is_some_and(|s| s > 1) {
                let message = format!("{first_name} and {second_name} have no effect in a single process; the world size is 1");
                let help = "give --world-size, or start it with torchrun";
                self.diagnostics.push(Diagnostic::warning("mesh-single-process", message).at(at).help(help));
            }
            return (1, 1);
        }
        match second.value {
            Some(other) if size.checked_mul(other) != Some(total) => {
                let message = format!("{first_name} times {second_name} is {size} times {other}, expected the world size {total}");
                self.error("mesh-product", message, at);
                (1, world.value)
            }
            Some(other) => (fits(size), fits(other)),
            None if size == 0 || !total.is_multiple_of(size) => {
                self.error("mesh-product", format!("the world size {total} is not divisible by {first_name}, which is {size}"), at);
                (1, world.value)
            }
            None => (fits(size), fits(total / size)),
        }
    }
}
