//! What this process knows of its world: its rank and the number of ranks, from flags and from the launcher's environment variables.
//! Detection is a pure function of a map; the process-wide cell at the end is set once. No collective lives here.

use crate::error::{EngineError, ErrorKind, Result};

/// Rank and size, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct World {
    /// This process's rank; `None` where it stands for all ranks.
    pub rank: Option<u32>,
    /// Number of ranks; `None` where nobody says.
    pub size: Option<u32>,
    /// Whether `--world-size` said so, and not the environment.
    pub size_is_flag: bool,
    /// Rank among the processes of this machine.
    pub local_rank: Option<u32>,
    /// Processes on this machine.
    pub local_size: Option<u32>,
    /// Who said so, such as `torchrun (RANK=1, WORLD_SIZE=4)`; for messages.
    pub origin: String,
    /// What a user should know: a launcher is evident, and yet no variable that is read gives a rank.
    pub doubt: Option<String>,
}

/// What the command line asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorldFlags {
    /// `--rank`.
    pub rank: Option<u32>,
    /// `--world-size`.
    pub world_size: Option<u32>,
}

/// A launcher and the variables by which it tells a process its place: rank, world size, local rank, local world size.
struct Launcher {
    name: &'static str,
    variables: [&'static str; 4],
}

const LAUNCHERS: [Launcher; 8] = [
    Launcher { name: "torchrun", variables: ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] },
    // Slurm has no variable for the last: see `slurm_tasks`.
    Launcher { name: "srun", variables: ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""] },
    Launcher {
        name: "mpirun",
        variables: ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    // PALS leaves the size to PMI.
    Launcher { name: "PALS", variables: ["PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PMI_LOCAL_SIZE"] },
    Launcher { name: "Flux", variables: ["FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "FLUX_TASK_LOCAL_SIZE"] },
    Launcher {
        name: "MVAPICH",
        variables: ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"],
    },
    Launcher {
        name: "jsrun",
        variables: ["JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"],
    },
    // MPICH and Intel MPI; the latter two are Intel's and Hydra's.
    Launcher { name: "mpiexec", variables: ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"] },
];

/// Variables by which a launcher is evident that has set no rank that is read here.
const TRACES: &[&str] = &[
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "PMI_FD",
    "PMI_PORT",
    "PMI_SIZE",
    "HYDI_CONTROL_FD",
    "OMPI_COMM_WORLD_SIZE",
    "MPI_LOCALRANKID",
    "LOCAL_RANK",
    "GROUP_RANK",
    "TORCHELASTIC_RUN_ID",
    "FLUX_TASK_LOCAL_ID",
];

impl World {
    /// The world as the flags and the environment tell it. A set rank variable means a distributed run; of a world size
    /// without a rank this process stands for all ranks.
    ///
    /// # Errors
    /// [`ErrorKind::World`]: a value that is not a number, a rank without a size, a rank beyond the size, a size of 0, two launchers that
    /// disagree, or a flag that disagrees with a launcher; both are named.
    pub fn detect(flags: WorldFlags, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let world = match from_launchers(&env)? {
            Some(launched) => agree(launched, flags)?,
            None => {
                let reported = if flags.world_size.is_none() { number(&env, "WORLD_SIZE")? } else { None };
                let origin = reported.map_or_else(|| describe_flags(flags), |size| format!("{}, WORLD_SIZE={size}", describe_flags(flags)));
                let (size, size_is_flag) = (flags.world_size.or(reported), flags.world_size.is_some());
                Self { rank: flags.rank, size, size_is_flag, local_rank: None, local_size: None, origin, doubt: doubt(flags, &env) }
            }
        };
        world.checked()
    }

    /// As [`World::detect`], from this process's environment.
    ///
    /// # Errors
    /// As there.
    pub fn from_process(flags: WorldFlags) -> Result<Self> {
        // What is not UTF-8 is not a number either, and must not pass for unset.
        Self::detect(flags, |name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    fn checked(self) -> Result<Self> {
        let wrong = |what: String| Err(EngineError::new(ErrorKind::World, what));
        match (self.rank, self.size) {
            (_, Some(0)) => wrong(format!("the world size is 0, expected at least 1 ({})", self.origin)),
            (Some(rank), None) => wrong(format!("rank {rank} is given, but no world size ({})", self.origin)),
            (Some(rank), Some(size)) if rank >= size => {
                wrong(format!("rank {rank} is not below the world size of {size} ({})", self.origin))
            }
            (_, Some(size)) if self.local_size.is_some_and(|local| local == 0 || local > size) => {
                let local = self.local_size.unwrap_or(0);
                wrong(format!("{local} processes on this machine were given, expected 1 to the world size of {size} ({})", self.origin))
            }
            (_, size) if self.local_rank.zip(self.local_size.or(size)).is_some_and(|(rank, size)| rank >= size) => {
                let (rank, size) = (self.local_rank.unwrap_or(0), self.local_size.or(size).unwrap_or(0));
                wrong(format!("local rank {rank} is not below the {size} processes that this machine can have ({})", self.origin))
            }
            _ => Ok(self),
        }
    }
}

/// What there is to say of a process that no variable gives a rank, and that a launcher has started all the same.
fn doubt(flags: WorldFlags, env: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let trace = TRACES.iter().find(|name| env(name).is_some())?;
    if flags.rank.is_some() || flags.world_size.is_some() {
        return None;
    }
    let value = shardwright_core::text::short(&env(trace)?);
    Some(format!(
        "{trace}={value} says that a launcher started this process, but no variable that is read gives its rank: it stands for all ranks. \
         Give --rank and --world-size, or set RANK and WORLD_SIZE"
    ))
}

fn number(env: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<u32>> {
    let Some(text) = env(name).filter(|t| !t.trim().is_empty()) else { return Ok(None) };
    text.trim()
        .parse()
        .map(Some)
        .map_err(|_| EngineError::new(ErrorKind::World, format!("{name} is '{text}', expected a number from 0 to {}", u32::MAX)))
}

/// What each launcher whose rank variable is set says, once they agree.
fn from_launchers(env: &impl Fn(&str) -> Option<String>) -> Result<Option<World>> {
    let mut chosen: Option<World> = None;
    for launcher in &LAUNCHERS {
        let [rank, size, local_rank, local_size] = launcher.variables;
        if launcher.name == "srun" && in_batch_script(env) {
            continue;
        }
        let Some(r) = number(env, rank)? else { continue };
        let s = number(env, size)?;
        let shown = s.map_or_else(|| "unset".to_owned(), |s| s.to_string());
        let origin = format!("{}: {rank}={r}, {size}={shown}", launcher.name);
        let locals = match local_size {
            "" => slurm_tasks(env)?,
            "LOCAL_WORLD_SIZE" => number(env, local_size)?.map_or_else(|| number(env, "LOCAL_SIZE"), |n| Ok(Some(n)))?, // DeepSpeed's
            _ => number(env, local_size)?,
        };
        let said = World {
            rank: Some(r),
            size: s,
            size_is_flag: false,
            local_rank: number(env, local_rank)?,
            local_size: locals,
            origin,
            doubt: None,
        };
        match &chosen {
            None => chosen = Some(said),
            Some(first) if (first.rank, first.size) == (said.rank, said.size) || nested(first, &said, env) => {}
            Some(first) => return Err(disagree(&first.origin, &said.origin)),
        }
    }
    Ok(chosen)
}

/// True in a batch script, which is the task 0 of a job and no rank: Slurm tells its tasks, and them alone, the step that they are of.
fn in_batch_script(env: &impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &&str| env(name).is_some();
    set(&"SLURM_JOB_ID") && !["SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST"].iter().any(set)
}

/// Slurm's tasks on this node: of the list of all nodes, such as `8(x2),4`, the one of this node's number.
fn slurm_tasks(env: &impl Fn(&str) -> Option<String>) -> Result<Option<u32>> {
    let Some(list) = env("SLURM_STEP_TASKS_PER_NODE").or_else(|| env("SLURM_TASKS_PER_NODE")) else { return Ok(None) };
    let mut node = number(env, "SLURM_NODEID")?.unwrap_or(0);
    for part in list.trim().split(',') {
        let (tasks, times) = part.strip_suffix(')').and_then(|p| p.split_once("(x")).unwrap_or((part, "1"));
        let (Ok(tasks), Ok(times)) = (tasks.parse::<u32>(), times.parse::<u32>()) else { return Ok(None) };
        match node.checked_sub(times) {
            Some(left) => node = left,
            None => return Ok(Some(tasks)),
        }
    }
    Ok(None)
}

/// True where torchrun runs inside the other launcher's tasks, which then count nodes (or one batch script) and not ranks.
fn nested(torchrun: &World, outer: &World, env: &impl Fn(&str) -> Option<String>) -> bool {
    let by_node = || {
        let (rank, size, local) = (torchrun.rank?, torchrun.size?, torchrun.local_size?);
        Some(outer.size?.checked_mul(local)? == size && rank.checked_div(local)? == outer.rank?)
    };
    env("TORCHELASTIC_RUN_ID").is_some() || by_node().unwrap_or(false)
}

fn agree(mut launched: World, flags: WorldFlags) -> Result<World> {
    if flags.rank.is_some_and(|r| Some(r) != launched.rank) || flags.world_size.is_some_and(|s| launched.size.is_some_and(|l| l != s)) {
        return Err(disagree(&describe_flags(flags), &launched.origin));
    }
    launched.size_is_flag = launched.size.is_none() && flags.world_size.is_some();
    launched.size = launched.size.or(flags.world_size);
    Ok(launched)
}

fn describe_flags(flags: WorldFlags) -> String {
    match (flags.rank, flags.world_size) {
        (None, None) => "nothing given".into(),
        (Some(r), None) => format!("--rank {r}"),
        (None, Some(s)) => format!("--world-size {s}"),
        (Some(r), Some(s)) => format!("--rank {r} --world-size {s}"),
    }
}

fn disagree(one: &str, other: &str) -> EngineError {
    EngineError::new(ErrorKind::World, format!("two settings of the world disagree: {one}; {other}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: WorldFlags = WorldFlags { rank: None, world_size: None };

    /// Flags, variables, and what the message must contain.
    type Case<'a> = (WorldFlags, &'a [(&'a str, &'a str)], [&'a str; 2]);

    fn detect(flags: WorldFlags, vars: &[(&str, &str)]) -> Result<(Option<u32>, Option<u32>), String> {
        let env = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        World::detect(flags, env).map(|w| (w.rank, w.size)).map_err(|e| {
            assert_eq!(e.kind(), ErrorKind::World);
            e.to_string()
        })
    }

    #[test]
    fn every_launcher_is_understood() {
        assert_eq!(detect(NONE, &[]), Ok((None, None)));
        assert_eq!(detect(NONE, &[("RANK", "1"), ("WORLD_SIZE", "4")]), Ok((Some(1), Some(4))));
        assert_eq!(detect(NONE, &[("SLURM_PROCID", "2"), ("SLURM_NTASKS", "3")]), Ok((Some(2), Some(3))));
        assert_eq!(detect(NONE, &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]), Ok((Some(0), Some(2))));
        for (rank, size) in [
            ("PMI_RANK", "PMI_SIZE"),
            ("PALS_RANKID", "PMI_SIZE"),
            ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
            ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
            ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
        ] {
            assert_eq!(detect(NONE, &[(rank, "3"), (size, "4")]), Ok((Some(3), Some(4))), "{rank}");
        }
        // srun --mpi=pmi2 sets both.
        let both = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "3"), ("PMI_RANK", "2"), ("PMI_SIZE", "3")];
        assert_eq!(detect(NONE, &both), Ok((Some(2), Some(3))));
        assert_eq!(detect(WorldFlags { rank: Some(1), world_size: None }, &[("WORLD_SIZE", "2")]), Ok((Some(1), Some(2))));
        assert_eq!(detect(WorldFlags { rank: None, world_size: Some(5) }, &[("WORLD_SIZE", "2")]), Ok((None, Some(5))));
    }

    #[test]
    fn a_launcher_that_gives_no_rank_is_reported() {
        let doubt = |flags, vars: &[(&str, &str)]| {
            World::detect(flags, |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned())).unwrap().doubt
        };
        let said = doubt(NONE, &[("PMIX_RANK", "3")]).unwrap();
        assert!(said.contains("PMIX_RANK=3") && said.contains("--rank"), "{said}");
        assert_eq!(doubt(WorldFlags { rank: None, world_size: Some(2) }, &[("PMIX_RANK", "3")]), None);
        assert_eq!(doubt(NONE, &[("PMIX_RANK", "1"), ("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]), None);
        assert_eq!(doubt(NONE, &[("WORLD_SIZE", "4")]), None);
    }

    #[test]
    fn contradictions_name_both_sides() {
        let cases: [Case<'_>; 10] = [
            (NONE, &[("RANK", "1"), ("WORLD_SIZE", "4"), ("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4")], ["RANK=1", "SLURM_PROCID=2"]),
            (WorldFlags { rank: Some(0), world_size: None }, &[("RANK", "1"), ("WORLD_SIZE", "4")], ["--rank 0", "RANK=1"]),
            (WorldFlags { rank: None, world_size: Some(2) }, &[("RANK", "1"), ("WORLD_SIZE", "4")], ["--world-size 2", "WORLD_SIZE=4"]),
            (NONE, &[("RANK", "1")], ["rank 1", "WORLD_SIZE=unset"]),
            (NONE, &[("RANK", "4"), ("WORLD_SIZE", "4")], ["rank 4", "size of 4"]),
            (NONE, &[("RANK", "one"), ("WORLD_SIZE", "4")], ["RANK is 'one'", "number"]),
            (WorldFlags { rank: None, world_size: Some(0) }, &[], ["world size is 0", "--world-size 0"]),
            (NONE, &[("WORLD_SIZE", "abc")], ["WORLD_SIZE is 'abc'", "number"]),
            (NONE, &[("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "7")], ["local rank 7", "the 4 processes"]),
            (
                NONE,
                &[("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "2")],
                ["local rank 2", "the 2 processes"],
            ),
        ];
        for (flags, vars, needles) in cases {
            let message = detect(flags, vars).unwrap_err();
            assert!(needles.iter().all(|n| message.contains(n)), "{message}");
        }
        assert_eq!(detect(NONE, &[("WORLD_SIZE", "4")]), Ok((None, Some(4))));
        // A batch script, what it starts, and a step.
        let script = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];
        assert_eq!(detect(NONE, &script), Ok((None, None)));
        let mpirun = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        assert_eq!(detect(NONE, &[&script[..], &mpirun].concat()), Ok((Some(1), Some(2))));
        let deepspeed = [("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_SIZE", "8")];
        assert_eq!(detect(NONE, &[&script[..], &deepspeed].concat()), Ok((Some(3), Some(8))));
        assert_eq!(detect(NONE, &[&script[..], &[("SLURM_STEP_ID", "0")]].concat()), Ok((Some(0), Some(2))));
        let one_a_node = [("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(detect(NONE, &[&one_a_node[..], &deepspeed].concat()), Ok((Some(3), Some(8))));
        assert_eq!(detect(WorldFlags { rank: None, world_size: Some(2) }, &[("WORLD_SIZE", "abc")]), Ok((None, Some(2))));
    }

    #[test]
    fn processes_of_this_machine_are_counted_and_checked() {
        let local = |vars: &[(&str, &str)]| {
            World::detect(NONE, |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned())).map(|w| w.local_size)
        };
        let torchrun = |n| [("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", n)];
        assert_eq!(local(&torchrun("2")).unwrap(), Some(2));
        for wrong in ["0", "5", "4294967295"] {
            let message = local(&torchrun(wrong)).unwrap_err().to_string();
            assert!(message.contains(&format!("{wrong} processes on this machine")) && message.contains("RANK=1"), "{message}");
        }
        for (list, node, tasks) in
            [("8", "0", Some(8)), ("8(x2),4", "1", Some(8)), ("8(x2),4", "2", Some(4)), ("8(x2)", "2", None), ("?", "0", None)]
        {
            let srun = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "20"), ("SLURM_STEP_TASKS_PER_NODE", list), ("SLURM_NODEID", node)];
            assert_eq!(local(&srun).unwrap(), tasks, "{list} on node {node}");
        }
    }

    #[test]
    fn torchrun_inside_srun_is_no_contradiction() {
        let vars = [("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_WORLD_SIZE", "8"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")];
        assert_eq!(detect(NONE, &vars), Ok((Some(9), Some(16))));
        let batch = [("RANK", "3"), ("WORLD_SIZE", "8"), ("TORCHELASTIC_RUN_ID", "x"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(detect(NONE, &batch), Ok((Some(3), Some(8))));
    }
}
