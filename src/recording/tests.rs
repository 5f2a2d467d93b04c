//! Files as they are written and read, whole, cut and damaged.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::mesh::{MeshName, NodeId, NodeName, PeerId, Topic, TopicFilter};

/// A message as it goes in and is to come out.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    topic: Topic,
    codec: Codec,
    from: NodeId,
    name: NodeName,
    seq: u64,
    time_ns: u64,
    payload: Vec<u8>,
}

fn about() -> About {
    let filters = ["a/**", "b"].map(|filter| TopicFilter::new(filter).unwrap()).to_vec();
    About { mesh: MeshName::new("lab").unwrap(), filters }
}

fn node(n: u8) -> (NodeId, NodeName) {
    (NodeId { peer: PeerId::from_bytes([n; 32]), index: n.into() }, NodeName::new(format!("node {n}")).unwrap())
}

fn said(n: u64, payload: Vec<u8>) -> Said {
    let (from, name) = node((n % 3) as u8);
    let topic = Topic::new(["a", "a/b c", "\u{e9}/\u{1F600}"][n as usize % 3]).unwrap();
    let codec = [Codec::Bytes, Codec::Text, Codec::Json, Codec::Cbor][n as usize % 4];
    Said { topic, codec, from, name, seq: n, time_ns: 1_700_000_000_000_000_000 + n * 1000, payload }
}

fn put(writer: &mut Writer, said: &Said) {
    let Said { topic, codec, from, name, seq, time_ns, payload } = said;
    let arrived = Arrived {
        topic: topic.clone(),
        codec: *codec,
        from: *from,
        from_name: name,
        seq: *seq,
        time_ns: *time_ns,
        payload,
    };
    writer.write(arrived).unwrap();
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("x.mcap")
}

/// A file of these, with a chunk ended after each `every`.
fn written(folder: &TempDir, all: &[Said], every: usize) -> (PathBuf, Sealed) {
    let path = file(folder);
    let mut writer = Writer::create(&path, true, about()).unwrap();
    for chunk in all.chunks(every) {
        chunk.iter().for_each(|said| put(&mut writer, said));
        writer.tick().unwrap();
    }
    (path, writer.finish().unwrap())
}

/// What can be read, and why that is not all.
fn read(path: &Path) -> Result<(Vec<Said>, Option<Cut>), FileError> {
    let mut reader = Reader::open(path)?;
    let mut all = Vec::new();
    while let Some(Entry { origin, seq, time_ns, payload }) = reader.next()? {
        let (from, name) = origin.from.clone().unwrap();
        all.push(Said {
            topic: origin.topic.clone().unwrap(),
            codec: origin.codec,
            from: from.parse().unwrap(),
            name: NodeName::new(name).unwrap(),
            seq,
            time_ns,
            payload: payload.to_vec(),
        });
    }
    assert_eq!(reader.next().unwrap(), None, "the end comes again");
    Ok((all, reader.cut().cloned()))
}

