//! The command line: what can be said, and the help that teaches it. What it means is decided elsewhere.

use std::{ffi::OsString, ops::RangeInclusive, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::TypedValueParser};
use shardwright_config::{ByteSize, IoSettings};
use shardwright_engine::device::DeviceRequest;

/// Load a checkpoint so that every rank reads exactly its own shard, as FSDP2 or ZeRO-3 would place it.
#[derive(Debug, Parser)]
#[command(name = "shardwright", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
The config is a LLaMA-Factory v1 YAML, unchanged; `dist_config.name` picks the strategy. This
project's own settings stand in an optional section `shardwright:` of the same file.

Exit codes: 0 done, 2 usage, 3 config, 4 checkpoint, 5 plan or world, 6 input/output,
7 not enough memory, 8 shards differ, 9 lock differs, 10 device, 130 interrupted";

#[derive(Debug, Subcommand)]
pub enum Command {
    Load(LoadArgs),
    Resolve(ResolveArgs),
    Plan(PlanArgs),
    Verify(VerifyArgs),
    Convert(ConvertArgs),
    Diff(DiffArgs),
    Inspect(InspectArgs),
    Strategies(StrategiesArgs),
    Schema(SchemaArgs),
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: the whole report.
    Json,
}

/// Load every rank's shard, or one rank's, and report what each holds
///
/// Reads CONFIG, resolves strategy and precision, plans, validates that the plan gives every element of every parameter to exactly one
/// rank of each shard group, and only then allocates and reads. No rank reads, casts or holds a byte outside its shard.
///
/// Without a rank, all ranks of the world are loaded side by side in this process. With --rank, or under torchrun (RANK, WORLD_SIZE), srun
/// (SLURM_PROCID, SLURM_NTASKS), mpirun (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE) or mpiexec (PMI_RANK, PMI_SIZE; also PALS, Flux, MVAPICH,
/// jsrun), that rank alone. WORLD_SIZE alone is --world-size.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright load train.yaml --world-size 8                 every rank of 8, side by side
  shardwright load train.yaml --world-size 8 --rank 3        rank 3 alone
  torchrun --no-python --nproc-per-node 8 shardwright load train.yaml
  shardwright load train.yaml bf16=false dist_config.name=fsdp2 --digest --report report.json
  shardwright load train.yaml --world-size 8 --save shards/  keep them; see `shardwright verify`")]
pub struct LoadArgs {
    /// The YAML that decides everything.
    pub config: PathBuf,
    /// Values that override the file's: `bf16=false`, `dist_config.reshard_after_forward=false`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    #[command(flatten)]
    pub world: WorldArgs,
    /// Where shards go: cpu, cuda, cuda:K, or auto for a GPU where there is one [default: shardwright.device, else cpu].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceRequest>,
    /// Give each tensor's SHA-256 over its valid bytes in row-major order.
    #[arg(long)]
    pub digest: bool,
    /// Write the report to FILE as JSON, or as a page to look at where FILE ends in .html.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the shards to DIR, as safetensors files with a manifest. Memory stays below 64 MiB, whatever the model's size.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Replace the shards that DIR holds already.
    #[arg(long, requires = "save")]
    pub overwrite: bool,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    #[command(flatten)]
    pub io: IoArgs,
}

/// How files are read; each wins over the same key of `shardwright.io`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Reading")]
pub struct IoArgs {
    /// Threads that read and cast [default: the cores, shared among the ranks of this machine].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = within(IoSettings::THREADS))]
    pub threads: Option<u32>,
    /// Reads announced ahead of each thread, which keeps a cold disk busy.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = within(IoSettings::QUEUE_DEPTH))]
    pub queue_depth: Option<u32>,
    /// Bytes read and cast in one go, such as 512KiB.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, &IoSettings::BLOCK_SIZE))]
    pub block_size: Option<ByteSize>,
    /// Bypass the page cache (O_DIRECT) where the file system can.
    #[arg(long, conflicts_with = "mmap")]
    pub direct: bool,
    /// Map files instead of reading them. A mapped file that shrinks meanwhile kills the process.
    #[arg(long)]
    pub mmap: bool,
    /// Announce to the kernel what is read next, so that a cold disk is busy while cores cast [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub readahead: Option<bool>,
    /// Drop what was read from the page cache.
    #[arg(long)]
    pub drop_cache: bool,
    /// On the way to a GPU: page-locked host memory of this process at most [default: 256MiB].
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, &IoSettings::RING_SIZE))]
    pub ring_size: Option<ByteSize>,
    /// On the way to a GPU: whether a downcast happens on the host, so that less crosses the bus, or on the device [default: host].
    #[arg(long, alias = "narrow", value_name = "PLACE", value_enum, hide_possible_values = true)]
    pub downcast: Option<DowncastOn>,
    /// Load even where the predicted peak exceeds the memory there is.
    #[arg(long)]
    pub force: bool,
    /// Say on standard error how files will be read, and why.
    #[arg(long)]
    pub explain_io: bool,
}

