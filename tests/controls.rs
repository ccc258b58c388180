//! What a user may set about reading, and what stops a load: flags, too little memory, a signal.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use runner::{skip, tests};
use shardwright_engine::generate::{Content, Qwen3, write_checkpoint};
use support::{checkpoint, fsdp2_config, json, run, shardwright, stderr};

#[path = "support/runner.rs"]
mod runner;
mod support;

tests! {
    every_way_to_read_gives_the_same_shards,
    the_choice_is_explained_setting_by_setting,
    shards_that_do_not_fit_are_refused_with_the_numbers,
    force_goes_past_the_preflight,
    permission_lost_during_a_load_is_reported,
    a_signal_stops_a_load_with_its_own_exit_code,
    no_command_needs_more_threads_than_there_are,
    a_file_size_limit_is_a_failed_write,
    a_tight_address_space_ends_every_command,
    flags_out_of_range_are_refused_by_name,
}

/// The digests of every shard, by rank and tensor.
fn digests(config: &Path, flags: &[&str]) -> String {
    let args = ["load", config.to_str().unwrap(), "--world-size", "3", "--digest", "--format", "json"];
    let report = json(&run(args.iter().chain(flags)));
    let shards = report["ranks"].as_array().unwrap().iter().flat_map(|r| r["tensors"].as_array().unwrap());
    shards.map(|t| format!("{} {}\n", t["name"], t["sha256"])).collect()
}

fn every_way_to_read_gives_the_same_shards() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None);
    let plain = digests(&config, &[]);
    assert!(plain.lines().count() > 30 && !plain.contains("null"), "{plain}");
    for flags in [
        &["--direct"][..],
        &["--mmap"],
        &["--threads", "1", "--block-size", "4096"],
        &["--threads", "7", "--queue-depth", "1", "--drop-cache"],
        &["--readahead", "--queue-depth", "2", "--drop-cache"],
        &["--readahead=false", "--threads", "2", "--block-size", "4096"],
        &["--direct", "--threads", "3", "--block-size", "8KiB"],
    ] {
        assert!(digests(&config, flags) == plain, "{flags:?} gives other shards");
    }
}

fn the_choice_is_explained_setting_by_setting() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None);
    let output = run(["load", config.to_str().unwrap(), "--explain-io", "--threads", "3"]);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "threads = 3: as set",
        "queue_depth = ",
        "block_size = ",
        "method = pread: ",
        "readahead = true: ",
        "drop_cache = false",
        "task_size = ",
        "stall_timeout = 120",
        "casts = ",
        "memory = ",
    ] {
        assert!(text.contains(line), "'{line}' is not in: {text}");
    }
}

/// A terabyte of holes: refused before a byte is allocated, with what it takes and what there is.
fn shards_that_do_not_fit_are_refused_with_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [shardwright_core::TensorMeta::new("w", shardwright_core::DType::BF16, [1u64 << 20, 1 << 19])];
    write_checkpoint(dir.path(), &tensors, u64::MAX, Content::Sparse).unwrap();
    let config = fsdp2_config(dir.path(), dir.path(), 1, Some("bfloat16"));
    let output = run(["load", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    for needle in ["1048576 MiB for shards", "MiB by ", "force"] {
        assert!(stderr(&output).contains(needle), "'{needle}' is not in: {}", stderr(&output));
    }
}

/// Forced, the same terabyte is asked of the system, which refuses it.
fn force_goes_past_the_preflight() {
    if fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "1") {
        skip("this system maps any size");
    }
    let dir = tempfile::tempdir().unwrap();
    let tensors = [shardwright_core::TensorMeta::new("w", shardwright_core::DType::BF16, [1u64 << 20, 1 << 21])];
    write_checkpoint(dir.path(), &tensors, u64::MAX, Content::Sparse).unwrap();
    let config = fsdp2_config(dir.path(), dir.path(), 1, Some("bfloat16"));
    let output = run(["load", config.to_str().unwrap(), "--force"]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot map 4398046511104 bytes"), "{}", stderr(&output));
}

/// Two files, of which the second may no longer be read once the first is on its way. Root reads everything, so it is run as nobody.
fn permission_lost_during_a_load_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let tensor = |name: &str| shardwright_core::TensorMeta::new(name, shardwright_core::DType::BF16, [1u64 << 10, 1 << 17]);
    write_checkpoint(&model, &[tensor("first"), tensor("second")], 1 << 28, Content::Sparse).unwrap();
    let config = fsdp2_config(dir.path(), &model, 1, Some("checkpoint"));
    let program = dir.path().join("shardwright");
    fs::copy(env!("CARGO_BIN_EXE_shardwright"), &program).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&model, 0o755), (config.as_path(), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = std::process::Command::new(&program);
    command.args(["load", config.to_str().unwrap(), "--threads", "1", "--block-size", "4096", "--direct", "--queue-depth", "1"]);
    command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: geteuid only asks.
    if unsafe { libc::geteuid() } == 0 {
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    let child = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(20)); // a copy that another thread's fork still holds open for writing is busy
        command.spawn().ok()
    });
    let child = child.unwrap();
    wait_for_bytes(child.id(), 4 << 20);
    fs::set_permissions(model.join("model-00002-of-00002.safetensors"), fs::Permissions::from_mode(0o000)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    for needle in ["model-00002-of-00002.safetensors", "denied"] {
        assert!(stderr(&output).contains(needle), "'{needle}' is not in: {}", stderr(&output));
    }
}

