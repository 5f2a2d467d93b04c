//! Shares and files as lists.

use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use serde_json::{Map, Value, json};

use super::words::{Word, no_match, pattern};
use crate::cli::args::LsArgs;
use crate::cli::client::{Client, ask};
use crate::cli::output::{Output, rfc3339};
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::{FarPlace, FileInfo, FileKind, NodeInfo, ShareInfo};
use crate::wire::control::{Answer, ListFiles, ListedFile, NotDone, Reply, Request};

/// Lists what each word names.
pub(super) async fn list(client: &mut Client, args: LsArgs, out: &mut Output) -> Result<Exit, Trouble> {
    if args.what.is_empty() {
        return shares(client, None, &args, out).await.map(|()| Exit::Done);
    }
    // Words first: nothing is printed if one makes no sense.
    let mut places = Vec::new();
    for word in &args.what {
        let node = word.as_bytes().strip_suffix(b":").unwrap_or_else(|| word.as_bytes());
        places.push(match (Word::read(std::ffi::OsStr::from_bytes(node))?, std::str::from_utf8(node)) {
            (Word::There(place), _) => Ok(place),
            (Word::Here(_), Ok(node)) => Err(node.to_owned()),
            (Word::Here(_), Err(_)) => {
                let message = format!("'{}' is no node: names are text", word.to_string_lossy());
                return Err(Trouble::new(Exit::Usage, message).hint("see who is there with: meshd nodes"));
            }
        });
    }
    let many = places.len() > 1;
    let mut exit = Exit::Done;
    for place in places {
        match place {
            Ok(place) => exit = exit.and(files(client, place, many, &args, out).await?),
            Err(node) => shares(client, Some(node), &args, out).await?,
        }
    }
    Ok(exit)
}

async fn shares(client: &mut Client, node: Option<String>, args: &LsArgs, out: &mut Output) -> Result<(), Trouble> {
    if args.recursive || args.regex.is_some() {
        return Err(Trouble::new(Exit::Usage, "--recursive and --regex are about the files of a share")
            .hint("name one: meshd ls NODE:SHARE"));
    }
    let shares = ask!(client, Request::Shares { node } => Reply::Shares(shares) => shares);
    if out.json {
        return shares.iter().try_for_each(|ShareInfo { node, name, share, mode }| {
            out.object(&json!({ "node": name, "id": node.to_string(), "share": share, "mode": mode }))
        });
    }
    if shares.is_empty() {
        out.talk.say("nothing is shared");
        out.talk.hint("a node shares what [[share]] in its config.toml names");
        return Ok(());
    }
    let row = |ShareInfo { node, name, share, mode }: ShareInfo| {
        [name.to_string(), share, mode, format!("{}/{}", node.peer.short(), node.index)]
    };
    let rows: Vec<_> = shares.into_iter().map(row).collect();
    out.table(["NODE", "SHARE", "MODE", "PEER"], &rows)
}

async fn files(
    client: &mut Client,
    place: FarPlace,
    many: bool,
    args: &LsArgs,
    out: &mut Output,
) -> Result<Exit, Trouble> {
    let (mut exit, mut printed) = (Exit::Done, false);
    let pattern = pattern(&place).filter(|_| args.regex.is_none());
    // Of several nodes of one name, each line says whose it is.
    let nodes = ask!(client, Request::Nodes => Reply::Nodes(nodes) => nodes);
    let of_name = |node: &&NodeInfo| node.name.as_str() == place.node;
    let whose = if nodes.iter().filter(of_name).count() > 1 { Whose::Peer } else { Whose::of(many) };
    let share = place.share.clone();
    let request = ListFiles { place, recursive: args.recursive, regex: args.regex.clone() };
    let wanted = client.begin(Request::Files(request)).await?;
    loop {
        // Written together while more are there, at once when none is.
        let answer = match client.next().now_or_never() {
            Some(answer) => answer?,
            None => {
                out.flush()?;
                client.next().await?
            }
        };
        match answer {
            Answer::File(listed) if listed.id == wanted && out.json => {
                printed = true;
                out.object(&object(&listed, &share))?;
            }
            Answer::File(listed) if listed.id == wanted => {
                printed = true;
                let line = format!("{}{}", whose.text(&listed), line(&listed.file));
                let line = out.foreign(&line).into_owned();
                out.line(&line)?;
            }
            Answer::NotDone(NotDone { id, failure }) if id == wanted => {
                out.flush()?;
                exit = exit.and(out.talk.trouble(failure.into()));
            }
            Answer::Reply { id, .. } if id == wanted => match pattern {
                Some(pattern) if !printed && exit == Exit::Done => return Err(no_match(&pattern)),
                _ => return Ok(exit),
            },
            Answer::Failed { id, failure } if id == wanted => return Err(failure.into()),
            _ => {}
        }
    }
}