fn messages() -> impl Strategy<Value = Vec<Said>> {
    let payload = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..300),
        (0..2_000_000_usize, any::<u8>()).prop_map(|(len, fill)| vec![fill; len]),
    ];
    let codec = prop::sample::select(vec![Codec::Bytes, Codec::Text, Codec::Json, Codec::Cbor]);
    let topic = "[a-z \u{e9}\u{1F600}]{1,20}(/[a-z0-9.:;\"\\\\ -]{1,20}){0,6}";
    let one = (topic, codec, 0..4_u8, any::<u64>(), any::<u64>(), payload);
    let one = one.prop_map(|(topic, codec, n, seq, time_ns, payload)| {
        let (from, name) = node(n);
        Said { topic: Topic::new(topic).unwrap(), codec, from, name, seq, time_ns, payload }
    });
    prop::collection::vec(one, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read(all in messages(), every in 1..20_usize) {
        let folder = TempDir::new().unwrap();
        let (path, sealed) = written(&folder, &all, every);
        prop_assert_eq!(read(&path).unwrap(), (all.clone(), None));
        prop_assert_eq!(sealed.messages, all.len() as u64);
        prop_assert_eq!(sealed.bytes, fs::metadata(&path).unwrap().len());
        let contents = Contents::of(&path).unwrap();
        prop_assert_eq!(contents.messages, all.len() as u64);
        prop_assert_eq!(contents.topics.iter().map(|topic| topic.messages).sum::<u64>(), all.len() as u64);
        let times = all.iter().map(|said| said.time_ns);
        prop_assert_eq!(contents.span_ns, Some((times.clone().min().unwrap(), times.max().unwrap())));
        prop_assert_eq!((contents.size, contents.cut), (sealed.bytes, None));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..500), begins_well: bool) {
        let folder = TempDir::new().unwrap();
        let path = file(&folder);
        let bytes = if begins_well { [mcap::MAGIC, &bytes].concat() } else { bytes };
        fs::write(&path, bytes).unwrap();
        let _ = (read(&path).map(drop), Contents::of(&path).map(drop));
    }

    #[test]
    fn damage_never_changes_a_message(at in any::<prop::sample::Index>(), to: u8) {
        let folder = TempDir::new().unwrap();
        let all: Vec<Said> = (0..40).map(|n| said(n, vec![n as u8; 50])).collect();
        let (path, _) = written(&folder, &all, 4);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = to;
        fs::write(&path, &bytes).unwrap();
        let _ = Contents::of(&path).map(drop);
        // Nothing that was not said comes out, and what is missing is no secret.
        if let Ok((got, cut)) = read(&path) {
            let mut left = all.iter();
            prop_assert!(got.iter().all(|got| left.any(|said| said == got)), "{got:?}");
            prop_assert!(got.len() == all.len() || cut.is_some(), "{} messages", got.len());
            // What is said to be whole has all that was read.
            if let Some(cut) = cut {
                bytes.truncate(cut.at as usize);
                fs::write(&path, bytes).unwrap();
                prop_assert!(read(&path).map_or(got.is_empty(), |(again, _)| again == got), "{cut}");
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_anywhere_gives_all_its_whole_chunks() {
    let folder = TempDir::new().unwrap();
    let all: Vec<Said> = (0..9).map(|n| said(n, vec![n as u8; n as usize])).collect();
    let path = file(&folder);
    let mut writer = Writer::create(&path, false, about()).unwrap();
    // How long the file is when so many messages are in whole chunks.
    let mut whole = Vec::new();
    for (n, chunk) in all.chunks(3).enumerate() {
        whole.push((n * 3, fs::metadata(&path).unwrap().len()));
        chunk.iter().for_each(|said| put(&mut writer, said));
        writer.tick().unwrap();
    }
    whole.push((all.len(), fs::metadata(&path).unwrap().len()));
    let sealed = writer.finish().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, sealed.bytes);
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let expected = whole.iter().rfind(|(_, whole)| *whole <= length as u64).map(|(count, _)| *count);
        let Some(expected) = expected else {
            // Not even its head is there, or nothing else.
            assert!(read(&path).map_or(true, |(got, _)| got.is_empty()));
            continue;
        };
        let (got, cut) = read(&path).unwrap();
        // Indexes stand behind their chunk: it is whole without them.
        assert!(got.len() >= expected && got.len() <= expected + 3, "{length}: {} of {expected}", got.len());
        assert_eq!(got, all[..got.len()]);
        let contents = Contents::of(&path).unwrap();
        assert_eq!(contents, Contents::check(&path).unwrap(), "without an index, both read all of it");
        assert!(cut.as_ref().is_none_or(|cut| cut.at <= length as u64), "{length}: {cut:?}");
        assert_eq!(contents.messages, got.len() as u64, "{length}");
        assert_eq!((contents.mesh.as_deref(), contents.filters.len()), (Some("lab"), 2));
        let ends = length as u64 > whole.last().unwrap().1 && cut.is_none();
        assert!(ends || (cut.is_some() && contents.cut == cut), "{length}: {cut:?}");
    }
}

#[test]
fn a_check_finds_what_an_index_hides() {
    let folder = TempDir::new().unwrap();
    let all: Vec<Said> = (0..9).map(|n| said(n, vec![n as u8; 50])).collect();
    let (path, _) = written(&folder, &all, 3);
    let whole = fs::read(&path).unwrap();
    let chunks = mcap::Summary::read(&whole).unwrap().unwrap().chunk_indexes;
    let found = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let found = Contents::check(&path).unwrap();
        (found.messages, found.indexed, found.cut.map(|cut| (cut.at, cut.why)))
    };
    assert_eq!(found(&whole), (9, Some(9), None));
    let second = chunks[1].chunk_start_offset as usize;
    let end = second + chunks[1].chunk_length as usize;
    // A payload, and the length of the chunk: more than any, and more than there is.
    for (at, why, readable, begin) in
        [(end - 1, "CRC", 3, second), (second + 7, "", 3, second), (second + 4, "length", 6, end)]
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let (messages, indexed, cut) = found(&bytes);
        let (cut_at, said) = cut.unwrap();
        assert!(said.contains(why) && !said.contains("end is missing"), "{said}");
        assert_eq!((messages, indexed, cut_at), (readable, Some(9), begin as u64), "{said}");
        let of = Contents::of(&path).unwrap();
        assert_eq!((of.messages, of.cut), (9, None), "the index is all that is looked at");
    }
    // What is between the chunks has no checksum of its own.
    let mut bytes = whole.clone();
    bytes[second - 1] ^= 1;
    let (messages, _, cut) = found(&bytes);
    assert!(messages == 9 && cut.as_ref().unwrap().1.contains("checksum of it all"), "{cut:?}");
}

