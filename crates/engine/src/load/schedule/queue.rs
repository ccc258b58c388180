//! The one queue of tasks: what was handed out to be read, and what was announced before.

/// A place in the list of pieces; `pos` counts elements of the piece, or tiles of its sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    pub(super) piece: usize,
    pub(super) pos: u64,
}

/// What was handed out to be read, and what to be announced, which is `lead` tasks further.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) read: Cursor,
    pub(super) announced: Cursor,
    pub(super) lead: usize,
}

/// Some bytes of one file, for one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(super) at: Cursor,
    pub(crate) bytes: u64,
    pub(crate) file: u32,
}