/// Where a cast to a smaller dtype happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DowncastOn {
    /// On the host, before the copy.
    Host,
    /// On the device, after it.
    Device,
}

fn parse_size(text: &str, range: &RangeInclusive<u64>) -> Result<ByteSize, String> {
    let size = ByteSize::parse(text).ok_or_else(|| "expected a number of bytes, or one with KiB, MiB or GiB".to_owned())?;
    let (least, most) = (range.start(), range.end());
    match range.contains(&size.0) {
        true => Ok(size),
        false if *most == u64::MAX => Err(format!("expected {least} bytes or more")),
        false => Err(format!("expected {least} to {most} bytes")),
    }
}

fn within(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = u32> {
    let (least, most) = (i64::try_from(*range.start()).unwrap_or(0), i64::try_from(*range.end()).unwrap_or(i64::MAX));
    clap::value_parser!(u32).range(least..=most)
}

/// Who this process is.
#[derive(Clone, Copy, Debug, Args)]
pub struct WorldArgs {
    /// Number of ranks [default: the launcher's, else 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub world_size: Option<u32>,
    /// Load this rank alone, from 0 [default: the launcher's, else all].
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub rank: Option<u32>,
}

/// How a resolution is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResolveFormat {
    /// For people: what is set or decided, and where from.
    Table,
    /// Everything; can itself be resolved again.
    Yaml,
    /// Everything, with provenance, for programs.
    Json,
}

