//! An interpreter of as much PTX as the kernels use: it runs the text that is shipped, instruction by instruction, as NVIDIA's
//! "PTX ISA 8.0" defines them. Stricter than a card: an access that is misaligned, or outside of what the kernel was given, panics, as does
//! any instruction that it does not know. Arithmetic gives the one NaN that cards give, so that a payload which came through by luck shows.

use std::collections::HashMap;

/// Where the block, the tiles and the destination lie: far from each other, so that no offset leads from one to another.
pub(crate) const BLOCK: u64 = 1 << 40;
pub(crate) const TILES: u64 = 2 << 40;
pub(crate) const DESTINATION: u64 = 3 << 40;

/// Threads of a block: few, so that small counts go around the loops too.
const THREADS: u32 = 32;
/// Steps of a thread until it counts as caught in a loop.
const PATIENCE: u64 = 100_000_000;

/// Register, by index among all of the kernel; its value stands in the low bits.
type Register = usize;

#[derive(Clone, Copy)]
enum Operand {
    Register(Register),
    Immediate(u64),
    Parameter(usize),
    ThreadIndex,
    ThreadCount,
    BlockIndex,
}

/// A base register and what is added to it.
#[derive(Clone, Copy)]
struct Address(Register, u64);

type Arithmetic = fn([u64; 4]) -> u64;

enum Operation {
    Return,
    Branch(usize),
    Compute { to: Register, with: Arithmetic, from: [Operand; 4] },
    Load { to: Vec<Register>, at: Address, size: usize },
    Store { from: Vec<Register>, at: Address, size: usize },
}

struct Instruction {
    /// Skipped unless this register is as said.
    guard: Option<(Register, bool)>,
    operation: Operation,
}

/// A kernel, ready to run.
pub(crate) struct Kernel {
    code: Vec<Instruction>,
    /// By register: the bits that it has.
    masks: Vec<u64>,
}

/// What a launch may touch.
pub(crate) struct Memory<'a> {
    pub(crate) block: &'a [u8],
    pub(crate) tiles: &'a [u8],
    pub(crate) destination: &'a mut [u8],
}

impl Memory<'_> {
    fn read(&self, address: u64, size: usize) -> u64 {
        let (from, at) = match address {
            DESTINATION.. => panic!("a kernel reads what it shall write, at {address:#x}"),
            TILES.. => (self.tiles, address - TILES),
            BLOCK.. => (self.block, address - BLOCK),
            _ => panic!("a kernel reads at {address:#x}"),
        };
        let at = usize::try_from(at).unwrap();
        let bytes = from.get(at..at + size).unwrap_or_else(|| panic!("a kernel reads {size} bytes at {at} of {}", from.len()));
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn write(&mut self, address: u64, size: usize, word: u64) {
        let len = self.destination.len();
        let at = usize::try_from(address.wrapping_sub(DESTINATION)).unwrap();
        let to = self
            .destination
            .get_mut(at..at.saturating_add(size))
            .unwrap_or_else(|| panic!("a kernel writes {size} bytes at {at} of {len}"));
        to.copy_from_slice(&word.to_le_bytes()[..size]);
    }
}

impl Kernel {
    /// The kernel of that name in a module's text.
    pub(crate) fn parse(ptx: &str, name: &str) -> Self {
        let start = ptx.find(&format!(".visible .entry {name}(")).unwrap_or_else(|| panic!("no kernel {name}"));
        let text = &ptx[start..];
        let body = &text[text.find('{').unwrap() + 1..text.find("\n}").unwrap()];
        let lines = body.lines().map(|l| l.split("//").next().unwrap().trim()).filter(|l| !l.is_empty());
        let mut parser = Parser { name, labels: HashMap::new(), registers: HashMap::new(), masks: Vec::new() };
        let mut statements = Vec::new();
        for line in lines {
            if let Some(label) = line.strip_suffix(':') {
                parser.labels.insert(label, statements.len());
            } else if let Some(declaration) = line.strip_prefix(".reg ") {
                parser.declare(declaration);
            } else {
                statements.push(line.strip_suffix(';').unwrap_or_else(|| panic!("{name}: {line}")));
            }
        }
        let code = statements.into_iter().map(|s| parser.instruction(s)).collect();
        Self { code, masks: parser.masks }
    }

