//! A stream that a passphrase seals: nobody without it can read the stream, or change it unseen.
//!
//! ```text
//! forge-export 1                      what it is, and the format
//! {"kdf":"argon2id", …, "facts":{}}   how the key is derived; what may be known of the contents without it
//! 16 bytes                            proof of these two lines and of the passphrase
//! frames                              64 KiB and 16 bytes each; the last one is shorter, or empty
//! ```
//!
//! The key is Argon2id (RFC 9106) of the passphrase. Frames are ChaCha20-Poly1305 (RFC 8439) in the construction STREAM
//! of Hoang, Reyhanitabar, Rogaway and Vizár ("Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
//! 2015): the nonce is a random prefix, the number of the frame, and whether it is the last. So frames that are
//! missing, doubled or exchanged, and an end that comes too early, do not open.

use std::io::{self, BufRead, BufReader, Read, Write};

use argon2::{Algorithm, Argon2, Params, Version};
use forge_driver::{Context, Error, Kind, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ca::hex;
use crate::secret::Secret;

/// The format that is written, and the newest that is read.
const FORMAT: u32 = 1;
/// What a frame holds.
const FRAME: usize = 64 << 10;
/// RFC 8439, section 2.8: the tag of a sealed text.
const TAG: usize = 16;
/// No header is longer: what is no sealed stream is not read to its end in search of a line.
const HEADER_LIMIT: u64 = 256 << 10;
/// Deriving a key from a header costs at most this much memory, in KiB, …
const MEMORY_LIMIT: u32 = 256 << 10;
/// … so many passes over it …
const PASSES_LIMIT: u32 = 16;
/// … and lanes.
const LANES_LIMIT: u32 = 4;

/// How the key is derived from the passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// In KiB.
    memory: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// RFC 9106, section 4, second recommendation but for its lanes: 64 MiB, three passes.
    pub const USUAL: Self = Self {
        memory: 64 << 10,
        passes: 3,
        lanes: 1,
    };
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    prefix: String,
    facts: Value,
}

/// What the last byte of a nonce says.
#[derive(Clone, Copy)]
enum Role {
    More = 0,
    Last = 1,
    Header = 2,
}

/// A key that was derived once, for a stream that is read twice.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Seals and opens with one key and the nonces of one stream.
struct Cipher {
    key: LessSafeKey,
    prefix: [u8; 7],
}

impl Cipher {
    fn new(key: &Key, prefix: [u8; 7]) -> Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key.0)
            .map_err(|_| Error::new(Kind::Invalid, "the derived key has another length"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            prefix,
        })
    }

    fn nonce(&self, number: u32, role: Role) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[..7].copy_from_slice(&self.prefix);
        bytes[7..11].copy_from_slice(&number.to_be_bytes());
        bytes[11] = role as u8;
        Nonce::assume_unique_for_key(bytes)
    }

    fn seal(&self, number: u32, role: Role, about: &[u8], text: &mut Vec<u8>) -> Result<()> {
        self.key
            .seal_in_place_append_tag(self.nonce(number, role), Aad::from(about), text)
            .map_err(|_| Error::new(Kind::Invalid, "a frame is too long to be sealed"))
    }

    /// The text, where it is what was sealed with this number and role.
    fn open(&self, number: u32, role: Role, about: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let length = self
            .key
            .open_in_place(self.nonce(number, role), Aad::from(about), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(length);
        Some(sealed)
    }
}

fn derive(passphrase: &Secret, salt: &[u8], cost: Cost) -> Result<Key> {
    let failed = |error: argon2::Error| {
        Error::new(Kind::Invalid, "failed to derive a key from the passphrase")
            .because(error.to_string())
    };
    let mut key = Key([0; 32]);
    let params =
        Params::new(cost.memory, cost.passes, cost.lanes, Some(key.0.len())).map_err(failed)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, &mut key.0)
        .map_err(failed)?;
    Ok(key)
}

