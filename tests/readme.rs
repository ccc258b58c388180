//! The README shows what the program prints: its commands are run, and their output compared, times and memory aside.

mod support;

use support::{redacted, root, shardwright, stderr};

/// The console blocks of the README: each command with what is printed below it.
fn console(text: &str) -> Vec<(String, String)> {
    let blocks = text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .map(|block| {
            let (command, output) = block.split_once('\n').unwrap();
            (command.strip_prefix("$ ").expect("a command").to_owned(), output.trim_end().to_owned())
        })
        .collect()
}

#[test]
fn the_readme_shows_real_output() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut checked = 0;
    for (command, shown) in console(&readme) {
        let Some(args) = command.strip_prefix("cargo run --release -- ").or_else(|| command.strip_prefix("shardwright ")) else { continue };
        let output = shardwright().current_dir(root()).args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        assert_eq!(redacted(&String::from_utf8(output.stdout).unwrap()).trim_end(), redacted(&shown), "{command}");
        checked += 1;
    }
    assert!(checked >= 1, "no command found in the README");
    assert!(readme.contains("$ cargo test --workspace"), "the test command");
}
