//! JSON that carries the SHA-256 of itself: its last field is the digest of all bytes before that field, so that a torn or altered
//! text is known for one whatever it says. Large lists have one element a line.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    digest::{Hasher, Sha256},
    error::{EngineError, ErrorKind, Result},
};

/// No manifest is larger: that of 100,000 tensors has some 50 MB.
const MAX_BYTES: u64 = 256 << 20;
const SEAL: &[u8] = b",\n  \"sha256\": \"";
const END: &[u8] = b"\"\n}\n";
const HEX: usize = 64;

/// Bytes of a sealed text that are held before they are passed on.
const BLOCK: usize = 1 << 16;
/// How the text of a struct ends before it is sealed.
const CLOSE: &[u8] = b"\n}";

/// Passes the sealed text of a struct on in blocks; it is never held whole.
pub(crate) fn seal(value: &impl Serialize, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut sealing = Sealing { sink, held: Vec::with_capacity(2 * BLOCK), digest: Hasher::default(), failed: None };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut sealing, Lines::default()));
    match (written, sealing.failed.take()) {
        (Err(_), Some(failed)) => return Err(failed),
        (Err(e), None) => return Err(EngineError::new(ErrorKind::Plan, format!("cannot write the manifest: {e}"))),
        (Ok(()), _) => {}
    }
    let body = sealing.held.len().saturating_sub(CLOSE.len());
    sealing.digest.update(&sealing.held[..body]);
    (sealing.sink)(&sealing.held[..body])?;
    (sealing.sink)(&[SEAL, sealing.digest.finish().to_string().as_bytes(), END].concat())
}

/// The sealed text, whole.
#[cfg(test)]
pub(crate) fn sealed(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    let append = &mut |bytes: &[u8]| {
        text.extend_from_slice(bytes);
        Ok(())
    };
    seal(value, append).unwrap();
    text
}

/// Digests what is written and passes it on, but for the last bytes, which the seal replaces.
struct Sealing<'a> {
    sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    held: Vec<u8>,
    digest: Hasher,
    failed: Option<EngineError>,
}

impl io::Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() > BLOCK {
            let ready = self.held.len() - CLOSE.len();
            self.digest.update(&self.held[..ready]);
            if let Err(e) = (self.sink)(&self.held[..ready]) {
                self.failed = Some(e);
                return Err(io::Error::other("the manifest cannot be written"));
            }
            self.held.drain(..ready);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The struct in a sealed text of `size` bytes, and the digest of all of it. It is read once, in blocks, and never held whole.
fn unseal<T: DeserializeOwned>(text: &mut (impl io::Read + io::Seek), size: u64) -> io::Result<Result<(T, Sha256), String>> {
    let torn = "it is torn or garbled: it does not end with its own sha256";
    let tail = (SEAL.len() + HEX + END.len()) as u64;
    let Some(body) = size.checked_sub(tail) else { return Ok(Err(torn.to_owned())) };
    let mut end = Vec::new();
    text.seek(io::SeekFrom::Start(body))?;
    text.by_ref().take(tail).read_to_end(&mut end)?;
    let digest = end.strip_prefix(SEAL).and_then(|end| end.strip_suffix(END));
    let stated: Option<Sha256> = digest.and_then(|d| std::str::from_utf8(d).ok()?.parse().ok());
    let Some(stated) = stated else { return Ok(Err(torn.to_owned())) };
    text.seek(io::SeekFrom::Start(0))?;
    let mut hashed = Hashed { text: text.by_ref().take(body), digest: Hasher::default() };
    let parsed = serde_json::from_reader(io::BufReader::with_capacity(BLOCK, hashed.by_ref()).chain(CLOSE));
    // What the parser did not come to is in the digest too.
    io::copy(&mut hashed, &mut io::sink())?;
    let mut whole = hashed.digest.clone();
    whole.update(&end);
    let found = hashed.digest.finish();
    if stated != found {
        return Ok(Err(format!("it was altered: its sha256 is {found}, and it says {stated}")));
    }
    Ok(parsed.map(|parsed| (parsed, whole.finish())).map_err(|e| format!("it is not what was expected: {e}")))
}

/// Digests what is read.
struct Hashed<R> {
    text: R,
    digest: Hasher,
}

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(block)?;
        self.digest.update(&block[..read]);
        Ok(read)
    }
}