    /// Runs it over so many tiles.
    pub(crate) fn launch(&self, blocks: u32, memory: &mut Memory<'_>) {
        for block in 0..blocks {
            for thread in 0..THREADS {
                self.thread(block, thread, memory);
            }
        }
    }

    fn thread(&self, block: u32, thread: u32, memory: &mut Memory<'_>) {
        let mut registers = vec![0u64; self.masks.len()];
        let mut at = 0;
        for _ in 0..PATIENCE {
            let Instruction { guard, operation } = &self.code[at];
            at += 1;
            if guard.is_some_and(|(register, wanted)| (registers[register] == 1) != wanted) {
                continue;
            }
            match operation {
                Operation::Return => return,
                Operation::Branch(target) => at = *target,
                Operation::Compute { to, with, from } => {
                    let values = from.map(|operand| match operand {
                        Operand::Register(r) => registers[r],
                        Operand::Immediate(value) => value,
                        Operand::Parameter(0) => BLOCK,
                        Operand::Parameter(_) => TILES,
                        Operand::ThreadIndex => thread.into(),
                        Operand::ThreadCount => THREADS.into(),
                        Operand::BlockIndex => block.into(),
                    });
                    registers[*to] = with(values) & self.masks[*to];
                }
                Operation::Load { to, at, size } => {
                    let address = aligned(registers[at.0].wrapping_add(at.1), size * to.len());
                    for (i, &to) in to.iter().enumerate() {
                        registers[to] = memory.read(address + (i * size) as u64, *size) & self.masks[to];
                    }
                }
                Operation::Store { from, at, size } => {
                    let address = aligned(registers[at.0].wrapping_add(at.1), size * from.len());
                    for (i, &from) in from.iter().enumerate() {
                        memory.write(address + (i * size) as u64, *size, registers[from]);
                    }
                }
            }
        }
        panic!("a thread does not come to its end");
    }
}

fn aligned(address: u64, size: usize) -> u64 {
    assert!(address.is_multiple_of(size as u64), "an access of {size} bytes at {address:#x}");
    address
}

struct Parser<'a> {
    name: &'a str,
    labels: HashMap<&'a str, usize>,
    /// By prefix: the first one's index.
    registers: HashMap<&'a str, usize>,
    masks: Vec<u64>,
}

impl<'a> Parser<'a> {
    /// `.b32 %r<11>;`
    fn declare(&mut self, text: &'a str) {
        let (kind, names) = text.split_once(char::is_whitespace).unwrap();
        let (prefix, count) = names.trim().split_once('<').unwrap();
        let mask = match kind {
            ".pred" => 1,
            ".b16" => 0xFFFF,
            ".b32" | ".f32" => 0xFFFF_FFFF,
            ".b64" | ".f64" => u64::MAX,
            _ => panic!("{}: registers {kind}", self.name),
        };
        let count: usize = count.strip_suffix(">;").unwrap().parse().unwrap();
        self.registers.insert(prefix, self.masks.len());
        self.masks.resize(self.masks.len() + count, mask);
    }

    fn register(&self, text: &str) -> Register {
        let digits = text.find(|c: char| c.is_ascii_digit()).unwrap_or_else(|| panic!("{}: register {text}", self.name));
        let (prefix, number) = text.split_at(digits);
        self.registers[prefix] + number.parse::<usize>().unwrap()
    }

    fn operand(&self, text: &str) -> Operand {
        match text {
            "%tid.x" => Operand::ThreadIndex,
            "%ntid.x" => Operand::ThreadCount,
            "%ctaid.x" => Operand::BlockIndex,
            _ if text.starts_with('%') => Operand::Register(self.register(text)),
            _ if text.starts_with('[') => {
                let number = text.strip_suffix(']').and_then(|t| t.rsplit('_').next()).and_then(|n| n.parse().ok());
                Operand::Parameter(number.unwrap_or_else(|| panic!("{}: parameter {text}", self.name)))
            }
            _ => Operand::Immediate(immediate(text).unwrap_or_else(|| panic!("{}: operand {text}", self.name))),
        }
    }

    /// `[%rd1+16]`
    fn address(&self, text: &str) -> Address {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap();
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        Address(self.register(base), immediate(offset).unwrap())
    }

    /// `%rd1` or `{%rd1, %rd2}`
    fn registers(&self, text: &str) -> Vec<Register> {
        text.trim_matches(['{', '}']).split(',').map(|r| self.register(r.trim())).collect()
    }

