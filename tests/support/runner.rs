//! A test that cannot run on this machine is reported as ignored, with the reason, and not as passed. Binaries with such tests have
//! `harness = false` in Cargo.toml and list their tests with [`tests!`].

use std::{
    panic::{catch_unwind, resume_unwind},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Completion, Trial};

struct Skip(String);

/// Ends the test that calls it: it cannot run here, for that reason.
pub fn skip(why: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skip(why.into())))
}

/// One test of that name.
pub fn trial(name: &str, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || match catch_unwind(test) {
        Ok(()) => Ok(Completion::Completed),
        Err(payload) => match payload.downcast::<Skip>() {
            Ok(skip) => Ok(Completion::ignored_with(skip.0.trim().replace('\n', " "))),
            Err(panic) => resume_unwind(panic),
        },
    })
}

/// Runs them as the command line says.
pub fn run(trials: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The main function of a binary with these tests. One that is not listed is dead code to the compiler.
macro_rules! tests {
    ($($test:path),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            runner::run(vec![$(runner::trial(stringify!($test), $test)),*])
        }
    };
}
pub(crate) use tests;
