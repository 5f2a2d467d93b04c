//! What words mean: a path here, or a place on a node.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cli::quoted;
use crate::cli::trouble::{Exit, Trouble};
use crate::mesh::{FarPlace, FilePlace, NodeId, NodeName, SharePath};

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A path here, as it was typed.
    Here(OsString),
    /// A place in a share.
    There(FarPlace),
}

/// From where to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) from: Vec<FilePlace>,
    pub(super) to: Vec<FilePlace>,
}

impl Way {
    /// The words with `*`, `?` or `[..]` in them, if there are no others: then something is to match.
    pub(super) fn patterns(&self) -> Option<String> {
        let patterns = self.from.iter().map(|place| match place {
            FilePlace::There(place) => pattern(place),
            FilePlace::Here(_) => None,
        });
        patterns.collect::<Option<Vec<_>>>().map(|patterns| patterns.join(" "))
    }
}

/// A place as it was typed, if it holds wildcards.
pub(super) fn pattern(place: &FarPlace) -> Option<String> {
    let FarPlace { node, share, path, .. } = place;
    path.as_bytes().iter().any(|byte| b"*?[".contains(byte)).then(|| format!("{node}:{share}/{path}"))
}

/// A pattern that selects nothing is most likely not what was meant.
pub(super) fn no_match(patterns: &str) -> Trouble {
    Trouble::new(Exit::Failed, format!("nothing there matches {patterns}"))
        .hint("* ? [..] stand for part of a name, ** for directories; see what is there with: meshd ls -r NODE:SHARE")
}

impl Word {
    /// What a word means. One whose first `:` comes before any `/`, or after a node's id, is a place on a node.
    pub(super) fn read(word: &OsStr) -> Result<Self, Trouble> {
        let Some((node, place)) = split(word.as_bytes()) else { return Ok(Self::Here(word.to_owned())) };
        let (share, path) = match place.iter().position(|byte| *byte == b'/') {
            Some(at) => (&place[..at], &place[at + 1..]),
            None => (place, &b""[..]),
        };
        let typed = word.to_string_lossy();
        let Ok(share) = std::str::from_utf8(share) else { return Err(usage(format!("'{typed}' names no share"))) };
        if matches!(share, "" | "." | "..") {
            return Err(usage(format!("'{typed}' names no share"))
                .hint(format!("write NODE:SHARE/PATH; what it shares says: meshd ls {}", quoted(node))));
        }
        let path = SharePath::new(path).map_err(|error| {
            usage(error).hint("write NODE:SHARE/PATH: nothing outside of a share can be reached through it")
        })?;
        let within = word.as_bytes().ends_with(b"/");
        Ok(Self::There(FarPlace { node: node.to_owned(), share: share.to_owned(), path, within }))
    }

    fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// The place, for a daemon that runs elsewhere on this machine.
    fn place(self) -> Result<FilePlace, Trouble> {
        Ok(match self {
            Self::Here(path) => FilePlace::Here(absolute(&path)?),
            Self::There(place) => FilePlace::There(place),
        })
    }
}

/// `NODE:SHARE/PATH..` and then, perhaps, a path here.
pub(super) fn of_get(words: &[OsString]) -> Result<Way, Trouble> {
    let mut read = read_all(words)?;
    let to = match read.last() {
        Some(Word::Here(_)) if words.len() == 1 => {
            return Err(usage(format!("'{}' names nothing to get from a node", words[0].to_string_lossy()))
                .hint("write NODE:SHARE/PATH; what is shared says: meshd ls"));
        }
        Some(Word::Here(_)) => read.pop().unwrap_or_else(|| Word::Here(OsString::from("."))),
        _ => {
            // It may have been meant as the place to get to.
            if let [_, .., last] = words {
                refuse_twofold(last)?;
            }
            Word::Here(OsString::from("."))
        }
    };
    if let Some(at) = read.iter().position(Word::is_here) {
        let word = words[at].to_string_lossy();
        return Err(usage(format!("'{word}' is here already: only the last word says where to put things"))
            .hint("from here to a node goes: meshd put FILE.. NODE:SHARE"));
    }
    way(read, vec![to])
}

