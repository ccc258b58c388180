//! Findings on a real terminal, which is a pseudo terminal here, and where there is none.

use std::{
    fs::File,
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    ptr::null_mut,
};

/// Both ends of a new terminal: ours, and that of the program which runs in it.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both pointers are to live integers; the name, the settings and the size are optional, and left out.
    let code = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, null_mut(), null_mut(), null_mut()) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty succeeded, so both are open, and nobody else has them.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resolve/invalid");
    command.current_dir(folder).args(["resolve", "everywhere.yaml"]).env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// What the program says on a terminal, line ends as they were written.
fn on_a_terminal(variables: &[(&str, &str)]) -> String {
    let (mut ours, theirs) = terminal();
    let mut child = command(variables).stderr(theirs).spawn().unwrap();
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    // Linux ends a terminal that nobody holds any more with an error.
    while let Ok(count @ 1..) = ours.read(&mut part) {
        text.extend_from_slice(&part[..count]);
    }
    assert_eq!(child.wait().unwrap().code(), Some(3));
    String::from_utf8(text).unwrap().replace("\r\n", "\n")
}

fn without_colour(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').expect("a colour ends with m").1)
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let piped = String::from_utf8(command(&[("TERM", "xterm")]).stderr(Stdio::piped()).output().unwrap().stderr).unwrap();
    assert!(piped.contains("error[config-unknown-key]:") && !piped.contains('\x1b'), "a pipe gets plain text: {piped}");
    for wants in [&[("TERM", "xterm")][..], &[], &[("TERM", "xterm"), ("NO_COLOR", "")]] {
        let coloured = on_a_terminal(wants);
        assert!(coloured.contains("\x1b[1;31merror[config-unknown-key]\x1b[0m"), "{wants:?}: {coloured}");
        assert_eq!(without_colour(&coloured), piped, "colour is all that differs");
    }
    for wants_not in [&[("TERM", "xterm"), ("NO_COLOR", "1")][..], &[("TERM", "dumb")]] {
        assert_eq!(on_a_terminal(wants_not), piped, "{wants_not:?}");
    }
}
