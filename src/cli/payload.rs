//! Payloads, as they are typed and as they are printed.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Stdin, stdin};

use super::args::Format;
use super::trouble::{Exit, Trouble};
use crate::config::MAX_MESSAGE_BYTES;
use crate::mesh::Codec;
use crate::wire::control;

/// A payload as `--json` prints it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Content {
    Data(Value),
    Base64(String),
}

/// What was given, as it goes out.
pub(super) fn message(data: Vec<u8>, format: Option<Format>) -> Result<(Codec, Bytes), Trouble> {
    let bad = |what: &str, hint: &str| Err(Trouble::new(Exit::Usage, format!("the data is not {what}")).hint(hint));
    let text = std::str::from_utf8(&data).is_ok();
    match format {
        Some(Format::Bytes) => Ok((Codec::Bytes, data.into())),
        None if !text => Ok((Codec::Bytes, data.into())),
        Some(Format::Text) if !text => bad("text in UTF-8", "send it with --format bytes"),
        None | Some(Format::Text) => Ok((Codec::Text, data.into())),
        Some(format) => match serde_json::from_slice::<Value>(&data) {
            Ok(_) if format == Format::Json => Ok((Codec::Json, data.into())),
            Ok(value) => {
                let mut cbor = Vec::new();
                ciborium::into_writer(&value, &mut cbor)
                    .map_err(|error| Trouble::failed("cannot make CBOR", &error))?;
                Ok((Codec::Cbor, cbor.into()))
            }
            Err(error) => bad(&format!("JSON: {error}"), "quote it for the shell: '{\"key\": \"text\"}'"),
        },
    }
}

/// Stdin to its end.
pub(super) async fn all_of_stdin() -> Result<Vec<u8>, Trouble> {
    let mut data = Vec::new();
    let read = stdin().take(MAX_MESSAGE_BYTES as u64 + 1).read_to_end(&mut data).await;
    read.map_err(|error| Trouble::failed("cannot read stdin", &error))?;
    within_limit(data)
}

/// The lines of stdin.
pub(super) struct Lines {
    from: BufReader<Stdin>,
    /// What was read of the next one.
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn of_stdin() -> Self {
        Self { from: BufReader::with_capacity(READ_BYTES, stdin()), line: Vec::new() }
    }

    /// The next line, without its end.
    ///
    /// # Cancel safety
    /// Nothing is lost if this is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        let room = (MAX_MESSAGE_BYTES + 1).saturating_sub(self.line.len());
        let read = (&mut self.from).take(room as u64).read_until(b'\n', &mut self.line).await;
        if read.map_err(|error| Trouble::failed("cannot read stdin", &error))? == 0 && self.line.is_empty() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        within_limit(line).map(Some)
    }
}

fn within_limit(data: Vec<u8>) -> Result<Vec<u8>, Trouble> {
    if data.len() > MAX_MESSAGE_BYTES {
        return Err(Trouble::new(Exit::Usage, "a message has at most 1 GiB").hint("send it in parts"));
    }
    Ok(data)
}

/// The payload as JSON, as far as it can be.
pub(super) fn content(codec: Codec, payload: &[u8]) -> Content {
    let value = match codec {
        Codec::Text => String::from_utf8(payload.to_vec()).ok().map(Value::from),
        Codec::Json => serde_json::from_slice(payload).ok(),
        // Byte strings, tags and keys that are no text have no JSON.
        Codec::Cbor => control::decode(payload).ok(),
        Codec::Bytes => None,
    };
    value.map_or_else(|| Content::Base64(data_encoding::BASE64.encode(payload)), Content::Data)
}

/// Bytes to read from stdin at once: many lines come in one.
const READ_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sent_in_a_format_is_shown_in_it() {
        for (format, data, codec, shown) in [
            (None, &b"hello"[..], Codec::Text, Content::Data("hello".into())),
            (None, b"\xff", Codec::Bytes, Content::Base64("/w==".to_owned())),
            (Some(Format::Bytes), b"hello", Codec::Bytes, Content::Base64("aGVsbG8=".to_owned())),
            (Some(Format::Json), b"{\"a\": [1, null]}", Codec::Json, Content::Data(json!({ "a": [1, null] }))),
            (Some(Format::Cbor), b"{\"a\": -1.5}", Codec::Cbor, Content::Data(json!({ "a": -1.5 }))),
        ] {
            let (sent, payload) = message(data.to_vec(), format).unwrap();
            assert_eq!((sent, content(sent, &payload)), (codec, shown), "{format:?}");
        }
    }

    #[test]
    fn data_that_is_not_in_its_format_is_not_sent() {
        for (format, data) in [(Format::Json, &b"{"[..]), (Format::Cbor, b"hello"), (Format::Text, b"\xff")] {
            assert_eq!(message(data.to_vec(), Some(format)).unwrap_err().exit, Exit::Usage);
        }
    }

    #[test]
    fn what_does_not_decode_is_shown_in_base64() {
        for (codec, payload) in
            [(Codec::Json, &b"{"[..]), (Codec::Cbor, b"\xff"), (Codec::Cbor, b"\x41a"), (Codec::Text, b"\xff")]
        {
            assert!(matches!(content(codec, payload), Content::Base64(_)), "{codec:?}");
        }
    }
}
