//! Zip archives of stored members, read by their central directory: `torch.save` writes local headers before it knows sizes.

use std::collections::BTreeSet;

use crate::{FormatError, ReadAt, Result};

/// Members that an archive may have. `torch.save` writes one for each storage.
pub const MAX_MEMBERS: u64 = 4_000_000;
/// Bytes that a central directory may have.
pub const MAX_DIRECTORY: u64 = 512 << 20;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END_SIZE: u64 = 22;
const LOCATOR_SIZE: u64 = 20;

/// One stored member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, with the top folder.
    pub name: String,
    /// Where its local header starts, from the start of the archive.
    pub header: u64,
    /// Size in bytes.
    pub size: u64,
    /// CRC-32 of its bytes, as stated.
    pub crc: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// True where `source` begins like a zip.
pub fn is_zip(source: &(impl ReadAt + ?Sized)) -> bool {
    let mut magic = [0; 4];
    source.read_exact_at(&mut magic, 0).is_ok_and(|()| u32::from_le_bytes(magic) == LOCAL)
}

/// Reads `len` bytes at `offset`; `len` was bounded by the caller.
fn bytes(source: &(impl ReadAt + ?Sized), offset: u64, len: u64, what: &str) -> Result<Vec<u8>> {
    let cut = || FormatError::new(format_args!("the zip is cut off in its {what}")).found(format_args!("{} bytes", source.size()));
    if offset.checked_add(len).is_none_or(|end| end > source.size()) {
        return Err(cut());
    }
    let mut buffer = vec![0; usize::try_from(len).map_err(|_| cut())?];
    source.read_exact_at(&mut buffer, offset).map_err(|e| FormatError::io(format_args!("cannot read the zip's {what}"), e))?;
    Ok(buffer)
}

struct End {
    members: u64,
    size: u64,
    offset: u64,
    /// Where the records behind the directory start.
    at: u64,
}

fn end(source: &(impl ReadAt + ?Sized)) -> Result<End> {
    let none = || FormatError::new("not a whole zip: its end record is missing; the file may be cut off");
    if source.size() < END_SIZE {
        return Err(none());
    }
    let tail_size = source.size().min(END_SIZE + u64::from(u16::MAX));
    let tail = bytes(source, source.size() - tail_size, tail_size, "end record")?;
    let is_end = |at: &usize| {
        // The comment must reach the end of the file exactly.
        let comment = u16_at(&tail, at + 20).map(usize::from);
        u32_at(&tail, *at) == Some(END) && comment == tail.len().checked_sub(at + 22)
    };
    let at = (0..=tail.len() - 22).rev().find(is_end).ok_or_else(none)?;
    let short = |offset| u16_at(&tail, at + offset).map(u64::from).ok_or_else(none);
    let long = |offset| u32_at(&tail, at + offset).map(u64::from).ok_or_else(none);
    let position = source.size() - tail_size + at as u64;
    let mut found = End { members: short(10)?, size: long(12)?, offset: long(16)?, at: position };
    let disks = (short(4)?, short(6)?, short(8)? != found.members);
    let is64 = found.members == 0xffff || found.size == 0xffff_ffff || found.offset == 0xffff_ffff;
    if !is64 {
        if disks != (0, 0, false) {
            return Err(FormatError::new("the zip is spread over several disks"));
        }
        return Ok(found);
    }
    let locator_at = position.checked_sub(LOCATOR_SIZE).ok_or_else(none)?;
    let locator = bytes(source, locator_at, LOCATOR_SIZE, "zip64 locator")?;
    if u32_at(&locator, 0) != Some(LOCATOR64) {
        return Ok(found); // an archive of exactly such sizes
    }
    let at64 = u64_at(&locator, 8).ok_or_else(none)?;
    let record = bytes(source, at64, 56, "zip64 end record")?;
    if u32_at(&record, 0) != Some(END64) {
        return Err(FormatError::new("the zip64 locator points at something else").expected("a zip64 end record"));
    }
    let field = |offset| u64_at(&record, offset).ok_or_else(none);
    found = End { members: field(32)?, size: field(40)?, offset: field(48)?, at: at64 };
    if field(24)? != found.members || u32_at(&record, 16) != Some(0) || u32_at(&record, 20) != Some(0) {
        return Err(FormatError::new("the zip is spread over several disks"));
    }
    Ok(found)
}

