//! A plugin's panic is an error of that plugin, reported like any other.

#![doc(hidden)]

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs an author's code; answers with what its panic says.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("without a message").to_owned()
    })
}