/// Paths here, then `NODE:SHARE[/PATH]..`.
pub(super) fn of_put(words: &[OsString]) -> Result<Way, Trouble> {
    let mut read = read_all(words)?;
    let first = read.iter().position(|word| !word.is_here()).unwrap_or(read.len());
    let to = read.split_off(first);
    if read.is_empty() {
        refuse_twofold(&words[0])?;
        return Err(usage(format!("'{}' is on a node: put takes files that are here", words[0].to_string_lossy()))
            .hint("from a node to here goes: meshd get NODE:SHARE/PATH.. [TO]"));
    }
    if to.is_empty() {
        return Err(usage("nothing says where to put that").hint("end with NODE:SHARE; who shares what says: meshd ls"));
    }
    if let Some(at) = to.iter().position(Word::is_here) {
        let word = words[first + at].to_string_lossy();
        return Err(usage(format!("'{word}' stands behind a place on a node"))
            .hint("first come the files that are here, then the places for them"));
    }
    // All but the last could be files.
    words[first..words.len() - 1].iter().try_for_each(|word| refuse_twofold(word))?;
    let way = way(read, to)?;
    words[..first].iter().try_for_each(|word| must_exist(word))?;
    Ok(way)
}

/// A directory, and those that are to become like it.
pub(super) fn of_sync(from: &OsStr, to: &[OsString]) -> Result<Way, Trouble> {
    let (first, others) = (Word::read(from)?, read_all(to)?);
    match (first.is_here(), others.iter().filter(|word| word.is_here()).count()) {
        (true, 0) => {
            let way = way(vec![first], others)?;
            must_exist(from)?;
            Ok(way)
        }
        (false, 1) if others.len() == 1 => way(vec![first], others),
        (false, 0) => {
            refuse_twofold(from)?;
            to.iter().try_for_each(|word| refuse_twofold(word))?;
            Err(usage("both directories are on nodes").hint("run it where one of them is, or go by way of one here"))
        }
        (true, _) => Err(usage("both directories are here").hint("another one is NODE:SHARE[/PATH]; see: meshd ls")),
        (false, _) => Err(usage("from a node, one directory here can be made like it").hint("give one TO")),
    }
}

fn read_all(words: &[OsString]) -> Result<Vec<Word>, Trouble> {
    words.iter().map(|word| Word::read(word)).collect()
}

fn way(from: Vec<Word>, to: Vec<Word>) -> Result<Way, Trouble> {
    let places = |words: Vec<Word>| words.into_iter().map(Word::place).collect::<Result<_, _>>();
    Ok(Way { from: places(from)?, to: places(to)? })
}

/// A node and what stands behind its `:`.
fn split(word: &[u8]) -> Option<(&str, &[u8])> {
    let at = word.iter().position(|byte| *byte == b':')?;
    let node = std::str::from_utf8(&word[..at]).ok()?;
    let is_node = node.parse::<NodeId>().is_ok() || (!node.contains('/') && NodeName::new(node).is_ok());
    is_node.then(|| (node, &word[at + 1..]))
}

/// What reads as a place on a node and is there as a file.
fn refuse_twofold(word: &OsStr) -> Result<(), Trouble> {
    if Path::new(word).symlink_metadata().is_err() {
        return Ok(());
    }
    let typed = word.to_string_lossy();
    let hint = format!("for the file here write ./{typed}; for the node, give its id: meshd nodes --json");
    Err(usage(format!("'{typed}' is a place on a node, and a file here: which one?")).hint(hint))
}

/// Said here, where the path is known as it was typed.
fn must_exist(word: &OsStr) -> Result<(), Trouble> {
    let Err(error) = Path::new(word).symlink_metadata() else { return Ok(()) };
    let trouble = Trouble::failed(&format!("cannot read '{}'", word.to_string_lossy()), &error);
    Err(trouble.hint("is it spelled as it is here? Nothing was sent"))
}

fn absolute(path: &OsStr) -> Result<Vec<u8>, Trouble> {
    if path.is_empty() {
        return Err(usage("a path here cannot be empty").hint("this directory is ."));
    }
    let absolute =
        std::path::absolute(path).map_err(|error| Trouble::failed("cannot tell which directory this is", &error))?;
    Ok(absolute.as_os_str().as_bytes().to_vec())
}