/// Reads the central directory: the members, in its order. Their places are validated to lie before it; see [`payload`] for the data's own.
///
/// # Errors
/// What is malformed, compressed, encrypted, too large, or there twice.
pub fn members(source: &(impl ReadAt + ?Sized)) -> Result<Vec<Member>> {
    let end = end(source)?;
    if end.members > MAX_MEMBERS || end.size > MAX_DIRECTORY {
        return Err(FormatError::new("the zip's directory is too large")
            .expected(format_args!("at most {MAX_MEMBERS} members and {MAX_DIRECTORY} bytes"))
            .found(format_args!("{} members and {} bytes", end.members, end.size)));
    }
    if end.offset.checked_add(end.size).is_none_or(|behind| behind > end.at) {
        return Err(FormatError::new("the zip's directory overlaps its end record"));
    }
    let directory = bytes(source, end.offset, end.size, "directory")?;
    let cut = || FormatError::new("the zip's directory ends in the middle of a member");
    let (mut at, mut members, mut names) = (0usize, Vec::new(), BTreeSet::new());
    for _ in 0..end.members {
        let entry = directory.get(at..).ok_or_else(cut)?;
        if u32_at(entry, 0) != Some(CENTRAL) {
            return Err(FormatError::new("the zip's directory has something that is not a member"));
        }
        let short = |offset| u16_at(entry, offset).ok_or_else(cut);
        let long = |offset| u32_at(entry, offset).ok_or_else(cut);
        let (flags, method) = (short(8)?, short(10)?);
        let lengths = [short(28)?, short(30)?, short(32)?].map(usize::from);
        let name = entry.get(46..46 + lengths[0]).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| FormatError::new("a zip member's name is not UTF-8"))?.to_owned();
        let extra = entry.get(46 + lengths[0]..46 + lengths[0] + lengths[1]).ok_or_else(cut)?;
        let error = |what: &str| FormatError::new(format_args!("zip member '{name}' {what}"));
        if flags & 1 != 0 {
            return Err(error("is encrypted"));
        }
        if method != 0 {
            return Err(error("is compressed").expected("method 0, stored").found(format_args!("method {method}")));
        }
        let mut wide = Wide::of(extra);
        let size = wide.value(long(24)?).ok_or_else(|| error("lacks its zip64 size"))?;
        let packed = wide.value(long(20)?).ok_or_else(|| error("lacks its zip64 size"))?;
        let header = wide.value(long(42)?).ok_or_else(|| error("lacks its zip64 offset"))?;
        if size != packed {
            return Err(error("is stored but states two sizes").expected(size).found(packed));
        }
        // A local header has 30 bytes at least.
        if header.checked_add(30).and_then(|h| h.checked_add(size)).is_none_or(|behind| behind > end.offset) {
            return Err(error("lies outside the archive").expected(format_args!("before byte {}", end.offset)));
        }
        if !names.insert(name.clone()) {
            return Err(error("is there twice"));
        }
        members.push(Member { name, header, size, crc: long(16)? });
        at += 46 + lengths.iter().sum::<usize>();
    }
    if at != directory.len() {
        return Err(FormatError::new("the zip's directory has bytes behind its last member"));
    }
    Ok(members)
}

/// The zip64 values of a central header, in order.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    fn of(mut extra: &'a [u8]) -> Self {
        while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
            let Some(field) = extra.get(4..4 + usize::from(len)) else { break };
            if id == 1 {
                return Self(field);
            }
            extra = &extra[4 + usize::from(len)..];
        }
        Self(&[])
    }

    fn value(&mut self, narrow: u32) -> Option<u64> {
        if narrow != u32::MAX {
            return Some(narrow.into());
        }
        let value = u64_at(self.0, 0)?;
        self.0 = &self.0[8..];
        Some(value)
    }
}