/// Until a process has read so much, by the operating system's count.
fn wait_for_bytes(process: u32, bytes: u64) {
    let read = || {
        let io = fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
        io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    let started = Instant::now();
    while read() < bytes && started.elapsed() < Duration::from_secs(60) {
        std::thread::yield_now();
    }
    assert!(read() >= bytes, "the load did not come so far");
}

/// Signals are sent once the load is well under way, by the operating system's count of what it read. A terminal that goes hangs up twice;
/// under nohup nothing hears of it.
fn a_signal_stops_a_load_with_its_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Qwen3::B1_7.write_sparse(&model).unwrap();
    let config = fsdp2_config(dir.path(), &model, 1, Some("checkpoint"));
    for (nohup, signals) in [(false, &[libc::SIGINT][..]), (false, &[libc::SIGHUP, libc::SIGHUP]), (true, &[libc::SIGHUP, libc::SIGINT])] {
        let mut command = shardwright();
        command.args(["load", config.to_str().unwrap(), "--world-size", "8", "--rank", "1", "--threads", "1", "--block-size", "4096"]);
        command.args(["--direct", "--queue-depth", "1"]); // nothing faster than a page at a time
        let hangup = if nohup { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGHUP, hangup);
                Ok(())
            })
        };
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        for (i, &signal) in signals.iter().enumerate() {
            if i == 0 || nohup {
                wait_for_bytes(child.id(), (4 << 20) * (i as u64 + 1));
            }
            // SAFETY: a signal to our own child, which was not waited for yet.
            unsafe { libc::kill(id, signal) };
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{signals:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("the load was stopped"), "{signals:?}: {}", stderr(&output));
    }
}

/// A checkpoint of many files, so that headers are read on threads where there are any, and its config.
fn many_files(dir: &Path) -> (PathBuf, PathBuf) {
    let model = dir.join("model");
    let tensors: Vec<_> =
        (0..40).map(|i| shardwright_core::TensorMeta::new(format!("w{i:02}"), shardwright_core::DType::BF16, [64u64, 64])).collect();
    write_checkpoint(&model, &tensors, 8192, Content::Sparse).unwrap();
    assert!(fs::read_dir(&model).unwrap().count() > 32);
    let config = fsdp2_config(dir, &model, 1, Some("checkpoint"));
    (model, config)
}

/// A shell that sets a limit, then becomes the program; so does every process that runs under one.
fn limited(limit: &str, args: &[&std::ffi::OsStr]) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_shardwright")]).args(args);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("RUST_BACKTRACE", "1");
    command
}