/// Seals what is written to it. Without [`Sealer::finish`] the stream has no end, and does not open.
pub struct Sealer<W> {
    out: W,
    cipher: Cipher,
    number: u32,
    pending: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Begins a stream. `what` is its first word; `facts` are readable without the passphrase, and sealed against
    /// change.
    ///
    /// # Errors
    /// [`Kind::Usage`] for an empty passphrase; what the system reports.
    pub fn new(out: W, what: &str, facts: &Value, passphrase: &Secret) -> Result<Self> {
        Self::at_cost(out, what, facts, passphrase, Cost::USUAL)
    }

    fn at_cost(
        mut out: W,
        what: &str,
        facts: &Value,
        passphrase: &Secret,
        cost: Cost,
    ) -> Result<Self> {
        if passphrase.expose().is_empty() {
            return Err(Error::new(Kind::Usage, "the passphrase is empty"));
        }
        let (mut salt, mut prefix) = ([0; 16], [0; 7]);
        let random = SystemRandom::new();
        random
            .fill(&mut salt)
            .and_then(|()| random.fill(&mut prefix))
            .map_err(|_| Error::new(Kind::Io, "the system has no random numbers"))?;
        let header = Header {
            kdf: "argon2id".to_owned(),
            memory_kib: cost.memory,
            passes: cost.passes,
            lanes: cost.lanes,
            salt: hex(&salt),
            prefix: hex(&prefix),
            facts: facts.clone(),
        };
        let line = serde_json::to_string(&header)
            .or_fail(Kind::Invalid, || format!("failed to begin a {what}"))?;
        let mut lines = format!("{what} {FORMAT}\n{line}\n").into_bytes();
        if lines.len() as u64 > HEADER_LIMIT {
            return Err(Error::new(
                Kind::Invalid,
                format!("a {what} cannot list that many names"),
            ));
        }
        let cipher = Cipher::new(&derive(passphrase, &salt, cost)?, prefix)?;
        let mut proof = Vec::with_capacity(TAG);
        cipher.seal(0, Role::Header, &lines, &mut proof)?;
        lines.extend(proof);
        write(&mut out, &lines)?;
        Ok(Self {
            out,
            cipher,
            number: 0,
            pending: Vec::with_capacity(FRAME + TAG),
        })
    }

    /// Ends the stream, and gives back what it was written to.
    ///
    /// # Errors
    /// What the system reports.
    pub fn finish(mut self) -> Result<W> {
        self.frame(Role::Last)?;
        Ok(self.out)
    }

    fn frame(&mut self, role: Role) -> Result<()> {
        let mut text = std::mem::replace(&mut self.pending, Vec::with_capacity(FRAME + TAG));
        self.cipher.seal(self.number, role, &[], &mut text)?;
        write(&mut self.out, &text)?;
        self.number = self
            .number
            .checked_add(1)
            .ok_or_else(|| Error::new(Kind::Invalid, "more than 256 TiB cannot be sealed"))?;
        Ok(())
    }
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)
        .map_err(|error| forge_driver::atomic::full(error, "failed to write what is sealed"))
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() == FRAME {
            self.frame(Role::More).map_err(io::Error::other)?;
        }
        let count = bytes.len().min(FRAME - self.pending.len());
        self.pending.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A frame that is not full would end the stream; `finish` writes it.
        Ok(())
    }
}

/// A sealed stream whose first lines were read, and nothing else.
pub struct Sealed<R> {
    input: BufReader<R>,
    header: Header,
    lines: Vec<u8>,
}

