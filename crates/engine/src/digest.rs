//! SHA-256 as lowercase hex, over memory and over files in blocks. What a digest covers is its caller's to say.

use std::{fmt, io};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::Digest as _;

/// A SHA-256, shown as 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

/// The SHA-256 of `bytes`. Of a shard: its valid bytes in row-major order, little-endian, padding left out.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Digests what comes in pieces, such as the runs of a strided shard or the blocks of a file.
#[derive(Clone, Default, Debug)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

/// Digests a stream to its end through `block`, telling `read` of every block's size, and gives the digest and the number of bytes.
///
/// # Errors
/// Those of the stream, and the first one of `read`, which may stop it so.
pub fn sha256_stream(
    stream: &mut impl io::Read,
    block: &mut [u8],
    mut read: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<(Sha256, u64)> {
    let (mut hasher, mut total) = (Hasher::default(), 0u64);
    loop {
        match stream.read(block) {
            Ok(0) => return Ok((hasher.finish(), total)),
            Ok(n) => {
                hasher.update(&block[..n]);
                total += n as u64;
                read(n as u64)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a sha256 of 64 lowercase hex digits, found '{}'", text.chars().take(80).collect::<String>());
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(wrong()),
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| wrong())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's own example, and the empty message.
    #[test]
    fn digests_are_the_standards() {
        assert_eq!(sha256(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256(b"").to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn pieces_and_streams_give_the_digest_of_the_whole() {
        let whole: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let mut pieces = Hasher::default();
        whole.chunks(33).for_each(|piece| pieces.update(piece));
        assert_eq!(pieces.finish(), sha256(&whole));
        let mut reported = 0;
        let streamed = sha256_stream(&mut whole.as_slice(), &mut [0; 77], |n| {
            reported += n;
            Ok(())
        });
        assert_eq!(streamed.unwrap(), (sha256(&whole), 10_000));
        assert_eq!(reported, 10_000);
    }

    #[test]
    fn text_leads_back_to_the_digest_and_nothing_else_is_one() {
        let digest = sha256(b"abc");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "ba78", &digest.to_string().to_uppercase(), &format!("{digest}0"), &"é".repeat(32)] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }
}