/// `pids.max` and `RLIMIT_NPROC` refuse threads to whoever is not root: every command goes on with those it has.
fn no_command_needs_more_threads_than_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (model, config) = many_files(dir.path());
    let shards = dir.path().join("out/shards");
    fs::create_dir(dir.path().join("out")).unwrap();
    let program = dir.path().join("shardwright");
    fs::copy(env!("CARGO_BIN_EXE_shardwright"), &program).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&model, 0o755), (config.as_path(), 0o644), (&dir.path().join("out"), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let run = |args: &[&std::ffi::OsStr]| {
        let run = || {
            let mut command = std::process::Command::new(&program);
            command.args(args).env_clear().current_dir(dir.path());
            // SAFETY: geteuid only asks.
            let root = unsafe { libc::geteuid() } == 0;
            // For a user of its own, the main thread alone; for the user who runs the tests, fewer than run already.
            let most = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
            // SAFETY: both are only system calls, which may be made between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    if root && libc::setuid(61_000 + libc::uid_t::try_from(std::process::id() % 4000).unwrap_or(0)) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    match libc::setrlimit(libc::RLIMIT_NPROC, &raw const most) {
                        0 => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    }
                })
            };
            command.output()
        };
        // A copy that another thread's fork still holds open for writing is busy.
        (0..100).find_map(|_| run().map_err(|_| std::thread::sleep(Duration::from_millis(20))).ok()).unwrap()
    };
    let ok = |what: &str, args: &[&std::ffi::OsStr]| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{what}: {}", stderr(&output));
    };
    ok("inspect", &["inspect".as_ref(), model.as_ref()]);
    for (flag, to) in [("--save", shards.as_os_str()), ("--report", dir.path().join("out/report.json").as_os_str())] {
        ok(flag, &["load".as_ref(), config.as_os_str(), "--world-size".as_ref(), "4".as_ref(), flag.as_ref(), to]);
    }
    ok("verify", &["verify".as_ref(), shards.as_ref(), "--against".as_ref(), model.as_ref()]);
}

/// Beyond `ulimit -f` a write fails, is reported with exit code 6, and nothing is left.
fn a_file_size_limit_is_a_failed_write() {
    let dir = tempfile::tempdir().unwrap();
    let config = fsdp2_config(dir.path(), &checkpoint("tiny-qwen3-bf16"), 1, None);
    let (shards, report) = (dir.path().join("shards"), dir.path().join("report.json"));
    for (flag, path) in [("--save", &shards), ("--report", &report)] {
        let output = limited("ulimit -f 8", &["load".as_ref(), config.as_os_str(), flag.as_ref(), path.as_os_str()]).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{flag}: {:?} {}", output.status, stderr(&output));
        assert!(stderr(&output).contains("File too large"), "{flag}: {}", stderr(&output));
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["train.yaml"], "nothing is left behind");
}

/// However little address space there is, every command ends, and with a documented exit code or the allocator's abort; none hangs.
fn a_tight_address_space_ends_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let (model, config) = many_files(dir.path());
    let shards = dir.path().join("shards");
    let saved = shardwright().args(["load".as_ref(), config.as_os_str(), "--save".as_ref(), shards.as_os_str()]).output().unwrap();
    assert!(saved.status.success(), "{}", stderr(&saved));
    let mut done = 0;
    for kilobytes in [12_000, 16_000, 20_000, 24_000, 32_000, 64_000, 1_000_000] {
        let limit = format!("ulimit -v {kilobytes}");
        for args in [&["verify".as_ref(), shards.as_os_str()][..], &["inspect".as_ref(), model.as_os_str()]] {
            let mut child = limited(&limit, args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let started = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(started.elapsed() < Duration::from_secs(60), "{args:?} hangs under {limit}");
                std::thread::sleep(Duration::from_millis(5));
            };
            let reported = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
            // Before `main`, the standard library itself has no other way to end.
            let begun = !reported.contains("failed to allocate an alternative stack");
            assert!(!begun || !reported.contains("panicked"), "{args:?} under {limit}: {status} {reported}");
            done += usize::from(status.success());
        }
    }
    assert!(done >= 2, "a gigabyte is enough for both");
}

/// A flag that is out of range is a fault of the command line, reported by the flag's name.
fn flags_out_of_range_are_refused_by_name() {
    for (flag, value, needle) in [
        ("--threads", "0", "1..=1024"),
        ("--threads", "-1", "-1"),
        ("--queue-depth", "1025", "1..=1024"),
        ("--block-size", "4095", "expected 4096 to 268435456 bytes"),
        ("--ring-size", "0", "expected 65536 bytes or more"),
        ("--rank", "-1", "-1"),
    ] {
        let output = run(["load", "examples/fsdp2.yaml", flag, value]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("'{flag} ")) && text.contains(needle), "{text}");
    }
}