/// Show what a config really means: strategy, precision, mesh, batch, every "auto", each with its reason
///
/// Reads a LLaMA-Factory v1 YAML or an accelerate YAML, the DeepSpeed file that it names, and the model's config.json when it is at hand.
/// Nothing is loaded. All problems are reported at once, each with its place.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright resolve train.yaml --world-size 8
  shardwright resolve train.yaml bf16=false --explain precision.compute
  shardwright resolve train.yaml --world-size 8 --lock train.lock     keep it under version control, then in CI:
  shardwright resolve train.yaml --world-size 8 --check train.lock    exits with 9 where anything differs
  shardwright resolve configs/*.yaml --check locks/                   several at once: a directory of locks")]
pub struct ResolveArgs {
    /// Configs, and values that override theirs: `bf16=false`, `dist_config.name=fsdp2`.
    #[arg(value_name = "CONFIG|KEY=VALUE", required = true)]
    pub configs: Vec<String>,
    /// Number of ranks [default: the launcher's, else 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub world_size: Option<u32>,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = ResolveFormat::Table)]
    pub format: ResolveFormat,
    /// Write the resolution to FILE, or for several configs one each into the directory FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub lock: Option<PathBuf>,
    /// Compare with what --lock wrote; print what differs, with reasons, and exit with 9.
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
    /// Tell why a value is what it is: `precision.compute`.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["lock", "check"])]
    pub explain: Option<String>,
}

/// How a prediction is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// For people, at most 100 columns.
    Table,
    /// For programs: everything.
    Json,
    /// A page of its own, with all of it to look at.
    Html,
}

/// Predict what each rank will hold in memory, in every phase of training, and what to change so that it fits
///
/// Parameters, gradients, optimizer states, gathered parameter groups, activations and buffers of collectives, on the device, in host memory
/// and on NVMe, while loading, in the forward and backward pass, in the optimizer step and while saving. Computed from the config and the
/// checkpoint's headers; every formula names its source (--format json), and what is assumed is listed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright plan train.yaml --world-size 8 --device-memory 80GiB     does it fit, and if not, what would?
  shardwright plan train.yaml micro_batch_size=4 --world-size 8 --seq-len 8192
  shardwright plan train.yaml --world-size 8 --compare                 other strategies and world sizes beside it
  shardwright plan train.yaml --world-size 8 --compare --format html --out plan.html

Exit codes: 0 done, and it fits where memory is given · 3 config · 4 checkpoint · 5 plan or world
7 the fullest rank does not fit into --device-memory or --host-memory")]
pub struct PlanArgs {
    /// Configs, and values that override theirs: `bf16=false`, `micro_batch_size=4`.
    #[arg(value_name = "CONFIG|KEY=VALUE", required = true)]
    pub configs: Vec<String>,
    /// Number of ranks [default: the launcher's, else 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub world_size: Option<u32>,
    /// Memory of a rank's device, such as 80GiB.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, &(1..=u64::MAX)))]
    pub device_memory: Option<ByteSize>,
    /// Host memory that a rank may take, such as 128GiB.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_size(text, &(1..=u64::MAX)))]
    pub host_memory: Option<ByteSize>,
    /// Tokens of a sample [default: cutoff_len].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub seq_len: Option<u64>,
    /// Put other strategies and world sizes beside it.
    #[arg(long)]
    pub compare: bool,
    /// What to make.
    #[arg(long, value_enum, default_value_t = PlanFormat::Table)]
    pub format: PlanFormat,
    /// Write to FILE instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Check a checkpoint, or shards that `load --save` wrote: every file, and with --against every element
///
/// Every file that the manifest lists must be there with its size and SHA-256, and no other that a reader would take for a shard. With
/// --against, the shards are put together by what they say of their place, and every element is compared with the source's, cast by the
/// scalar reference: a check that shares nothing with the way they were loaded. Of a directory without a manifest, such as `convert` makes,
/// headers, sizes, places and the checksums of zips are validated, and --against compares parameters and optimizer states. Memory stays small
/// whatever the model's size.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright verify shards/                                every file
  shardwright verify shards/ --against models/Qwen3-0.6B    and every element of every tensor
  shardwright verify shards/ --against Qwen/Qwen3-0.6B      the model in the Hugging Face cache
  shardwright verify out/ --against run/checkpoint-500      what `convert` made, and the checkpoint that it was made of

Exit codes: 0 all is right · 4 no complete save or checkpoint, or a damaged one
6 a file cannot be read · 8 something differs, reported on standard error")]
pub struct VerifyArgs {
    /// The directory that was given to `load --save` or `convert`.
    pub dir: PathBuf,
    /// The checkpoint that was loaded or converted: a directory, a file, or a hub id in the local cache.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<OsString>,
    /// Name a tied tensor that ZeRO-3 does not record: lm_head.weight=model.embed_tokens.weight.
    #[arg(long, value_name = "ALIAS=NAME", requires = "against")]
    pub tie: Vec<String>,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Convert any checkpoint to any other, optimizer states included, for any number of ranks
///
/// SOURCE is recognised by what it holds: safetensors, pytorch_model.bin, a torch distributed checkpoint, DeepSpeed ZeRO-1, 2 or 3, a
/// universal checkpoint, or shards that `load --save` wrote. Nothing of a pickle is executed, and memory stays small whatever the model's
/// size. What cannot be carried is listed before anything is written. TARGET appears whole, under its name, or not at all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright convert run/checkpoint-500 out --to hf --dtype bf16      DeepSpeed or FSDP2 to safetensors
  shardwright convert run/checkpoint-500 out --to zero3 --ranks 6      resume on 6 ranks what 8 have saved
  shardwright convert run/checkpoint-500 out --to dcp --ranks 4        and under FSDP2, moments included
  shardwright convert run/checkpoint-500 out --to hf --dry-run         only say what would be written and lost

Exit codes: 0 done · 3 the target cannot hold it · 4 no checkpoint, or a damaged one
6 something is in the way, or the disk fails · 8 --verify found a difference")]
pub struct ConvertArgs {
    /// A directory, a file, or a hub id in the local Hugging Face cache.
    pub source: OsString,
    /// The directory to make.
    pub target: PathBuf,
    /// What to make.
    #[arg(long, value_enum)]
    pub to: TargetFormat,
    /// Ranks of the target.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub ranks: u32,
    /// Groups of ranks that each hold the whole model, as under hybrid sharding; they must divide the ranks.
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub replicas: u32,
    /// The dtype of parameters, such as bfloat16 [default: the source's]. Optimizer states and DeepSpeed's masters stay float32.
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    /// Leave the optimizer out.
    #[arg(long)]
    pub params_only: bool,
    /// Whose names the tensors get: the model's class's in transformers, experts stacked, or those of files on the hub, experts apart (for
    /// --to hf) [default: SOURCE's]. Needs the model's config.json.
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub names: Option<NamesOf>,
    /// Tensors of one safetensors file take no more than this.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub max_file_size: String,
    /// DeepSpeed's sub_group_size, as in the run that will resume.
    #[arg(long, value_name = "ELEMENTS", default_value_t = 1_000_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub sub_group_size: u64,
    /// The directory of DeepSpeed's files, which `latest` names: pytorch_model for accelerate and LLaMA-Factory [default: SOURCE's, else
    /// global_step and the step].
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
    /// Name a tied tensor that ZeRO-3 does not record: lm_head.weight=model.embed_tokens.weight.
    #[arg(long, value_name = "ALIAS=NAME")]
    pub tie: Vec<String>,
    /// Copy config and tokenizer from this directory, for --to hf [default: SOURCE].
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Read the target back and compare every element.
    #[arg(long, conflicts_with = "dry_run")]
    pub verify: bool,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Whose names tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamesOf {
    /// The model's class's, experts stacked.
    Model,
    /// Those of files on the hub, experts apart.
    Hub,
}

/// What a conversion makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetFormat {
    /// Safetensors, as from_pretrained reads them.
    Hf,
    /// Safetensors, one file for each rank of FSDP2.
    HfSharded,
    /// A torch distributed checkpoint: model/ and optimizer/.
    Dcp,
    /// A DeepSpeed ZeRO-3 checkpoint.
    Zero3,
    /// A DeepSpeed universal checkpoint.
    Zero3Universal,
}

/// Compare two checkpoints of any formats, element for element
///
/// Names, shapes, parameters, buffers, optimizer states, steps and groups. Where dtypes differ, the first is cast to the second's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright diff run/checkpoint-500 out
  shardwright diff models/a models/b --format json

Exit codes: 0 equal · 4 no checkpoint · 8 something differs, reported on standard error")]
pub struct DiffArgs {
    /// A checkpoint of any format.
    pub first: OsString,
    /// Another.
    pub second: OsString,
    /// Leave out what only one of them has.
    #[arg(long)]
    pub common: bool,
    /// Name a tied tensor that ZeRO-3 does not record: lm_head.weight=model.embed_tokens.weight.
    #[arg(long, value_name = "ALIAS=NAME")]
    pub tie: Vec<String>,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Show what a checkpoint holds, from its headers alone
///
/// Tensors with dtype, shape, size and file; sums by dtype and by file. No tensor data is read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright inspect models/Qwen3-0.6B
  shardwright inspect Qwen/Qwen3-0.6B --format json | jq '.tensors[].name'
  shardwright inspect Qwen/Qwen3-30B-A3B --as-model
  shardwright inspect model-00001-of-00005.safetensors")]
pub struct InspectArgs {
    /// A checkpoint of any format: a directory, a file, or a hub id in the local Hugging Face cache.
    pub model: OsString,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Show the parameters of the model's class, each with the tensors that it is made from.
    #[arg(long)]
    pub as_model: bool,
    /// The class: llm, cls or other, as `model_class` of a config.
    #[arg(long, requires = "as_model", default_value = "llm", value_parser = ["llm", "cls", "other"])]
    pub model_class: String,
    /// The version of transformers that builds the model, as `shardwright.engines.transformers` of a config.
    #[arg(long, requires = "as_model", value_name = "VERSION")]
    pub transformers: Option<String>,
    /// A file that describes the architecture, as `shardwright.architecture` of a config.
    #[arg(long, requires = "as_model", value_name = "FILE")]
    pub architecture: Option<PathBuf>,
}

/// List the strategies and precision policies of this binary, or show how to write one's section
///
/// Without NAME, every strategy and policy with the crate and version that it is from. With NAME, its keys with types, defaults and
/// meanings, and a section to paste. A third party's are linked by naming their crate in a binary of your own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright strategies
  shardwright strategies fsdp2
  shardwright strategies pins --format json")]
pub struct StrategiesArgs {
    /// A strategy or a precision policy.
    pub name: Option<String>,
    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Print the JSON Schema of the YAML, in either dialect, with a branch for every strategy and policy of this binary
///
/// Editors that speak YAML complete and check configs by it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  shardwright schema > shardwright.schema.json
  then, on the first line of a config:  # yaml-language-server: $schema=shardwright.schema.json")]
pub struct SchemaArgs {
    /// Print the schema of the file that `shardwright.architecture` names instead.
    #[arg(long)]
    pub architecture: bool,
}
