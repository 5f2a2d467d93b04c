//! Values to payloads and back. Decoding makes data, never runs anything.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::de::value::{BytesDeserializer, Error as ValueError, StrDeserializer};

use crate::mesh::{Codec, Item, Message};
use crate::protocol::calls::CallReply;
use crate::protocol::services::Request;

/// A payload is not what the receiver takes it for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload is no such value: {0}")]
pub struct DecodeError(String);

/// A value in CBOR, or why it has none.
pub(super) fn to_cbor<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes.into())
}

/// A payload as a value of that type: CBOR and JSON by their structure, text as a string, bytes as bytes.
pub(super) fn decode<T: DeserializeOwned>(codec: Codec, payload: &[u8]) -> Result<T, DecodeError> {
    match codec {
        Codec::Cbor => ciborium::from_reader(payload).map_err(bad),
        Codec::Json => serde_json::from_slice(payload).map_err(bad),
        Codec::Text => {
            let text = std::str::from_utf8(payload).map_err(bad)?;
            T::deserialize(StrDeserializer::<ValueError>::new(text)).map_err(bad)
        }
        Codec::Bytes => T::deserialize(BytesDeserializer::<ValueError>::new(payload)).map_err(bad),
    }
}

impl Item {
    /// The content as a value of that type, as [`Message::decode`] gives it.
    ///
    /// # Errors
    /// The content is no such value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode(self.codec, &self.payload)
    }
}

impl Message {
    /// The content as a value of that type: CBOR and JSON by their structure, text as a string, bytes as bytes.
    ///
    /// # Errors
    /// The content is no such value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode(self.codec, &self.payload)
    }

    /// The content as text, if it is text or JSON.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self.codec {
            Codec::Text | Codec::Json => std::str::from_utf8(&self.payload).ok(),
            Codec::Bytes | Codec::Cbor => None,
        }
    }
}

impl Request {
    /// What is asked, as a value of that type.
    ///
    /// # Errors
    /// It is no such value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode(self.codec, &self.payload)
    }
}

impl CallReply {
    /// The reply as a value of that type.
    ///
    /// # Errors
    /// It is no such value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode(self.codec, &self.payload)
    }
}

fn bad(error: impl std::fmt::Display) -> DecodeError {
    DecodeError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{NodeId, NodeName, PeerId, Topic};

    fn message(codec: Codec, payload: impl Into<Bytes>) -> Message {
        let from = NodeId { peer: PeerId::from_bytes([0; 32]), index: 0 };
        let (topic, from_name) = (Topic::new("t").unwrap(), NodeName::new("n").unwrap());
        Message {
            topic,
            from,
            from_name,
            seq: 1,
            codec,
            payload: payload.into(),
            lagged: 0,
            retains: false,
            claimed: Default::default(),
        }
    }

    #[test]
    fn each_codec_gives_back_what_was_put_in() {
        let cbor = to_cbor(&(1, "x")).unwrap_or_default();
        assert_eq!(message(Codec::Cbor, cbor).decode(), Ok((1, "x".to_owned())));
        assert_eq!(message(Codec::Json, "[1,\"x\"]").decode(), Ok((1, "x".to_owned())));
        assert_eq!(message(Codec::Text, "x").decode(), Ok("x".to_owned()));
        assert!(message(Codec::Text, "x").decode::<u32>().is_err());
        assert!(message(Codec::Cbor, vec![0xff]).decode::<u32>().is_err());
    }
}
