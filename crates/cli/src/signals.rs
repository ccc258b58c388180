//! Signals that stop a command.

use std::sync::{Arc, atomic::AtomicBool};

use shardwright_engine::load::CancelToken;

use crate::exit::{Exit, Failure};

/// SIGINT and SIGTERM stop the work; a second one ends the process at once. So does SIGHUP, of a terminal that is gone, but for the second:
/// shell and kernel both send it. Under nohup it is ignored, and stays so.
pub fn cancel_on_signal() -> Result<CancelToken, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    let cannot = |e| Failure::new(Exit::Io, format_args!("cannot watch for signals: {e}"));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, Exit::Interrupted as i32, Arc::clone(&flag)).map_err(cannot)?;
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(cannot)?;
    }
    if !hangup_is_ignored() {
        signal_hook::flag::register(SIGHUP, Arc::clone(&flag)).map_err(cannot)?;
    }
    Ok(CancelToken::from_flag(flag))
}

/// By the kernel's word; where it gives none, no.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << (signal_hook::consts::SIGHUP - 1) != 0)
}
