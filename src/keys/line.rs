//! Keys as one line of text: `<kind>-<version>:<base32>`.

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use zeroize::Zeroizing;

use super::error::BadKey;

/// A kind of line that holds 32 secret bytes.
pub(super) struct Kind {
    /// What stands before the version.
    pub(super) name: &'static str,
    /// What a whole line looks like, for people.
    pub(super) form: &'static str,
}

impl Kind {
    pub(super) fn write(&self, bytes: &[u8; 32]) -> Zeroizing<String> {
        tagged(self.name, bytes)
    }

    pub(super) fn parse(&self, line: &str) -> Result<Zeroizing<[u8; 32]>, BadKey> {
        let line = line.trim();
        let garbage = || BadKey::Garbage { form: self.form };
        let expected = self.name.len() + ":".len() + VERSION_TEXT.len() + BASE32_LEN;
        let truncated = || BadKey::Truncated { found: line.chars().count(), expected };
        let text = match untagged(self.name, line) {
            Tagged::Ours(text) => text,
            Tagged::Newer(version) => return Err(BadKey::Newer { version }),
            Tagged::CutShort => return Err(truncated()),
            Tagged::Foreign => return Err(garbage()),
        };
        let alphabet = |c: u8| c.is_ascii_alphabetic() || (b'2'..=b'7').contains(&c);
        if !text.bytes().all(alphabet) || text.len() > BASE32_LEN {
            return Err(garbage());
        }
        if text.len() < BASE32_LEN {
            return Err(truncated());
        }
        let mut bytes = Zeroizing::new([0; 32]);
        BASE32_NOPAD_NOCASE.decode_mut(text.as_bytes(), &mut *bytes).map_err(|_| garbage())?;
        Ok(bytes)
    }
}

/// What a line says about itself.
pub(super) enum Tagged<'a> {
    /// Our kind, our version: the base32 that follows.
    Ours(&'a str),
    /// Our kind, a later version.
    Newer(u32),
    /// It ends before it has said what it is.
    CutShort,
    /// Another kind of text.
    Foreign,
}

/// `bytes` as a line of a kind, leaving no copy behind.
pub(super) fn tagged(name: &str, bytes: &[u8]) -> Zeroizing<String> {
    let prefix = name.len() + VERSION_TEXT.len() + ":".len();
    let mut line = Zeroizing::new(String::with_capacity(prefix + BASE32_NOPAD.encode_len(bytes.len())));
    BASE32_NOPAD.encode_append(bytes, &mut line);
    line.make_ascii_lowercase();
    line.insert(0, ':');
    line.insert_str(0, VERSION_TEXT);
    line.insert_str(0, name);
    line
}

pub(super) fn untagged<'a>(name: &str, line: &'a str) -> Tagged<'a> {
    let Some(rest) = line.strip_prefix(name) else {
        return if name.starts_with(line) { Tagged::CutShort } else { Tagged::Foreign };
    };
    let Some((version, text)) = rest.split_once(':') else {
        return if VERSION_TEXT.starts_with(rest) { Tagged::CutShort } else { Tagged::Foreign };
    };
    match version.parse() {
        _ if version == VERSION_TEXT => Tagged::Ours(text),
        Ok(newer) if newer > VERSION => Tagged::Newer(newer),
        _ => Tagged::Foreign,
    }
}

const VERSION: u32 = 1;
const VERSION_TEXT: &str = "1";
/// Characters for 32 bytes, five bits each.
const BASE32_LEN: usize = 52;