    fn instruction(&self, statement: &str) -> Instruction {
        let (guard, rest) = match statement.strip_prefix('@') {
            Some(guarded) => {
                let (guard, rest) = guarded.split_once(char::is_whitespace).unwrap();
                (Some((self.register(guard.trim_start_matches('!')), !guard.starts_with('!'))), rest.trim())
            }
            None => (None, statement),
        };
        let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let operands = split(operands);
        let operation = match opcode {
            "ret" => Operation::Return,
            "bra" | "bra.uni" => Operation::Branch(self.labels[&*operands[0]]),
            "ld.global.u8" => Operation::Load { to: self.registers(&operands[0]), at: self.address(&operands[1]), size: 1 },
            "ld.global.u64" | "ld.global.v2.u64" => {
                Operation::Load { to: self.registers(&operands[0]), at: self.address(&operands[1]), size: 8 }
            }
            "st.u8" => Operation::Store { from: self.registers(&operands[1]), at: self.address(&operands[0]), size: 1 },
            "st.v2.u64" => Operation::Store { from: self.registers(&operands[1]), at: self.address(&operands[0]), size: 8 },
            _ => {
                let (with, count) = arithmetic(opcode).unwrap_or_else(|| panic!("{}: instruction {opcode}", self.name));
                assert_eq!(operands.len(), count + 1, "{}: {statement}", self.name);
                let mut from = [Operand::Immediate(0); 4];
                for (place, text) in from.iter_mut().zip(&operands[1..]) {
                    *place = self.operand(text);
                }
                Operation::Compute { to: self.register(&operands[0]), with, from }
            }
        };
        Instruction { guard, operation }
    }
}

/// Operands, with what stands in braces as one of them.
fn split(operands: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut inside = false;
    for c in operands.chars().filter(|c| !c.is_whitespace()) {
        inside = (inside || c == '{') && c != '}';
        match c {
            ',' if !inside => all.push(String::new()),
            _ => all.last_mut().unwrap().push(c),
        }
    }
    all
}

fn immediate(text: &str) -> Option<u64> {
    if let Some(float) = text.strip_prefix("0f") {
        return u64::from_str_radix(float, 16).ok();
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    text.parse::<i64>().ok().map(i64::cast_unsigned)
}

/// What an instruction computes, and of how many operands. The destination's width cuts what is too long.
#[expect(clippy::cast_possible_truncation, reason = "an instruction for 16 or 32 bits sees no more of its operands")]
fn arithmetic(opcode: &str) -> Option<(Arithmetic, usize)> {
    Some(match opcode {
        "mov.b32" | "mov.u32" | "mov.f32" | "mov.b64" | "mov.u64" | "mov.u16" | "cvta.to.global.u64" | "ld.param.u64" => (|[a, ..]| a, 1),
        "cvt.u32.u64" | "cvt.u64.u32" | "cvt.u16.u64" | "cvt.u32.u16" | "cvt.u64.u16" => (|[a, ..]| a, 1),
        "cvt.rn.f32.f64" => (|[a, ..]| single(f64::from_bits(a) as f32), 1),
        "cvt.f64.f32" => (|[a, ..]| double(f64::from(f32::from_bits(a as u32))), 1),
        "add.rn.f32" => (|[a, b, ..]| single(f32::from_bits(a as u32) + f32::from_bits(b as u32)), 2),
        "mul.rn.f32" => (|[a, b, ..]| single(f32::from_bits(a as u32) * f32::from_bits(b as u32)), 2),
        "not.pred" => (|[a, ..]| !a, 1),
        "neg.s64" => (|[a, ..]| a.wrapping_neg(), 1),
        "and.pred" | "and.b16" | "and.b32" | "and.b64" => (|[a, b, ..]| a & b, 2),
        "or.b16" | "or.b32" | "or.b64" => (|[a, b, ..]| a | b, 2),
        "xor.b32" => (|[a, b, ..]| a ^ b, 2),
        "add.s32" | "add.s64" => (|[a, b, ..]| a.wrapping_add(b), 2),
        "sub.s64" => (|[a, b, ..]| a.wrapping_sub(b), 2),
        "mul.wide.u16" => (|[a, b, ..]| (a & 0xFFFF) * (b & 0xFFFF), 2),
        "mul.wide.u32" => (|[a, b, ..]| (a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF), 2),
        "min.u32" => (|[a, b, ..]| u64::from((a as u32).min(b as u32)), 2),
        "min.u64" => (|[a, b, ..]| a.min(b), 2),
        // A shift count is 32 bits and held at the width.
        "shl.b16" | "shl.b32" | "shl.b64" => (|[a, b, ..]| a.checked_shl(b as u32).unwrap_or(0), 2),
        "shr.u32" => (|[a, b, ..]| u64::from((a as u32).checked_shr(b as u32).unwrap_or(0)), 2),
        "shr.u64" => (|[a, b, ..]| a.checked_shr(b as u32).unwrap_or(0), 2),
        "setp.gt.u16" => (|[a, b, ..]| u64::from(a as u16 > b as u16), 2),
        "setp.gt.u32" => (|[a, b, ..]| u64::from(a as u32 > b as u32), 2),
        "setp.gt.u64" => (|[a, b, ..]| u64::from(a > b), 2),
        "setp.lt.u32" => (|[a, b, ..]| u64::from((a as u32) < b as u32), 2),
        "setp.lt.u64" => (|[a, b, ..]| u64::from(a < b), 2),
        "setp.le.u64" => (|[a, b, ..]| u64::from(a <= b), 2),
        "setp.eq.s16" => (|[a, b, ..]| u64::from(a as u16 == b as u16), 2),
        "setp.eq.s32" => (|[a, b, ..]| u64::from(a as u32 == b as u32), 2),
        "setp.eq.s64" | "setp.eq.b64" => (|[a, b, ..]| u64::from(a == b), 2),
        "selp.b32" | "selp.b64" => (|[a, b, p, _]| if p == 1 { a } else { b }, 3),
        "bfi.b64" => (|[a, b, at, len]| insert(a, b, at as u8, len as u8), 4),
        "prmt.b32" => (|[a, b, select, _]| permute(a & 0xFFFF_FFFF | b << 32, select), 3),
        _ => return None,
    })
}

fn single(x: f32) -> u64 {
    if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits().into() }
}