/// Reads a sealed file; its digest and size come along.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, (Sha256, u64))> {
    let wrong = |what: String| EngineError::new(ErrorKind::Checkpoint, what).file(path);
    let cannot = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => wrong("it is missing".into()),
        _ => EngineError::io("cannot read the manifest", path, e),
    };
    let meta = std::fs::metadata(path).map_err(cannot)?;
    if !meta.is_file() {
        return Err(wrong("not a regular file".into()));
    }
    let mut file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if size > MAX_BYTES {
        return Err(wrong(format!("it is larger than {MAX_BYTES} bytes, as no manifest is")));
    }
    let (reported, digest) = unseal(&mut file, size).map_err(cannot)?.map_err(wrong)?;
    Ok((reported, (digest, size)))
}

/// Pretty for the outer levels, compact below.
#[derive(Default)]
struct Lines {
    depth: usize,
}

impl Lines {
    /// Levels whose elements have a line each.
    const DEPTH: usize = 3;

    fn separate(&self, out: &mut (impl io::Write + ?Sized), first: bool) -> io::Result<()> {
        match (self.depth <= Self::DEPTH, first) {
            (true, _) => {
                out.write_all(if first { b"\n" } else { b",\n" })?;
                (0..self.depth).try_for_each(|_| out.write_all(b"  "))
            }
            (false, true) => Ok(()),
            (false, false) => out.write_all(b", "),
        }
    }

    fn close(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < Self::DEPTH {
            out.write_all(b"\n")?;
            (0..self.depth).try_for_each(|_| out.write_all(b"  "))?;
        }
        out.write_all(bracket)
    }
}

impl serde_json::ser::Formatter for Lines {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        out.write_all(b"[")
    }
    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }
    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        out.write_all(b"{")
    }
    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }
    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.separate(out, first)
    }
    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::digest::sha256;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Sample {
        name: String,
        rows: Vec<Vec<Vec<Vec<u32>>>>,
    }

    fn unseal<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
        let (reported, digest) = super::unseal(&mut io::Cursor::new(text), text.len() as u64).unwrap()?;
        assert_eq!(digest, sha256(text));
        Ok(reported)
    }

    fn reported() -> Sample {
        Sample { name: "é\"".into(), rows: vec![vec![vec![vec![1, 2], vec![]]], vec![]] }
    }

    #[test]
    fn a_sealed_text_is_json_and_leads_back() {
        let text = sealed(&reported());
        assert_eq!(unseal::<Sample>(&text), Ok(reported()));
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["rows"][0][0][0][1], 2);
        assert!(String::from_utf8(text).unwrap().contains("[[1, 2], []]"));
    }

    #[test]
    fn a_text_of_many_blocks_is_sealed_as_one() {
        let rows = vec![vec![vec![(0..10_000).collect::<Vec<u32>>(); 3]; 3]; 2];
        let reported = Sample { name: "long".into(), rows };
        let text = sealed(&reported);
        assert!(text.len() > 5 * BLOCK);
        assert_eq!(unseal::<Sample>(&text), Ok(reported));
        let mut calls = 0;
        let full = &mut |_: &[u8]| {
            calls += 1;
            Err(EngineError::new(ErrorKind::Io, "the disk is full"))
        };
        assert_eq!(seal(&self::reported(), full).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(calls, 1);
    }

    /// Whatever byte is changed or cut off, the text is refused.
    #[test]
    fn every_change_breaks_the_seal() {
        let text = sealed(&reported());
        for at in 0..text.len() {
            assert!(unseal::<Sample>(&text[..at]).is_err(), "cut to {at}");
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                assert!(unseal::<Sample>(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