impl<R: Read> Sealed<R> {
    /// Reads the first lines of a stream that is to be a `what`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it is none, [`Kind::Newer`] when a newer forge sealed it.
    pub fn read(input: R, what: &'static str) -> Result<Self> {
        let mut input = BufReader::with_capacity(FRAME + TAG, input);
        let mut lines = Vec::new();
        let first = line(&mut input, &mut lines)?;
        let format = std::str::from_utf8(&first)
            .ok()
            .and_then(|first| {
                first
                    .strip_prefix(what)?
                    .strip_prefix(' ')?
                    .parse::<u32>()
                    .ok()
            })
            .ok_or_else(|| Error::new(Kind::Invalid, format!("it is no {what}")))?;
        if format > FORMAT {
            return Err(Error::new(
                Kind::Newer,
                format!("it has format {format}, and this forge knows {FORMAT}"),
            )
            .hint("a newer forge wrote it: use that version"));
        }
        let second = line(&mut input, &mut lines)?;
        let header: Header =
            serde_json::from_slice(&second).map_err(|error| broken().because(error))?;
        if header.kdf != "argon2id" {
            return Err(broken().because(format!("it names the key derivation `{}`", header.kdf)));
        }
        Ok(Self {
            input,
            header,
            lines,
        })
    }

    /// What is known of the contents without the passphrase. Only what was unlocked is known not to be forged.
    pub fn facts(&self) -> &Value {
        &self.header.facts
    }

    /// The key of this passphrase.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the header asks for more memory or time than a key may cost.
    pub fn key(&self, passphrase: &Secret) -> Result<Key> {
        let cost = Cost {
            memory: self.header.memory_kib,
            passes: self.header.passes,
            lanes: self.header.lanes,
        };
        if cost.memory > MEMORY_LIMIT || cost.passes > PASSES_LIMIT || cost.lanes > LANES_LIMIT {
            return Err(broken().because(format!(
                "its key would cost {} MiB of memory, {} passes and {} lanes",
                cost.memory >> 10,
                cost.passes,
                cost.lanes
            )));
        }
        derive(passphrase, &self.salt()?, cost)
    }

    fn salt(&self) -> Result<[u8; 16]> {
        unhex(&self.header.salt).ok_or_else(|| broken().because("its salt is none"))
    }

    /// Goes on to the contents.
    ///
    /// # Errors
    /// [`Kind::Refused`] when the key is not that of the passphrase that it was sealed with.
    pub fn unlock(mut self, key: &Key) -> Result<Opened<R>> {
        let prefix =
            unhex(&self.header.prefix).ok_or_else(|| broken().because("its prefix is none"))?;
        let cipher = Cipher::new(key, prefix)?;
        let mut proof = Vec::with_capacity(TAG);
        fill(&mut self.input, &mut proof, TAG)?;
        if proof.len() < TAG {
            return Err(cut_off(self.lines.len() + proof.len()));
        }
        if cipher.open(0, Role::Header, &self.lines, proof).is_none() {
            return Err(Error::new(Kind::Refused, "the passphrase does not open it")
                .hint("it is another passphrase, or the first lines of the file were changed"));
        }
        Ok(Opened {
            input: self.input,
            cipher,
            number: 0,
            offset: self.lines.len() + TAG,
            text: Vec::new(),
            read: 0,
            ended: false,
        })
    }
}

/// One line without its end, which is also added to `lines`.
fn line(input: &mut impl BufRead, lines: &mut Vec<u8>) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    input
        .take(HEADER_LIMIT)
        .read_until(b'\n', &mut found)
        .or_fail(Kind::Io, || "failed to read it".to_owned())?;
    lines.extend_from_slice(&found);
    if found.pop() != Some(b'\n') {
        return Err(broken());
    }
    Ok(found)
}

fn fill(input: &mut impl Read, into: &mut Vec<u8>, count: usize) -> Result<()> {
    input
        .take(count as u64)
        .read_to_end(into)
        .or_fail(Kind::Io, || "failed to read it".to_owned())?;
    Ok(())
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

fn broken() -> Error {
    Error::new(Kind::Corrupt, "its first lines are damaged")
}

fn cut_off(at: usize) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("it ends too early, at byte {at}: the rest is missing"),
    )
    .hint("copy it again")
}