fn double(x: f64) -> u64 {
    if x.is_nan() { 0x7FFF_FFFF_FFFF_FFFF } else { x.to_bits() }
}

/// The low `len` bits of `a` in the place of those of `b` from `at` on.
fn insert(a: u64, b: u64, at: u8, len: u8) -> u64 {
    let field = 1u64.checked_shl(len.into()).map_or(u64::MAX, |bit| bit - 1).checked_shl(at.into()).unwrap_or(0);
    b & !field | a.checked_shl(at.into()).unwrap_or(0) & field
}

/// Four of eight bytes, each by a nibble of `select`, whose top bit asks for the byte's sign instead.
fn permute(bytes: u64, select: u64) -> u64 {
    (0..4).fold(0, |out, i| {
        let nibble = select >> (4 * i) & 15;
        let byte = bytes >> (8 * (nibble & 7)) & 0xFF;
        let byte = if nibble < 8 { byte } else { (byte >> 7) * 0xFF };
        out | byte << (8 * i)
    })
}

#[test]
fn the_instructions_that_look_hardest_are_as_the_manual_says() {
    let compute = |opcode: &str, from: [u64; 4]| arithmetic(opcode).unwrap().0(from);
    assert_eq!(compute("prmt.b32", [0x4433_2211, 0x8877_6655, 0x5410, 0]), 0x6655_2211);
    assert_eq!(compute("prmt.b32", [0x4433_2281, 0, 0x0008, 0]), 0x8181_81FF);
    assert_eq!(compute("bfi.b64", [0x1_2345_6789, 0xAAAA_BBBB_CCCC_DDDD, 32, 32]), 0x2345_6789_CCCC_DDDD);
    assert_eq!((compute("shl.b64", [1, 64, 0, 0]), compute("shr.u32", [u64::MAX, 31, 0, 0])), (0, 1));
    assert_eq!(compute("add.rn.f32", [0x7FC0_1234, 0, 0, 0]), 0x7FFF_FFFF);
    assert!(arithmetic("add.rn.ftz.f32").is_none() && arithmetic("fma.rn.f32").is_none());
    assert_eq!(split("{%rd1, %rd2}, [%rd3+16]"), ["{%rd1,%rd2}", "[%rd3+16]"]);
}