#[test]
fn what_stands_in_the_file_is_readable_while_it_is_written() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let mut writer = Writer::create(&path, false, about()).unwrap();
    let all: Vec<Said> = (0..5000).map(|n| said(n, vec![7; 1000])).collect();
    for (n, said) in all.iter().enumerate() {
        put(&mut writer, said);
        let length = fs::metadata(&path).unwrap().len();
        assert!((n * 1000) as u64 <= length + (2 << 20), "{n} messages, {length} bytes: they are not written");
    }
    let (got, cut) = read(&path).unwrap();
    assert!(got.len() > 2900 && got == all[..got.len()] && cut.is_some(), "{}: {cut:?}", got.len());
    assert_eq!(Contents::of(&path).unwrap().cut, cut);
    writer.tick().unwrap();
    assert_eq!(read(&path).unwrap().0, all);
}

#[test]
fn payloads_of_all_sizes_come_back() {
    let folder = TempDir::new().unwrap();
    let sizes = [0, 1, 10_000_000, 0, (1 << 20) - 31, 1 << 20, 5];
    let all: Vec<Said> = (0_u64..).zip(sizes).map(|(n, size)| said(n, vec![n as u8; size])).collect();
    let (path, _) = written(&folder, &all, 100);
    assert!(read(&path).unwrap() == (all, None));
}

#[test]
fn numbers_of_64_bits_come_back() {
    let folder = TempDir::new().unwrap();
    let seqs = [0, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX, 7];
    let all: Vec<Said> = seqs.into_iter().map(|seq| Said { seq, ..said(0, vec![1]) }).collect();
    let (path, sealed) = written(&folder, &all, 2);
    assert_eq!(read(&path).unwrap().0, all);
    let contents = Contents::of(&path).unwrap();
    assert_eq!((sealed.topics, contents.topics.len(), contents.topics[0].senders), (1, 1, 1));
}

#[test]
fn what_was_lost_is_told_by_the_file_however_it_ended() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let mut writer = Writer::create(&path, false, about()).unwrap();
    put(&mut writer, &said(0, vec![]));
    writer.lost(3);
    put(&mut writer, &said(1, vec![]));
    writer.tick().unwrap();
    let told = Contents::of(&path).unwrap();
    assert!(told.lost == 3 && told.cut.is_some(), "{told:?}");
    writer.lost(4);
    assert_eq!(writer.finish().unwrap().lost, 7);
    let told = Contents::of(&path).unwrap();
    assert_eq!((told.lost, told.cut, told.messages), (7, None, 2));
    assert_eq!((told.mesh.as_deref(), &told.filters[..]), (Some("lab"), &["a/**".to_owned(), "b".to_owned()][..]));
    assert!(told.library.starts_with("meshd/"));
}

