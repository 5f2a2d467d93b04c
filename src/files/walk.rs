//! What is in a directory, in order: neighbours by name, what a directory holds right after it. So two lists can be compared as they
//! come, and a list goes on after any of its paths. Of memory it takes the names of one directory on each level.

use std::cmp::Ordering;
use std::io;
use std::os::fd::OwnedFd;

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::partial;
use super::tree::{self, Tree};
use super::trouble::{Kind, Trouble};
use crate::mesh::{FileInfo, FileKind, SharePath, byte_string};

/// What is to be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// Below what. Paths are told from there on. A file, or a link, is told with an empty path; so is the directory itself, first.
    pub(super) root: SharePath,
    /// Only what this pattern selects, and what is below it.
    pub(super) pattern: Option<Pattern>,
    /// All below, not only what is right there.
    pub(super) recursive: bool,
    /// Only directories.
    pub(super) directories: bool,
    /// Only what comes after this.
    pub(super) after: Option<SharePath>,
    /// What was left behind by transfers that are over is removed on the way: for who may write here.
    #[serde(skip)]
    pub(super) sweeps: bool,
}

/// A pattern of paths: `*`, `?` and `[..]` stand for parts of a name, `**` for any number of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Pattern(#[serde(with = "byte_string")] Vec<u8>);

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    File(FileInfo),
    /// Something that cannot be read, and why: what is below it is not known.
    Unread(SharePath, String),
}

/// What lists a tree.
#[derive(Debug)]
pub(super) struct Walk {
    wanted: Wanted,
    matcher: Option<Matcher>,
    first: Option<Found>,
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    directory: OwnedFd,
    path: SharePath,
    /// In reverse.
    names: Vec<(Vec<u8>, FileType)>,
    /// All that is here is wanted.
    taken: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Matcher {
    whole: GlobMatcher,
    /// For each of the first parts, up to a `**`: what does not match leads to nothing.
    starts: Vec<GlobMatcher>,
    endless: bool,
}

impl Found {
    pub(super) fn path(&self) -> &SharePath {
        match self {
            Self::File(info) => &info.path,
            Self::Unread(path, _) => path,
        }
    }
}

impl Pattern {
    /// A path as one that needs no pattern, or the part before the first that does, and the pattern below that.
    pub(super) fn split(path: &SharePath) -> Option<(SharePath, Self)> {
        let is_pattern = |part: &&[u8]| part.iter().any(|byte| b"*?[".contains(byte));
        let plain = path.parts().take_while(|part| !is_pattern(part)).count();
        let rest: Vec<&[u8]> = path.parts().skip(plain).collect();
        if rest.is_empty() {
            return None;
        }
        let start: Vec<&[u8]> = path.parts().take(plain).collect();
        Some((SharePath::new(start.join(&b'/')).ok()?, Self(rest.join(&b'/'))))
    }

    /// # Errors
    /// It is none, and why.
    pub(super) fn check(&self) -> Result<(), String> {
        self.matcher().map(drop)
    }

    /// # Errors
    /// It is none, and why.
    pub(super) fn matcher(&self) -> Result<Matcher, String> {
        // It may come from anybody, and costs memory for each part.
        if self.0.len() > MAX_PATTERN || self.0.split(|byte| *byte == b'/').count() > MAX_DEPTH {
            return Err(format!("a pattern has at most {MAX_PATTERN} bytes, and {MAX_DEPTH} parts"));
        }
        let text = std::str::from_utf8(&self.0).map_err(|_| "a pattern is UTF-8".to_owned())?;
        // Braces and backslashes mean themselves, as in a shell's quotes.
        let text = text.replace('{', "[{]").replace('}', "[}]");
        let glob = |text: &str| {
            let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(false).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| error.to_string())
        };
        let parts: Vec<&str> = text.split('/').collect();
        let until = parts.iter().position(|part| part.contains("**"));
        let starts = parts[..until.unwrap_or(parts.len())].iter().map(|part| glob(part));
        Ok(Matcher { whole: glob(&text)?, starts: starts.collect::<Result<_, _>>()?, endless: until.is_some() })
    }
}

impl Matcher {
    /// Whether something by that name, so deep in directories that all lead on, may hold what is selected.
    fn leads_on(&self, name: &str, depth: usize) -> bool {
        self.starts.get(depth - 1).map_or(self.endless, |start| start.is_match(name))
    }

    /// Whether it is selected, or below what is.
    pub(super) fn takes(&self, path: &SharePath) -> bool {
        let text = path.to_string();
        let ends = text.match_indices('/').map(|(at, _)| at).chain([text.len()]);
        ends.into_iter().any(|end| self.whole.is_match(&text[..end]))
    }
}

