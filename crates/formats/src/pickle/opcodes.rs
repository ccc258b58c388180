//! A pickle's opcodes with their operands, decoded one after the other. A window of the source is in memory, or one long string of it.

use std::ops::Range;

use crate::{FormatError, ReadAt, Result};

/// Bytes that are read at a time.
const WINDOW: usize = 64 << 10;
/// Bytes that each of the two lines of a name may have.
const LINE: usize = 1024;

/// What to do about a file that is not all there.
const AGAIN: &str = "the save may not have ended: save it again, or name another checkpoint";

/// What an opcode asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op<'a> {
    Stop,
    Frame,
    Mark,
    Pop,
    /// A name: its module, and what it is called there.
    Global(&'a str, &'a str),
    /// A name, of which both are on the stack.
    StackGlobal,
    Str(&'a str),
    Bytes,
    Int(i64),
    Float(f64),
    None,
    Bool(bool),
    /// A tuple of so many values.
    TupleOf(usize),
    /// A tuple of what is above the mark.
    Tuple,
    EmptyList,
    List,
    Append,
    Appends,
    EmptyDict,
    Dict,
    SetItem,
    SetItems,
    /// Into the memo, under that number.
    Put(u32),
    /// Into the memo, under the next number.
    Memoize,
    /// From the memo.
    Get(u32),
    Reduce,
    Build,
    Persistent,
}

pub(super) struct Opcodes<'a, S: ?Sized> {
    source: &'a S,
    size: u64,
    window: Vec<u8>,
    /// Where the window starts in the source.
    start: u64,
    /// The next byte in the window.
    at: usize,
}

pub(super) fn malformed(what: impl std::fmt::Display, at: u64) -> FormatError {
    FormatError::new(format_args!("not a valid pickle: {what} at byte {at}"))
}

impl<'a, S: ReadAt + ?Sized> Opcodes<'a, S> {
    pub(super) fn new(source: &'a S) -> Self {
        Self { source, size: source.size(), window: Vec::new(), start: 0, at: 0 }
    }

    /// Goes back to the start.
    pub(super) fn rewind(&mut self) {
        if self.start > 0 {
            self.window.clear();
            self.start = 0;
        }
        self.at = 0;
    }

