//! Values as people write them: `64 MiB`, `300ms`, `host:port`.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An address as a multiaddress: itself if it begins with `/`, else made from `host:port`.
///
/// # Errors
/// Says what an address looks like.
pub fn multiaddress(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned()); // The network layer knows all protocols and says what is wrong.
    }
    let bad = || format!("'{text}' is no address: write host:port, [ipv6]:port or /ip4/1.2.3.4/tcp/4001");
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let ip: Ipv6Addr = inner.parse().map_err(|_| bad())?;
        return Ok(format!("/ip6/{ip}/tcp/{port}"));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(format!("/ip4/{ip}/tcp/{port}"));
    }
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(fits) {
        return Err(bad());
    }
    if !host.is_ascii() {
        return Err(format!(
            "'{host}' has letters beyond ASCII: write its name as DNS knows it, which begins with xn--"
        ));
    }
    Ok(format!("/dns/{host}/tcp/{port}"))
}

/// Lists of addresses, each in either form; multiaddresses from then on.
pub(super) mod addresses {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(addresses: &[String], out: S) -> Result<S::Ok, S::Error> {
        addresses.serialize(out)
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| super::multiaddress(text).map_err(D::Error::custom)).collect()
    }
}

/// Numbers of bytes: `8 MiB`, or a plain number.
pub(crate) mod bytes {
    use std::fmt;
    use std::num::NonZeroUsize;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use crate::config::MAX_MESSAGE_BYTES;

    pub(in crate::config) fn serialize<S: Serializer>(bytes: &NonZeroUsize, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&text(bytes.get()))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NonZeroUsize, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = u64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, such as \"8 MiB\"")
            }
            fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
                u64::try_from(bytes).map_err(|_| E::custom("a number of bytes is at least 1"))
            }
            fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
                Ok(bytes)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
                parse(text).ok_or_else(|| E::custom(format!("'{text}' is no number of bytes: write \"8 MiB\", say")))
            }
        }
        let bytes = from.deserialize_any(Bytes)?;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > MAX_MESSAGE_BYTES {
            return Err(D::Error::custom(format!("at most {}", text(MAX_MESSAGE_BYTES))));
        }
        NonZeroUsize::new(bytes).ok_or_else(|| D::Error::custom("a number of bytes is at least 1"))
    }

    /// How many bytes a text stands for. `None`: it is no number of bytes.
    pub(crate) fn parse(text: &str) -> Option<u64> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
        number.parse::<u64>().ok()?.checked_mul(*factor)
    }

    /// In the largest unit that makes it a whole number.
    pub(crate) fn text(bytes: usize) -> String {
        let unit = UNITS.iter().find(|(name, factor)| name.contains('i') && (bytes as u64).is_multiple_of(*factor));
        unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{} {name}", bytes as u64 / factor))
    }

    const UNITS: &[(&str, u64)] = &[
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1000),
        ("B", 1),
        ("", 1),
    ];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn sizes_read_as_people_write_them() {
            for (written, bytes) in [("1", 1), ("2KB", 2000), ("3 kib", 3072), ("64 MiB", 64 << 20), ("1 GiB", 1 << 30)]
            {
                assert_eq!(parse(written), Some(bytes), "{written}");
                assert_eq!(parse(&text(bytes as usize)), Some(bytes));
            }
            for bad in ["", "MiB", "-1", "1.5 MiB", "1 PiB", "99999999999999999999", "18446744073709551615 KiB"] {
                assert_eq!(parse(bad), None, "{bad}");
            }
        }
    }
}

/// Durations: `300ms`, `5s`, `2m`.
pub(crate) mod duration {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(duration: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let form = |_| D::Error::custom("a time is a text such as \"300ms\", \"5s\" or \"2m\"");
        let text = String::deserialize(from).map_err(form)?;
        parse(&text).map_err(|says| D::Error::custom(format!("'{text}' is no time: {says}")))
    }

    /// How long a text says.
    ///
    /// # Errors
    /// Says what to write instead.
    pub(crate) fn parse(text: &str) -> Result<Duration, String> {
        let span = humantime::parse_duration(text).map_err(|_| "write 300ms, 5s or 2m, say".to_owned())?;
        if span > LONGEST { Err("at most 365 days".to_owned()) } else { Ok(span) }
    }

    /// The longest time that can be set: the clock can be added to it.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_addresses_become_multiaddresses() {
        for (short, long) in [
            ("/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/tcp/5"),
            ("1.2.3.4:5", "/ip4/1.2.3.4/tcp/5"),
            ("[::1]:5", "/ip6/::1/tcp/5"),
            ("host.example:5", "/dns/host.example/tcp/5"),
        ] {
            assert_eq!(multiaddress(short).as_deref(), Ok(long));
        }
        for bad in ["", "host", ":5", "host:", "host:99999", "::1:5", "a/b:5", "[1.2.3.4]:5", "bücher.example:5"] {
            assert!(multiaddress(bad).is_err(), "{bad}");
        }
    }
}