fn usage(message: impl ToString) -> Trouble {
    Trouble::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(node: &str, share: &str, path: &str) -> Word {
        let path = SharePath::new(path).unwrap();
        Word::There(FarPlace { node: node.to_owned(), share: share.to_owned(), path, within: false })
    }

    fn read(word: &str) -> Word {
        Word::read(OsStr::new(word)).unwrap_or_else(|trouble| panic!("{word}: {trouble:?}"))
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_colon_before_any_slash_makes_a_place_on_a_node() {
        assert_eq!(read("camera:photos"), there("camera", "photos", ""));
        assert!(matches!(read("camera:photos/"), Word::There(place) if place.within && place.path.is_root()));
        assert_eq!(read("camera:photos/a/b:c"), there("camera", "photos", "a/b:c"));
        assert_eq!(read("camera:photos/**/*.jp[eg]"), there("camera", "photos", "**/*.jp[eg]"));
        let id = format!("{}/3", crate::mesh::PeerId::from_bytes([7; 32]));
        assert_eq!(read(&format!("{id}:photos/a")), there(&id, "photos", "a"));
        for here in ["a", "./a:b", "/a:b", "../a:b", "a/b:c", ":a", ".", "-"] {
            assert_eq!(read(here), Word::Here(here.into()), "{here}");
        }
        let bytes = Word::read(OsStr::from_bytes(b"n:s/\xff")).unwrap();
        assert!(matches!(bytes, Word::There(place) if place.path.as_bytes() == b"\xff"));
    }

    #[test]
    fn a_place_that_leads_out_of_a_share_is_none() {
        for word in ["n:", "n:/etc/passwd", "n:s//etc", "n:s/..", "n:s/../x", "n:s/a/../../x", "n:s/./a", "n:s/a//b"] {
            let trouble = Word::read(OsStr::new(word)).unwrap_err();
            assert_eq!(trouble.exit, Exit::Usage, "{word}");
            assert!(trouble.hint.is_some(), "{word}");
        }
    }

    #[test]
    fn words_are_sources_and_destinations_by_where_they_stand() {
        let get = of_get(&words("n:s/a n:s/b")).unwrap();
        assert_eq!((get.from.len(), get.to), (2, vec![FilePlace::Here(absolute(OsStr::new(".")).unwrap())]));
        let get = of_get(&words("n:s/a n:s/b /there/")).unwrap();
        assert_eq!((get.from.len(), get.to), (2, vec![FilePlace::Here(b"/there/".to_vec())]));
        let put = of_put(&words("/ /dev/null n:s m:s/x")).unwrap();
        assert_eq!((put.from.len(), put.to.len()), (2, 2));
        let sync = |from: &str, to: &str| of_sync(OsStr::new(from), &words(to));
        assert_eq!(sync("/", "n:s m:s").unwrap().to.len(), 2);
        assert_eq!(sync("n:s", "/x").unwrap().to, [FilePlace::Here(b"/x".to_vec())]);
    }

    #[test]
    fn what_makes_no_sense_is_said_with_a_hint() {
        for bad in [
            of_get(&words("a")),
            of_get(&words("n:s a b")),
            of_get(&words("a n:s")),
            of_get(&words("n:s n:..")),
            of_put(&words("a b")),
            of_put(&words("n:s a")),
            of_put(&words("n:s m:s")),
            of_put(&words("/ n:s b")),
            of_put(&words("/nowhere/at/all n:s")),
            of_put(&words("/ n:s/..")),
            of_sync(OsStr::new("a"), &words("b")),
            of_sync(OsStr::new("n:s"), &words("m:s")),
            of_sync(OsStr::new("n:s"), &words("a b")),
            of_sync(OsStr::new("a"), &words("b n:s")),
            of_sync(OsStr::new(""), &words("n:s")),
        ] {
            let trouble = bad.unwrap_err();
            assert!(trouble.hint.is_some(), "{trouble:?}");
        }
    }

    #[test]
    fn a_word_that_is_a_file_too_is_asked_about() {
        let place = tempfile::TempDir::new().unwrap();
        let file = place.path().join("n:s");
        std::fs::write(&file, "").unwrap();
        // Only a name without a slash can be both, so this is asked of the function itself.
        assert!(refuse_twofold(file.as_os_str()).unwrap_err().message.contains("which one"));
        assert!(refuse_twofold(OsStr::new("no:such")).is_ok());
    }
}