    /// Bytes of the whole pickle.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    fn error(&self, what: impl std::fmt::Display) -> FormatError {
        malformed(what, self.position())
    }

    fn missing(&self, len: u64) -> FormatError {
        let error = self.error(format_args!("{len} bytes are announced and not there"));
        FormatError::new(format_args!("{error}; {AGAIN}"))
    }

    /// Brings the next `len` bytes into the window, or as many as there are.
    fn fill(&mut self, len: usize) -> Result<()> {
        let (position, ahead) = (self.position(), self.window.len() - self.at);
        let left = usize::try_from(self.size - position).unwrap_or(usize::MAX);
        if ahead >= len.min(left) {
            return Ok(());
        }
        self.window.resize(len.max(WINDOW).min(left), 0);
        (self.start, self.at) = (position, 0);
        self.source.read_exact_at(&mut self.window, position).map_err(|e| {
            self.window.clear();
            FormatError::io("cannot read the pickle", e)
        })
    }

    /// Where the next `len` bytes are in the window; they are taken.
    fn take(&mut self, len: u64) -> Result<Range<usize>> {
        let missing = |ops: &Self| ops.missing(len);
        let wanted = usize::try_from(len).map_err(|_| missing(self))?;
        self.fill(wanted)?;
        let taken = self.at..self.at.checked_add(wanted).filter(|end| *end <= self.window.len()).ok_or_else(|| missing(self))?;
        self.at = taken.end;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.window[self.at..].first_chunk() {
            Some(next) => {
                self.at += N;
                Ok(*next)
            }
            None => self.array_behind_the_window(),
        }
    }

    #[cold]
    fn array_behind_the_window<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N as u64)?;
        self.window[taken].try_into().map_err(|_| self.error("cut off"))
    }

    fn byte(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn word(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self, len: u64) -> Result<Op<'_>> {
        let taken = self.take(len)?;
        let at = self.position();
        // Python writes lone surrogates too; a tensor of such a name is of no use.
        std::str::from_utf8(&self.window[taken]).map(Op::Str).map_err(|_| malformed("a string that is not UTF-8", at))
    }

    fn bytes(&mut self, len: u64) -> Result<Op<'static>> {
        if len > self.size - self.position() {
            return Err(self.missing(len));
        }
        // They are of no use: the window starts behind them.
        let end = self.position() + len;
        match usize::try_from(end - self.start) {
            Ok(at) if at <= self.window.len() => self.at = at,
            _ => {
                self.window.clear();
                (self.start, self.at) = (end, 0);
            }
        }
        Ok(Op::Bytes)
    }

    fn line(&mut self) -> Result<Range<usize>> {
        let rest = &self.window[self.at..];
        let len = rest.iter().take(LINE).position(|b| *b == b'\n').ok_or_else(|| self.error("a name without an end"))?;
        let line = self.at..self.at + len;
        self.at += len + 1;
        Ok(line)
    }

    fn global(&mut self) -> Result<Op<'_>> {
        self.fill(2 * LINE)?;
        let (module, name) = (self.line()?, self.line()?);
        let at = self.position();
        let text = |line| std::str::from_utf8(&self.window[line]).map_err(|_| malformed("a name that is not UTF-8", at));
        Ok(Op::Global(text(module)?, text(name)?))
    }

    fn long(&mut self) -> Result<Op<'static>> {
        let len = self.byte()?;
        let taken = self.take(len.into())?;
        let value = long(&self.window[taken]).ok_or_else(|| self.error("an integer of more than 64 bits"))?;
        Ok(Op::Int(value))
    }

    /// Checks the protocol, with which a pickle starts.
    pub(super) fn protocol(&mut self) -> Result<()> {
        match self.array() {
            Ok([0x80, 2..=5]) => Ok(()),
            Ok([0x80, other]) => Err(FormatError::new("not a pickle of protocol 2 to 5").found(format_args!("protocol {other}"))),
            Err(error) if error.is_io() => Err(error),
            _ => Err(FormatError::new(format_args!("not a pickle of protocol 2 to 5; {AGAIN}"))),
        }
    }

    /// The next opcode, and where what follows it starts.
    pub(super) fn next(&mut self) -> Result<(u64, Op<'_>)> {
        let op = match self.byte()? {
            b'.' => Op::Stop,
            // Its length is a hint.
            0x95 => self.array::<8>().map(|_| Op::Frame)?,
            b'(' => Op::Mark,
            b'0' => Op::Pop,
            0x93 => Op::StackGlobal,
            b'J' => Op::Int(self.array().map(i32::from_le_bytes)?.into()),
            b'K' => Op::Int(self.byte()?.into()),
            b'M' => Op::Int(self.array().map(u16::from_le_bytes)?.into()),
            0x8a => self.long()?,
            b'G' => Op::Float(self.array().map(f64::from_be_bytes)?),
            b'N' => Op::None,
            0x88 => Op::Bool(true),
            0x89 => Op::Bool(false),
            b')' => Op::TupleOf(0),
            0x85 => Op::TupleOf(1),
            0x86 => Op::TupleOf(2),
            0x87 => Op::TupleOf(3),
            b't' => Op::Tuple,
            b']' | 0x8f => Op::EmptyList,
            b'l' | 0x91 => Op::List,
            b'a' => Op::Append,
            b'e' | 0x90 => Op::Appends,
            b'}' => Op::EmptyDict,
            b'd' => Op::Dict,
            b's' => Op::SetItem,
            b'u' => Op::SetItems,
            b'q' => Op::Put(self.byte()?.into()),
            b'r' => Op::Put(self.word()?),
            0x94 => Op::Memoize,
            b'h' => Op::Get(self.byte()?.into()),
            b'j' => Op::Get(self.word()?),
            b'R' | 0x81 => Op::Reduce,
            b'b' => Op::Build,
            b'Q' => Op::Persistent,
            opcode => return self.long_operand(opcode),
        };
        Ok((self.position(), op))
    }

    /// Opcodes whose operands may be of any length.
    fn long_operand(&mut self, opcode: u8) -> Result<(u64, Op<'_>)> {
        let len = match opcode {
            b'X' | b'B' => self.word()?.into(),
            0x8c | b'C' => self.byte()?.into(),
            0x8d | 0x8e => self.array().map(u64::from_le_bytes)?,
            b'c' => 0,
            other => return Err(self.error(format_args!("opcode 0x{other:02x} is not read"))),
        };
        let behind = self.position().saturating_add(len);
        let op = match opcode {
            b'c' => self.global()?,
            b'X' | 0x8c | 0x8d => self.text(len)?,
            _ => self.bytes(len)?,
        };
        Ok((behind, op))
    }
}

/// A little-endian two's complement integer.
fn long(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() {
        return Some(0);
    }
    let fill = if bytes[bytes.len() - 1] & 0x80 != 0 { 0xff } else { 0 };
    let mut wide = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    wide[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(wide);
    (high.iter().all(|b| *b == fill) && (value < 0) == (fill != 0)).then_some(value)
}