/// Where a member's bytes start, by its local header.
///
/// # Errors
/// Where the local header is not there, names another member, or puts the data outside.
pub fn payload(source: &(impl ReadAt + ?Sized), member: &Member) -> Result<u64> {
    let error = |what: &str| FormatError::new(format_args!("zip member '{}' {what}", member.name));
    let header = bytes(source, member.header, 30, "local header")?;
    if u32_at(&header, 0) != Some(LOCAL) {
        return Err(error("has no local header where the directory says"));
    }
    let (name, extra) = (u16_at(&header, 26).unwrap_or(0), u16_at(&header, 28).unwrap_or(0));
    if u16_at(&header, 8) != Some(0) {
        return Err(error("is compressed, says its local header"));
    }
    if bytes(source, member.header + 30, name.into(), "local header")? != member.name.as_bytes() {
        return Err(error("has another name in its local header"));
    }
    let start = member.header + 30 + u64::from(name) + u64::from(extra);
    if start.checked_add(member.size).is_none_or(|end| end > source.size()) {
        return Err(error("is cut off"));
    }
    Ok(start)
}

/// A small member's bytes, its checksum validated.
///
/// # Errors
/// As [`payload`]; where it has more than `most` bytes; where its checksum is another.
pub fn content(source: &(impl ReadAt + ?Sized), member: &Member, most: u64) -> Result<Vec<u8>> {
    let error = |what: &str| FormatError::new(format_args!("zip member '{}' {what}", member.name));
    if member.size > most {
        return Err(error("is too large").expected(format_args!("at most {most} bytes")).found(member.size));
    }
    let content = bytes(source, payload(source, member)?, member.size, "member")?;
    let crc = crc32fast::hash(&content);
    // torch writes no checksum on request: `torch.serialization.set_crc32_options(False)`.
    if member.crc != crc && member.crc != 0 {
        return Err(error("is damaged: its CRC-32 differs").expected(format_args!("{:08x}", member.crc)).found(format_args!("{crc:08x}")));
    }
    Ok(content)
}

/// Reads a member of any size, in blocks, and validates its checksum: the bytes that it validated, none where the archive states no checksum
/// or where `go_on`, which hears of every block, says no.
///
/// # Errors
/// As [`content`].
pub fn checked(source: &(impl ReadAt + ?Sized), member: &Member, go_on: &dyn Fn(u64) -> bool) -> Result<u64> {
    const BLOCK: u64 = 1 << 20;
    let start = payload(source, member)?;
    if member.crc == 0 {
        return Ok(0);
    }
    let mut hasher = crc32fast::Hasher::new();
    for at in (0..member.size).step_by(1 << 20) {
        let block = bytes(source, start + at, BLOCK.min(member.size - at), "member")?;
        hasher.update(&block);
        if !go_on(block.len() as u64) {
            return Ok(0);
        }
    }
    match hasher.finalize() {
        crc if crc == member.crc => Ok(member.size),
        crc => {
            let error = FormatError::new(format_args!("zip member '{}' is damaged: its CRC-32 differs", member.name));
            Err(error.expected(format_args!("{:08x}", member.crc)).found(format_args!("{crc:08x}")))
        }
    }
}

/// What a writer of stored zips must put where. Members are laid out in the order of their names given; each payload starts at a multiple of
/// 64 bytes of the archive, as `torch.save` has it.
#[derive(Clone, Debug)]
pub struct Layout {
    members: Vec<Planned>,
    end: u64,
}

/// One member of an archive to be written.
#[derive(Clone, Debug)]
struct Planned {
    name: String,
    header: u64,
    payload: u64,
    size: u64,
}

const ALIGNMENT: u64 = 64;
const VERSION: u16 = 45;

