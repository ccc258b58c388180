//! `shardwright load`: config, checkpoint, plan, validation, load, report. The order in which things happen; what they mean is elsewhere.

use std::{path::Path, sync::Mutex};

use shardwright_core::{ShardPlan, diagnostic::Diagnostic};
use shardwright_engine::{
    device::{DeviceOptions, Devices},
    load::{CancelToken, Loader, RankStats, all_ranks},
    memory::process_memory,
    report::{Report, Totals},
    run,
};

use crate::{
    args::{Format, LoadArgs},
    device::{self, Placed},
    exit::{Exit, Failure},
    input::{self, Input},
    output::{Written, check_writable, print, print_next, print_note, write_whole},
    page::{self, Page},
    plugins::Plugins,
    progress::Progress,
    render,
    save::Target,
    signals::cancel_on_signal,
    summary,
};

/// Runs the command.
pub fn run(args: &LoadArgs, plugins: Plugins) -> Result<Exit, Failure> {
    let input = input::read(&args.config, &args.overrides, args.world, &args.io, plugins)?;
    let plan = plan(&input)?;
    let ranks = ranks(&input, &plan)?;
    if args.io.explain_io {
        let loader = Loader::new(&plan, &input.checkpoint).ranks(&ranks).io(input.io.clone());
        print_note(&format!("{}{}", loader.explain()?, loader.preflight()?));
    }
    let cancel = cancel_on_signal()?;
    let target = args.save.as_deref().map(|dir| Target::new(dir, args.overwrite, &plan, &input.checkpoint, &ranks)).transpose()?;
    // What can be known now should not be found out after an hour of loading.
    args.report.as_deref().map(|file| check_writable(file, written(file))).transpose()?;
    let devices = device::of(args.device, &input, &ranks)?;
    match (target, devices) {
        (Some(target), None) => {
            let (streamed, saved) = target.stream(&ranks, &input.io, args.digest, &cancel)?;
            let totals = Totals::new(&streamed.stats, process_memory().map(|m| m.peak));
            tell(args, &plan, &streamed.ranks.iter().collect::<Vec<_>>(), &totals, Some(&saved))?;
            report(args, || Report::of_streamed(&plan, &streamed, totals))?;
        }
        (target, devices) => {
            let devices = devices.map(|devices| (devices, device::options(&args.io, &input)));
            let loaded = load(&input, &plan, &ranks, devices.as_ref(), &cancel)?;
            let totals = Totals::new(loaded.stats(), process_memory().map(|m| m.peak));
            let figures: Vec<RankStats> = loaded.ranks().into_iter().copied().collect();
            let described = args.report.is_some() || args.format == Format::Json;
            let loaded = if target.is_some() || described { Some(loaded.on_host()?) } else { None };
            let saved = target.zip(loaded.as_ref()).map(|(target, loaded)| target.save(loaded, &cancel)).transpose()?;
            tell(args, &plan, &figures.iter().collect::<Vec<_>>(), &totals, saved.as_deref())?;
            if let Some(loaded) = &loaded {
                report(args, || Report::new(&plan, loaded, totals, args.digest))?;
            }
        }
    }
    if args.format == Format::Table {
        print_next(&next_step(args, args.save.is_some()));
    }
    Ok(Exit::Done)
}

/// The table, and what was saved.
fn tell(args: &LoadArgs, plan: &ShardPlan, ranks: &[&RankStats], totals: &Totals, saved: Option<&str>) -> Result<(), Failure> {
    if args.format == Format::Table {
        print(&summary::table(plan, ranks, totals))?;
    }
    match saved {
        Some(saved) if args.format == Format::Table => print(&format!("\n{saved}")),
        Some(saved) => {
            print_note(saved);
            Ok(())
        }
        None => Ok(()),
    }
}

/// What a load is for: the shards are saved, then trained from.
fn next_step(args: &LoadArgs, saved: bool) -> String {
    let config = args.config.display();
    match &args.save {
        Some(dir) if saved => {
            format!("shardwright verify {0} checks what was saved; docs/save-format.md shows how torch resumes from {0}", dir.display())
        }
        _ => format!("shardwright load {config} … --save DIR keeps the shards for training"),
    }
}

/// The validated plan. Nothing of the shards' size is allocated before this holds.
fn plan(input: &Input) -> Result<ShardPlan, Failure> {
    let (plan, odd) = plan_of(input)?;
    render::warn(&odd, &input.sources);
    Ok(plan)
}

/// The validated plan, and what is odd about its precision.
pub fn plan_of(input: &Input) -> Result<(ShardPlan, Vec<Diagnostic>), Failure> {
    Ok(run::plan(&input.resolved, &input.checkpoint)?)
}

/// The ranks of this process: the one that it is, or all.
fn ranks(input: &Input, plan: &ShardPlan) -> Result<Vec<u32>, Failure> {
    Ok(input.world.rank.map_or_else(|| all_ranks(plan.mesh.world_size()), |rank| Ok(vec![rank]))?)
}

fn load<'p>(
    input: &'p Input,
    plan: &'p ShardPlan,
    ranks: &[u32],
    devices: Option<&(Devices, DeviceOptions)>,
    cancel: &CancelToken,
) -> Result<Placed<'p>, Failure> {
    let shown: Mutex<Option<Progress>> = Mutex::new(None);
    let progress = |p: &shardwright_engine::load::Progress<'_>| {
        // The loader calls from one thread; the lock is never waited for.
        if let Ok(mut shown) = shown.lock() {
            shown.get_or_insert_with(|| Progress::new("load", p.ranks.iter().map(|r| (format!("rank {}", r.rank), r.total)))).show(
                p.ranks.iter().map(|r| r.done),
                p.read,
                p.total,
            );
        }
    };
    let loader = Loader::new(plan, &input.checkpoint).ranks(ranks).io(input.io.clone()).cancel(cancel).progress(&progress);
    let loaded = match devices {
        None => loader.load().map(Placed::Host),
        Some((devices, options)) => loader.load_to(devices, *options).map(Placed::Device),
    };
    if let Ok(Some(shown)) = shown.into_inner() {
        shown.finish();
    }
    Ok(loaded?)
}

/// A report is JSON, or a page where its name says so.
fn written(report: &Path) -> Written {
    if report.extension().is_some_and(|e| e.eq_ignore_ascii_case("html")) { Written::Page } else { Written::Report }
}

/// Writes the report, where one is asked for.
fn report<'a>(args: &LoadArgs, make: impl FnOnce() -> Report<'a>) -> Result<(), Failure> {
    if args.report.is_none() && args.format == Format::Table {
        return Ok(());
    }
    let report = &make();
    let mut json =
        serde_json::to_string_pretty(report).map_err(|e| Failure::new(Exit::Io, format_args!("cannot render the report: {e}")))?;
    json.push('\n');
    match &args.report {
        Some(file) if matches!(written(file), Written::Page) => write_whole(file, &page::render(Page::Load { report })?, Written::Page)?,
        Some(file) => write_whole(file, &json, Written::Report)?,
        None => {}
    }
    if args.format == Format::Json { print(&json) } else { Ok(()) }
}