/// What a line says about whose file it is.
#[derive(Clone, Copy)]
enum Whose {
    Nobody,
    Name,
    Peer,
}

impl Whose {
    fn of(many: bool) -> Self {
        if many { Self::Name } else { Self::Nobody }
    }

    fn text(self, listed: &ListedFile) -> String {
        match self {
            Self::Nobody => String::new(),
            Self::Name => format!("{}  ", listed.name),
            Self::Peer => format!("{} {}/{}  ", listed.name, listed.node.peer.short(), listed.node.index),
        }
    }
}

/// As `ls -l` does, as far as that is known.
fn line(file: &FileInfo) -> String {
    let (kind, target) = match &file.kind {
        FileKind::File => ('-', None),
        FileKind::Directory => ('d', None),
        FileKind::Link(target) => ('l', Some(target)),
    };
    let modified = rfc3339(time(file.modified_ns));
    // To the minute, as people read it.
    let minute = modified.get(..16).unwrap_or(&modified).replace('T', " ");
    let target = target.map(|target| format!(" -> {}", String::from_utf8_lossy(target))).unwrap_or_default();
    format!("{kind}{}  {:>10}  {minute}  {}{target}", permissions(file.mode), amount(file.bytes), file.path)
}

fn object(ListedFile { node, name, file, .. }: &ListedFile, share: &str) -> Value {
    let FileInfo { path, kind, bytes, modified_ns, mode } = file;
    let mut object = json!({
        "node": name, "id": node.to_string(), "share": share, "bytes": bytes, "modified": rfc3339(time(*modified_ns)),
        "mode": format!("{:04o}", mode & 0o7777),
    });
    let (kind, target) = match kind {
        FileKind::File => ("file", None),
        FileKind::Directory => ("directory", None),
        FileKind::Link(target) => ("link", Some(String::from_utf8_lossy(target).into_owned())),
    };
    if let Some(object) = object.as_object_mut() {
        object.insert("kind".to_owned(), kind.into());
        object.extend(target.map(|target| ("target".to_owned(), target.into())));
        object.extend(path_fields(path.as_bytes()));
    }
    object
}

/// A path in JSON: as text, and exactly too if it is no text.
pub(super) fn path_fields(path: &[u8]) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("path".to_owned(), String::from_utf8_lossy(path).into());
    if std::str::from_utf8(path).is_err() {
        fields.insert("path_base64".to_owned(), data_encoding::BASE64.encode(path).into());
    }
    fields
}

fn permissions(mode: u32) -> String {
    let letters = "rwxrwxrwx".chars().enumerate();
    letters.map(|(at, letter)| if mode & (0o400 >> at) == 0 { '-' } else { letter }).collect()
}

fn time(ns: i64) -> SystemTime {
    let since = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH.checked_sub(since).unwrap_or(UNIX_EPOCH) } else { UNIX_EPOCH + since }
}

/// Bytes as people read them, three digits of them.
pub(super) fn amount(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if scaled < 1000.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == "B" || scaled >= 9.95 { format!("{scaled:.0} {unit}") } else { format!("{scaled:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::SharePath;

    #[test]
    fn amounts_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (400 << 20, "400 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }

    #[test]
    fn a_line_tells_what_a_file_is() {
        let path = SharePath::new("a/b").unwrap();
        let file = FileInfo { path, kind: FileKind::File, bytes: 1536, modified_ns: 1_500_000_000, mode: 0o100_640 };
        assert_eq!(line(&file), "-rw-r-----     1.5 KiB  1970-01-01 00:00  a/b");
        let link = FileInfo { kind: FileKind::Link(b"../c".to_vec()), bytes: 0, mode: 0o777, modified_ns: -1, ..file };
        assert_eq!(line(&link), "lrwxrwxrwx         0 B  1970-01-01 00:00  a/b -> ../c");
    }

    #[test]
    fn a_path_that_is_no_text_is_told_exactly() {
        assert_eq!(Value::from(path_fields(b"a")), json!({ "path": "a" }));
        assert_eq!(Value::from(path_fields(b"a\xff")), json!({ "path": "a\u{fffd}", "path_base64": "Yf8=" }));
    }
}