impl Walk {
    /// # Errors
    /// There is nothing of that path, or the pattern is none.
    pub(super) fn new(tree: &Tree, wanted: Wanted) -> Result<Self, Trouble> {
        let io = |error: io::Error| Trouble::io(&wanted.root, &error);
        let matcher = wanted.pattern.as_ref().map(Pattern::matcher).transpose();
        let matcher = matcher.map_err(|why| Trouble::new(Kind::Bad, why))?;
        let root = tree.look(&wanted.root).map_err(io)?;
        let root = root.ok_or_else(|| Trouble::new(Kind::NotThere, format!("there is no '{}'", wanted.root)))?;
        let mut walk = Self { matcher, first: None, levels: Vec::new(), wanted };
        if root.kind == FileKind::Directory {
            let directory =
                tree.directory(&walk.wanted.root).map_err(|error| Trouble::io(&walk.wanted.root, &error))?;
            let names = names(&directory).map_err(|error| Trouble::io(&walk.wanted.root, &error))?;
            let taken = walk.matcher.is_none();
            walk.levels.push(Level { directory, path: SharePath::default(), names, taken });
        }
        if walk.matcher.is_none() && walk.wanted.after.is_none() {
            walk.first = Some(Found::File(FileInfo { path: SharePath::default(), ..root }));
        }
        Ok(walk)
    }

    /// Looks at one thing more, and gives it if it is wanted. `None` at the end.
    pub(super) fn look(&mut self) -> Option<Option<Found>> {
        match self.first.take() {
            Some(first) => Some(Some(first)),
            None => self.step(),
        }
    }

    fn step(&mut self) -> Option<Option<Found>> {
        let depth = self.levels.len();
        let level = self.levels.last_mut()?;
        let Some((name, file_type)) = level.names.pop() else {
            self.levels.pop();
            return Some(None);
        };
        if partial::is_partial(&name) {
            if self.wanted.sweeps {
                partial::sweep(&level.directory, &name);
            }
            return Some(None);
        }
        let Some(path) = level.path.child(&name) else { return Some(None) };
        // Of the directories that lead to where it goes on, nothing is told again.
        let told = match self.wanted.after.as_ref().map(|after| (path.in_order(after), after.is_within(&path))) {
            None | Some((Ordering::Greater, _)) => false,
            Some((_, true)) => true,
            Some(_) => return Some(None),
        };
        let text = path.to_string();
        let selected = level.taken || self.matcher.as_ref().is_none_or(|matcher| matcher.whole.is_match(&text));
        let may_be_directory = matches!(file_type, FileType::Directory | FileType::Unknown);
        let leads_on =
            || self.matcher.as_ref().is_some_and(|matcher| matcher.leads_on(&String::from_utf8_lossy(&name), depth));
        let descends = may_be_directory && if selected { self.wanted.recursive } else { leads_on() };
        let is_told = selected && !told && (may_be_directory || !self.wanted.directories);
        if !descends && !is_told {
            return Some(None);
        }
        let info = match tree::look_at(&level.directory, &name, path.clone()) {
            Ok(info) => info,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None, // it was there a moment ago
            Err(error) => return Some(Some(Found::Unread(path, error.to_string()))),
        };
        let Some(info) = info else { return Some(None) };
        if info.kind == FileKind::Directory && descends {
            match self.enter(&name, &path, selected) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(None),
                Err(error) => return Some(Some(Found::Unread(path, error.to_string()))),
            }
        }
        let is_told = is_told && (info.kind == FileKind::Directory || !self.wanted.directories);
        Some(is_told.then_some(Found::File(info)))
    }

    fn enter(&mut self, name: &[u8], path: &SharePath, taken: bool) -> io::Result<()> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(io::Error::other(format!("it is more than {MAX_DEPTH} directories deep")));
        }
        let Some(level) = self.levels.last() else { return Ok(()) };
        let directory = rustix::fs::openat(&level.directory, name, tree::DIRECTORY, rustix::fs::Mode::empty());
        let directory = match directory {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(io::ErrorKind::NotFound.into()), // it was one a moment ago
            directory => directory?,
        };
        let names = names(&directory)?;
        self.levels.push(Level { directory, path: path.clone(), names, taken });
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.look()? {
                return Some(found);
            }
        }
    }
}

fn names(directory: &OwnedFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
    Ok(names)
}

/// How deep a tree may be: each level holds a directory open.
const MAX_DEPTH: usize = 200;
/// Bytes of a pattern: as of a path.
const MAX_PATTERN: usize = 4096;