#[test]
fn a_file_without_messages_is_removed_and_one_that_is_there_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    assert_eq!(Writer::create(&path, false, about()).unwrap().finish().unwrap().messages, 0);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    let error = Writer::create(&path, false, about()).unwrap_err();
    assert!(matches!(&error, FileError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_no_panic() {
    let mut writer = match Writer::create(Path::new("/dev/full"), true, about()) {
        Err(FileError::Io { source, .. }) => return assert_eq!(source.kind(), io::ErrorKind::StorageFull),
        other => other.unwrap(),
    };
    panic!("{:?}", writer.tick());
}

#[test]
fn senders_without_end_are_told_apart_as_far_as_a_file_can() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let mut writer = Writer::create(&path, false, about()).unwrap();
    let (count, name) = (70_000_u32, node(0).1);
    for n in 0..count {
        let from = NodeId { peer: PeerId::from_bytes([1; 32]), index: n };
        let said = Said { topic: Topic::new("a").unwrap(), from, name: name.clone(), ..said(0, vec![]) };
        put(&mut writer, &said);
    }
    assert_eq!(writer.finish().unwrap().messages, u64::from(count));
    let contents = Contents::of(&path).unwrap();
    assert_eq!((contents.messages, contents.topics.len(), contents.topics[0].senders), (count.into(), 1, 60_000));
}

#[test]
fn files_of_other_programs_are_read_as_far_as_they_can_be() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let mut writer = mcap::Writer::new(io::BufWriter::new(fs::File::create(&path).unwrap())).unwrap();
    for (name, encoding) in [("/robot/pose", "cdr"), ("//", "json"), ("state", "json")] {
        let channel_id = writer.add_channel(0, name, encoding, &Default::default()).unwrap();
        let header = mcap::records::MessageHeader { channel_id, sequence: 1, log_time: 5, publish_time: 4 };
        writer.write_to_known_channel(&header, b"{}").unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    let contents = Contents::of(&path).unwrap();
    let topics: Vec<_> =
        contents.topics.iter().map(|topic| (topic.topic.as_ref().map(Topic::as_str), topic.codec)).collect();
    assert_eq!(topics, [(None, Codec::Json), (Some("robot/pose"), Codec::Bytes), (Some("state"), Codec::Json)]);
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().origin.from, None);
}

#[test]
fn compressed_files_and_others_are_named_as_what_they_are() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let (whole, _) = written(&folder, &[said(0, vec![1; 100])], 1);
    let mut bytes = fs::read(&whole).unwrap();
    // The chunk's head names how it is compressed: a text of four bytes in place of an empty one and the next four.
    let chunk = bytes.iter().position(|byte| *byte == mcap::records::op::CHUNK).unwrap();
    let name = chunk + 9 + 28;
    assert_eq!(bytes[name..name + 4], [0; 4], "no compression");
    bytes[name] = 4;
    bytes.splice(name + 4..name + 4, *b"zstd");
    bytes[chunk + 1] += 4;
    fs::write(&path, bytes).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(&error, FileError::Compressed { compression, .. } if compression == "zstd"), "{error}");
    fs::write(&path, "hello, this is no such file").unwrap();
    assert!(matches!(read(&path), Err(FileError::NotMcap(_))));
    assert!(matches!(Contents::of(&path), Err(FileError::NotMcap(_))));
    fs::write(&path, "").unwrap();
    assert!(matches!(Contents::of(&path), Err(FileError::NotMcap(_))));
    assert!(matches!(Contents::of(&folder.path().join("none")), Err(FileError::Io { .. })));
}