/// The contents, each byte of which was checked before it is handed out.
pub struct Opened<R> {
    input: BufReader<R>,
    cipher: Cipher,
    number: u32,
    offset: usize,
    text: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<R: Read> Opened<R> {
    /// Checks the rest to its end, and says how many bytes it holds.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with where it is damaged, or that it ends too early.
    pub fn verify(mut self) -> Result<u64> {
        let mut bytes = 0;
        while self.frame()? {
            crate::interrupt::check()?;
            bytes += self.text.len() as u64;
        }
        Ok(bytes)
    }

    /// Everything, when it is no more than `limit` bytes.
    ///
    /// # Errors
    /// As [`Opened::verify`]; [`Kind::Invalid`] when it is more.
    pub fn all(mut self, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.frame()? {
            bytes.extend_from_slice(&self.text);
            if bytes.len() > limit {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("it holds more than {limit} bytes"),
                ));
            }
        }
        Ok(bytes)
    }

    /// Opens the next frame; false behind the last one.
    fn frame(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut sealed = Vec::with_capacity(FRAME + TAG);
        fill(&mut self.input, &mut sealed, FRAME + TAG)?;
        let length = sealed.len();
        let last = self
            .input
            .fill_buf()
            .or_fail(Kind::Io, || "failed to read it".to_owned())?
            .is_empty();
        if length < TAG {
            return Err(cut_off(self.offset + length));
        }
        let role = if last { Role::Last } else { Role::More };
        // Of the last one a copy is kept: it tells a missing rest from a changed byte.
        let copy = last.then(|| sealed.clone());
        let Some(text) = self.cipher.open(self.number, role, &[], sealed) else {
            let whole = copy.filter(|_| length == FRAME + TAG);
            let more = |copy| self.cipher.open(self.number, Role::More, &[], copy);
            if whole.and_then(more).is_some() {
                return Err(cut_off(self.offset + length));
            }
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "it is damaged{} behind byte {}",
                    if last { " or cut off" } else { "" },
                    self.offset
                ),
            )
            .hint("copy it again"));
        };
        self.offset += length;
        self.number = self.number.wrapping_add(1);
        (self.text, self.read, self.ended) = (text, 0, last);
        Ok(true)
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.text.len() {
            if !self.frame().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let count = into.len().min(self.text.len() - self.read);
        into[..count].copy_from_slice(&self.text[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "forge-test";
    /// A key that costs nothing.
    const CHEAP: Cost = Cost {
        memory: 8,
        passes: 1,
        lanes: 1,
    };

    fn sealed(text: &[u8]) -> Vec<u8> {
        let facts = serde_json::json!({"names": ["n1"]});
        let mut sealer =
            Sealer::at_cost(Vec::new(), WHAT, &facts, &"right".into(), CHEAP).expect("begun");
        sealer.write_all(text).expect("sealed");
        sealer.finish().expect("ended")
    }

    fn opened(sealed: &[u8], passphrase: &str) -> Result<Vec<u8>> {
        let sealed = Sealed::read(sealed, WHAT)?;
        let key = sealed.key(&passphrase.into())?;
        sealed.unlock(&key)?.all(1 << 24)
    }

    /// Where the frames begin.
    fn frames(sealed: &[u8]) -> usize {
        let mut lines = sealed
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n');
        lines.nth(1).expect("two lines").0 + 1 + TAG
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8).collect()
    }

    #[test]
    fn what_was_sealed_opens() {
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 3 * FRAME + 7] {
            let whole = sealed(&text(length));
            assert_eq!(opened(&whole, "right").expect("opens"), text(length));
            let again = Sealed::read(&whole[..], WHAT).expect("read");
            assert_eq!(again.facts()["names"][0], "n1");
            let key = again.key(&"right".into()).expect("a key");
            let counted = again.unlock(&key).expect("unlocked").verify();
            assert_eq!(counted.expect("whole"), length as u64);
        }
    }

    #[test]
    fn nothing_of_the_text_shows() {
        let whole = sealed(b"a token that nobody is to see");
        assert!(!whole.windows(5).any(|window| window == b"token"));
        assert_ne!(sealed(b"x"), sealed(b"x"), "each has its own salt");
    }

    #[test]
    fn another_passphrase_is_told_from_damage() {
        let error = opened(&sealed(b"x"), "wrong").expect_err("wrong");
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.message().contains("passphrase"));
    }

    #[test]
    fn no_bit_can_change() {
        let whole = sealed(&text(2 * FRAME + 5));
        let start = frames(&whole);
        // Every byte of the header and its proof, and the edges of each frame.
        let mut places: Vec<usize> = (0..start).collect();
        for edge in [start, start + FRAME + TAG, start + 2 * (FRAME + TAG)] {
            places.extend([edge, edge + TAG]);
        }
        places.push(whole.len() - 1);
        for place in places {
            for bit in [1, 0x80] {
                let mut changed = whole.clone();
                changed[place] ^= bit;
                let error = opened(&changed, "right").expect_err("changed");
                let kinds = [Kind::Corrupt, Kind::Refused, Kind::Invalid, Kind::Newer];
                assert!(kinds.contains(&error.kind()), "byte {place}: {error}");
            }
        }
    }

    #[test]
    fn an_end_that_comes_too_early_is_told() {
        let whole = sealed(&text(2 * FRAME + 5));
        let start = frames(&whole);
        for length in 0..start {
            opened(&whole[..length], "right").expect_err("the header is cut off");
        }
        for end in [
            start,
            start + 1,
            start + FRAME + TAG,
            start + FRAME + TAG + 1,
            start + 2 * (FRAME + TAG),
            whole.len() - 1,
        ] {
            let error = opened(&whole[..end], "right").expect_err("cut off");
            assert_eq!(error.kind(), Kind::Corrupt);
            let text = error.message();
            assert!(
                text.contains("ends too early") || text.contains("cut off"),
                "{end}: {text}"
            );
        }
        let mut longer = whole.clone();
        longer.push(0);
        opened(&longer, "right").expect_err("something was added");
    }

    #[test]
    fn frames_cannot_change_places_or_be_left_out() {
        let whole = sealed(&text(3 * FRAME + 5));
        let (start, size) = (frames(&whole), FRAME + TAG);
        let mut exchanged = whole.clone();
        exchanged[start..start + 2 * size].rotate_left(size);
        opened(&exchanged, "right").expect_err("exchanged");
        let mut without = whole.clone();
        without.drain(start..start + size);
        opened(&without, "right").expect_err("left out");
        let mut doubled = whole[..start + size].to_vec();
        doubled.extend_from_slice(&whole[start..]);
        opened(&doubled, "right").expect_err("doubled");
    }

    #[test]
    fn a_header_cannot_ask_for_everything_there_is() {
        let whole = sealed(b"x");
        let end = frames(&whole) - TAG;
        let lines = String::from_utf8(whole[..end].to_vec()).expect("text");
        for (from, to) in [
            ("\"memory_kib\":8", "\"memory_kib\":4294967295"),
            ("\"passes\":1", "\"passes\":4294967295"),
            ("\"lanes\":1", "\"lanes\":16777215"),
            ("\"memory_kib\":8", "\"memory_kib\":0"),
            ("\"passes\":1", "\"passes\":0"),
            ("\"lanes\":1", "\"lanes\":0"),
        ] {
            let mut hostile = lines.replace(from, to).into_bytes();
            hostile.extend_from_slice(&whole[end..]);
            let error = opened(&hostile, "right").expect_err(to);
            assert!(
                [Kind::Corrupt, Kind::Invalid].contains(&error.kind()),
                "{to}: {error}"
            );
        }
    }

    #[test]
    fn what_is_something_else_is_not_read_to_its_end() {
        for other in [
            &b""[..],
            b"forge-other 1\n{}\n",
            b"forge-test x\n{}\n",
            b"forge-test 1\n{}\n",
            b"forge-test 1\nnothing\n",
        ] {
            opened(other, "right").expect_err("something else");
        }
        assert_eq!(
            opened(b"forge-test 2\n{}\n", "right")
                .expect_err("newer")
                .kind(),
            Kind::Newer
        );
        Sealed::read(io::repeat(b'x'), WHAT)
            .err()
            .expect("no line ends");
    }
}