#[cfg(test)]
pub(super) fn pattern(text: &str) -> Pattern {
    Pattern(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;

    fn tree() -> (tempfile::TempDir, Arc<Tree>) {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/x/1", "a/x/2", "a.b/1", "a/y.txt", "b.txt", "c/d/e/f.txt", "z/[1]"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc", folder.path().join("out")).unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        (folder, Arc::new(tree))
    }

    fn list(tree: &Tree, wanted: Wanted) -> Vec<String> {
        Walk::new(tree, wanted).unwrap().map(|found| found.path().to_string()).collect()
    }

    #[test]
    fn a_list_is_in_order_and_goes_on_after_any_path() {
        let (_folder, tree) = tree();
        let wanted = Wanted { recursive: true, ..Wanted::default() };
        let all = list(&tree, wanted.clone());
        let expected = [
            "",
            "a",
            "a/x",
            "a/x/1",
            "a/x/2",
            "a/y.txt",
            "a.b",
            "a.b/1",
            "b.txt",
            "c",
            "c/d",
            "c/d/e",
            "c/d/e/f.txt",
            "out",
            "z",
            "z/[1]",
        ];
        assert_eq!(all, expected);
        for (at, path) in all.iter().enumerate() {
            let after = Some(SharePath::new(path.as_str()).unwrap());
            assert_eq!(list(&tree, Wanted { after, ..wanted.clone() }), expected[at + 1..], "after {path}");
        }
        let paths: Vec<SharePath> = all.iter().map(|path| SharePath::new(path.as_str()).unwrap()).collect();
        assert!(paths.is_sorted_by(|a, b| a.in_order(b) == Ordering::Less));
    }

    #[test]
    fn patterns_select_what_a_shell_would() {
        let (_folder, tree) = tree();
        for (text, found) in [
            ("*.txt", &["b.txt"][..]),
            ("**/*.txt", &["a/y.txt", "b.txt", "c/d/e/f.txt"]),
            ("a/*", &["a/x", "a/x/1", "a/x/2", "a/y.txt"]),
            ("?/x", &["a/x", "a/x/1", "a/x/2"]),
            ("c/**/f.txt", &["c/d/e/f.txt"]),
            ("[bc]*", &["b.txt", "c", "c/d", "c/d/e", "c/d/e/f.txt"]),
            ("out/*", &[]),
            ("{a,b}*", &[]),
        ] {
            let wanted = Wanted { pattern: Some(pattern(text)), recursive: true, ..Wanted::default() };
            assert_eq!(list(&tree, wanted), found, "{text}");
        }
        let path = SharePath::new("c/d/**/x*").unwrap();
        let (start, rest) = Pattern::split(&path).unwrap();
        assert_eq!((start.to_string(), rest), ("c/d".to_owned(), pattern("**/x*")));
        assert_eq!(Pattern::split(&SharePath::new("a/b").unwrap()), None);
    }

    #[test]
    fn what_is_taken_is_what_is_listed() {
        let (_folder, tree) = tree();
        let all = list(&tree, Wanted { recursive: true, ..Wanted::default() });
        for text in ["*.txt", "**/*.txt", "a/*", "?/x", "c/**/f.txt", "[bc]*", "c/*/e", "**", "z/[[]1]"] {
            let wanted = Wanted { pattern: Some(pattern(text)), recursive: true, ..Wanted::default() };
            let matcher = pattern(text).matcher().unwrap();
            let taken = all.iter().skip(1).filter(|path| matcher.takes(&SharePath::new(path.as_str()).unwrap()));
            assert_eq!(taken.cloned().collect::<Vec<_>>(), list(&tree, wanted), "{text}");
        }
    }

    #[test]
    fn a_pattern_costs_no_more_than_a_path() {
        assert!(pattern(&"?".repeat(MAX_PATTERN + 1)).check().is_err());
        assert!(pattern(&vec!["?"; MAX_DEPTH + 1].join("/")).check().is_err());
        assert!(pattern(&vec!["?"; MAX_DEPTH].join("/")).check().is_ok());
    }

    #[test]
    fn one_level_or_directories_alone() {
        let (_folder, tree) = tree();
        let level = list(&tree, Wanted { root: SharePath::new("a").unwrap(), ..Wanted::default() });
        assert_eq!(level, ["", "x", "y.txt"]);
        let wanted = Wanted { recursive: true, directories: true, ..Wanted::default() };
        assert_eq!(list(&tree, wanted), ["", "a", "a/x", "a.b", "c", "c/d", "c/d/e", "z"]);
        assert_eq!(list(&tree, Wanted { root: SharePath::new("b.txt").unwrap(), ..Wanted::default() }), [""]);
    }

    #[test]
    fn links_that_lead_out_are_not_followed() {
        let (_folder, tree) = tree();
        for path in ["out/passwd", "out"] {
            assert!(tree.resolve(&SharePath::new(path).unwrap(), true).is_err(), "{path}");
        }
        assert!(tree.resolve(&SharePath::new("out").unwrap(), false).is_ok(), "the link itself");
        assert!(tree.look(&SharePath::new("out/passwd").unwrap()).is_err());
        assert!(tree.directory(&SharePath::new("out").unwrap()).is_err());
    }
}