#[test]
fn sizes_read_well() {
    // E-CLI.
    for (bytes, text) in [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (1_500_000, "1.5 MB"),
        (999_950_000, "1.0 GB"),
        (2_500_000_000_000, "2500.0 GB"),
    ] {
        assert_eq!(Bytes(bytes).to_string(), text);
    }
}

/// A file whose checksums say that there are none: whoever changes it need not make them fit.
fn unchecked(folder: &TempDir, all: &[Said]) -> Vec<u8> {
    let (path, _) = written(folder, all, 4);
    let mut bytes = fs::read(&path).unwrap();
    let mut at = mcap::MAGIC.len();
    while at + 9 < bytes.len() - mcap::MAGIC.len() {
        let body = at + 9;
        let crc = match bytes[at] {
            mcap::records::op::CHUNK => Some(body + 24),
            mcap::records::op::DATA_END => Some(body),
            mcap::records::op::FOOTER => Some(body + 16),
            _ => None,
        };
        if let Some(crc) = crc {
            bytes[crc..crc + 4].fill(0);
        }
        at = body + u64::from_le_bytes(bytes[at + 1..body].try_into().unwrap()) as usize;
    }
    bytes
}

#[test]
fn lengths_and_counts_that_lie_end_a_file_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let said = |n: u64| Said { topic: Topic::new("a").unwrap(), codec: Codec::Text, ..said(n, vec![b'x'; 20]) };
    let all: Vec<Said> = (0..8).map(said).collect();
    let whole = unchecked(&folder, &all);
    let path = file(&folder);
    fs::write(&path, &whole).unwrap();
    assert_eq!(Contents::of(&path).unwrap().messages, 8, "the checksums are not missed");
    for lie in [&[0xff; 8][..], &[0xff; 4]] {
        for at in 0..whole.len() - lie.len() {
            let mut bytes = whole.clone();
            bytes[at..at + lie.len()].copy_from_slice(lie);
            fs::write(&path, bytes).unwrap();
            let _ =
                (Reader::open(&path).map(|mut reader| while let Ok(Some(_)) = reader.next() {}), Contents::of(&path));
        }
    }
}

/// Every count of the index is the largest that there is.
#[test]
fn an_index_that_counts_more_than_can_be_is_no_reason_to_break_off() {
    let folder = TempDir::new().unwrap();
    let said = |n: u64| Said { topic: Topic::new("a").unwrap(), codec: Codec::Text, ..said(n, vec![b'x'; 20]) };
    let all: Vec<Said> = (0..8).map(said).collect();
    let mut bytes = unchecked(&folder, &all);
    // The counts of three channels are the end of the record of statistics.
    let counts = (0..bytes.len() - 40).rev().find(|at| {
        bytes[*at] == mcap::records::op::STATISTICS && {
            let length = u64::from_le_bytes(bytes[at + 1..at + 9].try_into().unwrap());
            length == 46 + 3 * 10
        }
    });
    let end = counts.unwrap() + 9 + 46 + 3 * 10;
    for channel in 0..3 {
        bytes[end - 10 * channel - 8..end - 10 * channel].fill(0xff);
    }
    let path = file(&folder);
    fs::write(&path, bytes).unwrap();
    assert_eq!(Contents::of(&path).unwrap().topics[0].messages, u64::MAX);
}

#[test]
fn a_file_that_took_the_place_of_a_recording_is_not_removed() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let writer = Writer::create(&path, false, about()).unwrap();
    fs::rename(&path, folder.path().join("rotated")).unwrap();
    fs::write(&path, "precious").unwrap();
    let _ = writer.finish();
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_recording_that_is_removed_meanwhile_is_an_error_at_once() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder);
    let mut writer = Writer::create(&path, false, about()).unwrap();
    put(&mut writer, &said(1, vec![1]));
    writer.tick().unwrap();
    fs::remove_file(&path).unwrap();
    put(&mut writer, &said(2, vec![2]));
    assert!(writer.tick().is_err(), "what is written now, nobody will find");
    assert!(writer.finish().is_err());
}