impl Layout {
    /// Lays the members out. `None` where sizes overflow, or where a name is too long.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u64)>) -> Option<Self> {
        let (mut at, mut planned) = (0u64, Vec::new());
        for (name, size) in members {
            // 20 bytes of zip64 sizes, 4 to start the padding.
            let least = at.checked_add(30 + 20 + 4)?.checked_add(u64::from(u16::try_from(name.len()).ok()?))?;
            let payload = least.checked_next_multiple_of(ALIGNMENT)?;
            planned.push(Planned { name: name.to_owned(), header: at, payload, size });
            at = payload.checked_add(size)?;
        }
        Some(Self { members: planned, end: at })
    }

    /// Where the directory starts: the end of the last payload.
    pub fn directory_offset(&self) -> u64 {
        self.end
    }

    /// Where the payload of a member starts.
    pub fn payload(&self, member: usize) -> u64 {
        self.members[member].payload
    }

    /// Where the local header of a member starts.
    pub fn header(&self, member: usize) -> u64 {
        self.members[member].header
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True for an archive without members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The bytes between [`Layout::header`] and [`Layout::payload`] of a member.
    pub fn local_header(&self, member: usize, crc: u32) -> Vec<u8> {
        let Planned { name, header, payload, size } = &self.members[member];
        let mut out = Vec::new();
        out.extend(LOCAL.to_le_bytes());
        for value in [VERSION, 0, 0, 0, 0] {
            out.extend(value.to_le_bytes()); // version, flags, method, time, date
        }
        out.extend(crc.to_le_bytes());
        out.extend([0xff; 8]); // both sizes are in the zip64 field
        out.extend(short(name.len()));
        let padding = usize::try_from(payload - header).unwrap_or(0).saturating_sub(30 + name.len() + 20 + 4);
        out.extend(short(20 + 4 + padding));
        out.extend(name.as_bytes());
        out.extend([1, 0, 16, 0]);
        out.extend(size.to_le_bytes());
        out.extend(size.to_le_bytes());
        out.extend(b"FB");
        out.extend(short(padding));
        out.resize(out.len() + padding, b'Z');
        out
    }

    /// The directory and the end records, given each member's checksum.
    pub fn directory(&self, crcs: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        for (Planned { name, header, size, .. }, crc) in self.members.iter().zip(crcs) {
            out.extend(CENTRAL.to_le_bytes());
            for value in [VERSION, VERSION, 0, 0, 0, 0] {
                out.extend(value.to_le_bytes());
            }
            out.extend(crc.to_le_bytes());
            out.extend([0xff; 8]);
            out.extend(short(name.len()));
            out.extend(28u16.to_le_bytes());
            out.extend([0; 10]); // comment, disk, attributes
            out.extend([0xff; 4]);
            out.extend(name.as_bytes());
            out.extend([1, 0, 24, 0]);
            out.extend(size.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend(header.to_le_bytes());
        }
        self.end_records(out)
    }

    /// Size of the whole archive.
    pub fn size(&self) -> u64 {
        let names: usize = self.members.iter().map(|m| m.name.len()).sum();
        self.end + (self.members.len() * (46 + 28) + names) as u64 + 56 + LOCATOR_SIZE + END_SIZE
    }

    fn end_records(&self, mut out: Vec<u8>) -> Vec<u8> {
        let (count, size) = (self.members.len() as u64, out.len() as u64);
        out.extend(END64.to_le_bytes());
        out.extend(44u64.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 8]);
        for value in [count, count, size, self.end] {
            out.extend(value.to_le_bytes());
        }
        out.extend(LOCATOR64.to_le_bytes());
        out.extend([0; 4]);
        out.extend((self.end + size).to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(END.to_le_bytes());
        out.extend([0; 4]);
        out.extend([0xff; 12]); // both counts, size, offset: see the zip64 record
        out.extend([0; 2]);
        out
    }
}

/// A length that was checked to fit.
fn short(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()
}

/// A whole archive of small members, in memory.
///
/// # Errors
/// Where sizes overflow.
pub fn write(members: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let layout = Layout::new(members.iter().map(|(name, bytes)| (*name, bytes.len() as u64)))
        .ok_or_else(|| FormatError::new("the archive is too large"))?;
    let (mut out, mut crcs) = (Vec::new(), Vec::new());
    for (index, (_, bytes)) in members.iter().enumerate() {
        crcs.push(crc32fast::hash(bytes));
        out.extend(layout.local_header(index, crcs[index]));
        out.extend(*bytes);
    }
    out.extend(layout.directory(&crcs));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        write(&[("a/data.pkl", b"hello"), ("a/data/0", &[7; 300]), ("a/version", b"3\n")]).unwrap()
    }

    fn refused(bytes: &[u8], part: &str) {
        let error = members(bytes).and_then(|m| m.iter().try_for_each(|m| content(bytes, m, 1000).map(drop))).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    fn changed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = sample();
        change(&mut bytes);
        bytes
    }

    fn directory(bytes: &[u8]) -> usize {
        bytes.windows(4).position(|w| w == CENTRAL.to_le_bytes()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_payloads_are_aligned() {
        let bytes = sample();
        let found = members(&bytes).unwrap();
        assert_eq!(
            found.iter().map(|m| (m.name.as_str(), m.size)).collect::<Vec<_>>(),
            [("a/data.pkl", 5), ("a/data/0", 300), ("a/version", 2)]
        );
        assert_eq!(content(&bytes, &found[1], 300).unwrap(), [7; 300]);
        assert!(found.iter().all(|m| payload(&bytes, m).unwrap().is_multiple_of(64)));
        let layout = Layout::new([("a/data.pkl", 5), ("a/data/0", 300), ("a/version", 2)]).unwrap();
        assert_eq!((layout.size(), layout.payload(1)), (bytes.len() as u64, payload(&bytes, &found[1]).unwrap()));
    }

    #[test]
    fn a_truncated_zip_is_refused_at_every_length() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(members(&bytes[..len]).is_err(), "{len}");
        }
        refused(&bytes[..bytes.len() - 1], "cut off");
    }

    #[test]
    fn a_compressed_member_is_refused() {
        refused(
            &changed(|b| {
                let at = directory(b) + 10;
                b[at] = 8;
            }),
            "compressed",
        );
    }

    #[test]
    fn an_encrypted_member_is_refused() {
        refused(
            &changed(|b| {
                let at = directory(b) + 8;
                b[at] = 1;
            }),
            "encrypted",
        );
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        refused(
            &changed(|b| {
                let at = b.windows(5).position(|w| w == b"hello").unwrap();
                b[at] = b'j';
            }),
            "CRC-32",
        );
    }

    #[test]
    fn a_member_too_large_is_refused_before_it_is_read() {
        let bytes = sample();
        let error = content(&bytes, &members(&bytes).unwrap()[1], 299).unwrap_err().to_string();
        assert!(error.contains("at most 299 bytes"), "{error}");
    }

    #[test]
    fn a_directory_that_claims_too_much_is_refused_before_it_is_read() {
        let at = |b: &[u8]| b.windows(4).position(|w| w == END64.to_le_bytes()).unwrap();
        refused(
            &changed(|b| {
                let at = at(b);
                b[at + 24..at + 40].copy_from_slice(&[[0xff; 8], [0xff; 8]].concat());
            }),
            "too large",
        );
        refused(
            &changed(|b| {
                let at = at(b) + 40;
                b[at..at + 8].copy_from_slice(&(1u64 << 28).to_le_bytes());
            }),
            "overlaps",
        );
    }

    #[test]
    fn a_member_outside_the_archive_is_refused() {
        refused(
            &changed(|b| {
                let at = directory(b) + 46 + "a/data.pkl".len() + 20;
                b[at + 4] = 0x7f;
            }),
            "outside the archive",
        );
    }

    #[test]
    fn two_members_of_one_name_are_refused() {
        refused(&write(&[("a", b"1"), ("a", b"2")]).unwrap(), "twice");
    }

    #[test]
    fn another_name_in_the_local_header_is_refused() {
        refused(&changed(|b| b[30] = b'x'), "another name");
    }
}
