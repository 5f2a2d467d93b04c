//! Files: shares, what is got from them and put into them, and what is not.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ciborium::Value;
use meshd::config::{Config, ShareConfig, ShareMode};
use meshd::{
    Action, AllowRule, CallError, CallOptions, Callee, Codec, FarPlace, FileDone, FileError, FileEvent, FileInfo,
    FileJob, FilePlace, JobKind, Node, ServeOptions, SharePath, Sharing, Transfer, Who,
};
use tempfile::TempDir;

use crate::cluster::{Cluster, PATIENCE, see_each_other, until, within};

const MIB: usize = 1 << 20;
const SYNC: JobKind = JobKind::Sync { delete: false, dry_run: false };
const MIRROR: JobKind = JobKind::Sync { delete: true, dry_run: false };

// What is in a directory.

/// What a test compares: kind and content, mode, time.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    what: What,
    mode: u32,
    modified: Option<(i64, i64)>,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    File(Vec<u8>),
    Directory,
    Link(PathBuf),
}

fn tree(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    look(root, root, &mut all);
    all
}

fn look(root: &Path, folder: &Path, all: &mut BTreeMap<Vec<u8>, Seen>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        let what = if found.is_symlink() {
            What::Link(fs::read_link(&path).unwrap())
        } else if found.is_dir() {
            What::Directory
        } else {
            What::File(fs::read(&path).unwrap())
        };
        let is_link = found.is_symlink();
        let mode = if is_link { 0 } else { found.mode() & 0o777 };
        let modified = (!is_link).then(|| (found.mtime(), found.mtime_nsec()));
        all.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_owned(), Seen { what, mode, modified });
        if found.is_dir() {
            look(root, &path, all);
        }
    }
}

fn file(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn set(path: impl AsRef<Path>, mode: u32, seconds: u64) {
    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
    fs::File::open(&path).unwrap().set_modified(at).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Bytes that differ everywhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

/// One of everything that can be in a directory.
fn everything(root: &Path) {
    file(root.join("empty"), "");
    file(root.join("a/small.txt"), "small");
    file(root.join("a/b/large"), noise(3 * MIB + 17, 1));
    file(root.join("exactly"), noise(MIB, 2));
    file(root.join("two"), noise(2 * MIB, 3));
    file(root.join("run.sh"), "#!/bin/sh\n");
    file(root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), "bytes");
    file(root.join("new\nline"), "x");
    fs::create_dir_all(root.join("nothing/in/here")).unwrap();
    symlink("small.txt", root.join("a/inside")).unwrap();
    symlink("/etc/hostname", root.join("a/outside")).unwrap();
    symlink("nowhere", root.join("broken")).unwrap();
    set(root.join("run.sh"), 0o755, 1_000_000_000);
    set(root.join("a/small.txt"), 0o600, 1_234_567_890);
    set(root.join("a/b/large"), 0o640, 1_500_000_000);
    set(root.join("a/b"), 0o555, 1_400_000_000); // X-RS: a read-only directory
    set(root.join("nothing/in/here"), 0o750, 1_100_000_000);
    set(root.join("nothing/in"), 0o700, 1_100_000_001);
}

// Nodes and jobs.

/// A peer that shares directories, and one that uses them.
struct Pair {
    cluster: Cluster,
    server: Option<(Node, Sharing)>,
    client: Node,
    there: TempDir,
    here: TempDir,
}

fn share(path: &Path, mode: ShareMode) -> ShareConfig {
    ShareConfig { name: "data".into(), path: path.to_owned(), mode }
}

async fn serve(cluster: &Cluster, name: &str, path: &Path, mode: ShareMode) -> (Node, Sharing) {
    let node = cluster.start(name).await;
    let sharing = node.share(vec![share(path, mode)]).await.unwrap();
    (node, sharing)
}

/// A peer that shares a directory and has rules about it.
async fn guarded(cluster: &Cluster, path: &Path, allow: Vec<AllowRule>) -> (Node, Sharing) {
    let config = Config { allow, ..Config::default() };
    let node =
        cluster.builder("server").config(config).listen(["127.0.0.1:0"]).runtime_dir(cluster.runtime()).mdns(false);
    let node = node.start().await.unwrap();
    let sharing = node.share(vec![share(path, ShareMode::Both)]).await.unwrap();
    (node, sharing)
}

fn rule(name: Option<&str>, who: Vec<Who>, action: Action, pattern: &str) -> AllowRule {
    AllowRule { name: name.map(str::to_owned), who, action: vec![action], pattern: pattern.into() }
}

async fn offered(client: &Node, count: usize) {
    until("files are shared", async || client.shares(None, PATIENCE).await.unwrap().len() == count).await;
}

impl Pair {
    async fn new(mode: ShareMode) -> Self {
        let (cluster, there, here) = (Cluster::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let client = cluster.start("client").await;
        let server = Some(serve(&cluster, "server", there.path(), mode).await);
        offered(&client, 1).await;
        Self { cluster, server, client, there, here }
    }

    fn far(&self, path: &str) -> FilePlace {
        far("server", path)
    }

    fn near(&self, path: &str) -> FilePlace {
        near(&self.here.path().join(path))
    }

    async fn run(&self, from: FilePlace, to: FilePlace, kind: JobKind) -> Told {
        run(&self.client, job(vec![from], vec![to], kind)).await
    }

    async fn stop(&mut self) {
        let (node, sharing) = self.server.take().unwrap();
        drop(sharing);
        node.shutdown().await;
    }

    async fn start_again(&mut self) {
        self.server = Some(serve(&self.cluster, "server", self.there.path(), ShareMode::Both).await);
    }
}

fn far(node: &str, path: &str) -> FilePlace {
    let within = path.ends_with('/');
    FilePlace::There(FarPlace { node: node.into(), share: "data".into(), path: SharePath::new(path).unwrap(), within })
}

fn near(path: &Path) -> FilePlace {
    FilePlace::Here(path.as_os_str().as_bytes().to_owned())
}

fn job(from: Vec<FilePlace>, to: Vec<FilePlace>, kind: JobKind) -> FileJob {
    FileJob { from, to, kind, regex: None }
}

/// What was told of a job.
#[derive(Debug, Default)]
struct Told {
    done: Vec<(u32, String, FileDone)>,
    failed: Vec<(u32, String, String)>,
    waited: usize,
    finished: BTreeMap<u32, FileEvent>,
    errors: Vec<FileError>,
    planned: BTreeMap<u32, (u64, u64)>,
}

impl Told {
    fn add(&mut self, event: Result<FileEvent, FileError>) {
        match event {
            Ok(FileEvent::Planned { target, files, bytes, .. }) => drop(self.planned.insert(target, (files, bytes))),
            Ok(FileEvent::Progress { target, .. }) => {
                assert!(self.planned.contains_key(&target), "the plan comes first");
            }
            Ok(FileEvent::Done { target, path, what, .. }) => {
                assert!(self.planned.contains_key(&target), "the plan comes first");
                self.done.push((target, path.to_string(), what));
            }
            Ok(FileEvent::Failed { target, path, message }) => self.failed.push((target, path.to_string(), message)),
            Ok(FileEvent::Waiting { .. }) => self.waited += 1,
            Ok(FileEvent::Begun { target, .. }) => assert!(self.planned.contains_key(&target), "the plan comes first"),
            Ok(event @ FileEvent::Finished { target, .. }) => drop(self.finished.insert(target, event)),
            Err(error) => self.errors.push(error),
        }
    }

    fn well(self) -> Self {
        assert!(self.errors.is_empty() && self.failed.is_empty(), "{self:#?}");
        assert!(!self.finished.is_empty(), "{self:#?}");
        self
    }

    /// Bytes moved, bytes resumed, files unchanged, deleted.
    fn sums(&self) -> (u64, u64, u64, u64) {
        match self.finished.get(&0) {
            Some(FileEvent::Finished { bytes, resumed, unchanged, deleted, .. }) => {
                (*bytes, *resumed, *unchanged, *deleted)
            }
            _ => panic!("{self:#?}"),
        }
    }
}

async fn to_the_end(mut transfer: Transfer, mut told: Told) -> Told {
    within("the job ends", async {
        while let Some(event) = transfer.next().await {
            told.add(event);
        }
    })
    .await;
    told
}

async fn run(node: &Node, job: FileJob) -> Told {
    to_the_end(node.transfer(job).unwrap(), Told::default()).await
}

// Round trips.

/// X-RS (permissions, read-only directories, links relative, absolute and out of the tree), P-2, P-3.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_and_got_back_is_the_same() {
    let pair = Pair::new(ShareMode::Both).await;
    let source = pair.here.path().join("source");
    everything(&source);
    pair.run(pair.near("source"), pair.far(""), JobKind::Copy).await.well();
    assert_eq!(tree(&pair.there.path().join("source")), tree(&source), "put");

    let told = pair.run(pair.far("source"), pair.near("back"), JobKind::Copy).await.well();
    assert_eq!(tree(&pair.here.path().join("back")), tree(&source), "got");
    let size: u64 = tree(&source)
        .values()
        .map(|seen| if let What::File(bytes) = &seen.what { bytes.len() as u64 } else { 0 })
        .sum();
    let moved: u64 = told.sums().0;
    assert_eq!(moved, size, "X-RS: the sums of what is told are the bytes that there are");
    assert_eq!(told.planned[&0].1, size);

    // X-RS: sent twice. Nothing is moved.
    let again = pair.run(pair.far("source"), pair.near("back"), SYNC).await.well();
    assert_eq!((again.sums().0, again.done.len()), (0, 0), "{again:#?}");
    assert_eq!(again.sums().2, tree(&source).len() as u64 + 1, "the directory itself included");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_goes_where_cp_puts_it() {
    let pair = Pair::new(ShareMode::Both).await;
    let root = pair.there.path();
    for path in ["logs/a.log", "logs/b.txt", "logs/old/c.log", "top"] {
        file(root.join(path), path);
    }
    fs::create_dir(pair.here.path().join("into")).unwrap();
    for (from, to, comes) in [
        ("top", "into", "into/top"),
        ("top", "named", "named"),
        ("top", "new/", "new/top"),
        ("logs", "into", "into/logs/old/c.log"),
        ("logs", "as", "as/old/c.log"),
        ("logs/*.log", "globbed", "globbed/a.log"),
        ("logs/**/*.log", "deep", "deep/old/c.log"),
        ("", "whole", "whole/logs/a.log"),
    ] {
        pair.run(pair.far(from), pair.near(to), JobKind::Copy).await.well();
        assert!(pair.here.path().join(comes).is_file(), "{from} to {to}: {:?}", tree(pair.here.path()).keys());
    }
    assert!(!pair.here.path().join("globbed/b.txt").exists());
    for (from, to, comes) in [("named", "", "named"), ("named", "new/", "new/named"), ("as", "logs", "logs/as/a.log")] {
        pair.run(pair.near(from), pair.far(to), JobKind::Copy).await.well();
        assert!(root.join(comes).is_file(), "{from} to {to}: {:?}", tree(root).keys());
    }
    let several = job(vec![pair.near("named"), pair.near("as")], vec![pair.far("both")], JobKind::Copy);
    run(&pair.client, several).await.well();
    assert!(root.join("both/named").is_file() && root.join("both/as/a.log").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_listed_by_path_pattern_and_expression() {
    let pair = Pair::new(ShareMode::Read).await;
    for path in ["a/1.txt", "a/b/2.txt", "c.log"] {
        file(pair.there.path().join(path), "xyz");
    }
    fs::create_dir(pair.there.path().join("through")).unwrap();
    symlink("../a", pair.there.path().join("through/link")).unwrap();
    let list = async |path: &str, recursive, regex: Option<&str>| {
        let FilePlace::There(place) = pair.far(path) else { unreachable!() };
        let mut listing = pair.client.list_files(&place, recursive, regex).unwrap();
        let mut found: Vec<FileInfo> = Vec::new();
        while let Some(next) = within("the list goes on", listing.next()).await {
            found.push(next.unwrap().2);
        }
        found.iter().map(|info| info.path.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list("", false, None).await, ["a", "c.log", "through"]);
    assert_eq!(list("a", true, None).await, ["a/1.txt", "a/b", "a/b/2.txt"]);
    assert_eq!(list("**/*.txt", false, None).await, ["a/1.txt", "a/b/2.txt"]);
    assert_eq!(list("", true, Some(r"\d\.txt$")).await, ["a/1.txt", "a/b/2.txt"]);
    assert_eq!(list("c.log", false, None).await, ["c.log"]);
    assert_eq!(list("through/link", false, None).await, ["a/1.txt", "a/b"], "links inside lead on");
    assert!(matches!(pair.client.list_files(&place("server", ""), true, Some("(")), Err(FileError::Pattern(_))));
    assert!(matches!(pair.client.list_files(&place("nobody", ""), true, None), Err(FileError::NoSuchNode(_))));
    let shares = pair.client.shares(Some("server"), PATIENCE).await.unwrap();
    assert_eq!((shares[0].share.as_str(), shares[0].mode.as_str()), ("data", "read"));
}

fn place(node: &str, path: &str) -> FarPlace {
    let FilePlace::There(place) = far(node, path) else { unreachable!() };
    place
}

/// X-RS: content change, the option to delete, a filter.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_makes_one_directory_like_the_other_in_both_directions() {
    let pair = Pair::new(ShareMode::Both).await;
    let (source, copy) = (pair.here.path().join("source"), pair.there.path().join("copy"));
    everything(&source);
    pair.run(pair.near("source"), pair.far("copy"), SYNC).await.well();
    assert_eq!(tree(&copy), tree(&source));

    file(source.join("a/small.txt"), "other");
    set(source.join("two"), 0o600, 1_600_000_000); // the same content at another time
    fs::remove_file(source.join("run.sh")).unwrap();
    file(copy.join("extra/deep/file"), "extra");
    let dry = JobKind::Sync { delete: true, dry_run: true };
    let before = tree(&copy);
    let told = pair.run(pair.near("source"), pair.far("copy"), dry).await.well();
    assert_eq!(tree(&copy), before, "nothing is done in a dry run");
    let deleted: Vec<&str> = told.done.iter().filter(|done| done.2 == FileDone::Deleted).map(|done| &*done.1).collect();
    assert_eq!(deleted, ["extra", "run.sh"]);
    assert_eq!(told.sums().3, 4, "as many as are deleted");

    pair.run(pair.near("source"), pair.far("copy"), SYNC).await.well();
    assert!(copy.join("run.sh").exists() && copy.join("extra/deep/file").exists(), "nothing is deleted unasked");
    let _socket = std::os::unix::net::UnixListener::bind(copy.join("extra/socket")).unwrap(); // goes, and counts for nothing
    let told = pair.run(pair.near("source"), pair.far("copy"), MIRROR).await.well();
    assert_eq!((told.sums().0, told.sums().3), (0, 4), "{told:#?}");
    assert_eq!(tree(&copy), tree(&source));

    // A directory where a file was, and a file where a directory was.
    fs::remove_dir_all(source.join("nothing")).unwrap();
    file(source.join("nothing"), "a file");
    fs::remove_file(source.join("two")).unwrap();
    file(source.join("two/now"), "a directory");
    let told = pair.run(pair.near("source"), pair.far("copy"), SYNC).await;
    assert_eq!(told.failed.len(), 2, "{told:#?}");
    pair.run(pair.near("source"), pair.far("copy"), MIRROR).await.well();
    assert_eq!(tree(&copy), tree(&source));

    // The other way, only what an expression selects; what it does not select is left alone.
    file(copy.join("new.txt"), "new");
    file(copy.join("new.bin"), "new");
    file(source.join("gone.txt"), "x");
    file(source.join("gone.bin"), "x");
    let mut job = job(vec![pair.far("copy")], vec![pair.near("source")], MIRROR);
    job.regex = Some(r"\.txt$".into());
    run(&pair.client, job).await.well();
    let is = |name: &str| source.join(name).exists();
    assert!(is("new.txt") && !is("new.bin") && !is("gone.txt") && is("gone.bin") && is("two/now"));
    pair.run(pair.far("copy"), pair.near("source"), MIRROR).await.well();
    assert_eq!(tree(&copy), tree(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_at_another_time_is_not_moved_again() {
    let pair = Pair::new(ShareMode::Both).await;
    let content = noise(2 * MIB + 5, 9);
    file(pair.here.path().join("source/film"), &content);
    file(pair.there.path().join("copy/film"), &content);
    set(pair.here.path().join("source/film"), 0o640, 1_600_000_000);
    let told = pair.run(pair.near("source"), pair.far("copy"), SYNC).await.well();
    assert_eq!(told.sums().0, 0);
    assert!(told.done.contains(&(0, "film".into(), FileDone::Touched)), "{told:#?}");
    assert_eq!(tree(&pair.here.path().join("source")), tree(&pair.there.path().join("copy")));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_small_files_arrive() {
    let pair = Pair::new(ShareMode::Both).await;
    for number in 0..3000 {
        file(pair.here.path().join(format!("many/{}/{number}", number % 7)), noise(1024, number));
    }
    let told = pair.run(pair.near("many"), pair.far("many"), SYNC).await.well();
    assert_eq!(tree(&pair.there.path().join("many")), tree(&pair.here.path().join("many")));
    assert_eq!(told.done.iter().filter(|done| !matches!(done.1.len(), 0 | 1)).count(), 3000);
}

// What is refused.

/// A request as it is on the way: bytes, words, the length of the words.
fn words(share: &str, ask: &str, fields: &[(&str, Value)], data: &[u8]) -> Bytes {
    let fields = fields.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect();
    let ask = Value::Map(vec![(Value::from(ask), Value::Map(fields))]);
    let asked = Value::Map(vec![(Value::from("share"), Value::from(share)), (Value::from("ask"), ask)]);
    packed(&asked, data)
}

fn packed(words: &Value, data: &[u8]) -> Bytes {
    let mut head = Vec::new();
    ciborium::into_writer(words, &mut head).unwrap();
    [data, &head, &(head.len() as u32).to_be_bytes()].concat().into()
}

fn path(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn version(size: u64) -> Value {
    Value::Map(vec![("size".into(), size.into()), ("modified_ns".into(), 1.into())])
}

fn record(content: &[u8]) -> Value {
    let hash = Value::Bytes(blake3::hash(content).as_bytes().to_vec());
    let fields = vec![
        ("bytes".into(), (content.len() as u64).into()),
        ("mode".into(), 0o644.into()),
        ("modified_ns".into(), 1.into()),
        ("hash".into(), hash),
    ];
    Value::Map(vec![("Read".into(), Value::Map(fields))])
}

async fn ask(client: &Node, server: &Node, request: Bytes) -> Result<Bytes, CallError> {
    let options = CallOptions { callee: Callee::Node(server.id()), ..CallOptions::default() };
    let service = client.service("meshd.files").unwrap().with(options);
    service.call_bytes(Codec::Bytes, request).await.map(|reply| reply.payload)
}

const SECRET: &str = "the secret outside of the share";

/// Paths that lead out of a share. Links named `out*` are made by [`traps`].
const ESCAPES: [&[u8]; 12] = [
    b"../secret",
    b"..",
    b"/etc/passwd",
    b"a/../../secret",
    b"out/secret",
    b"out-absolute/secret",
    b"out-file",
    b"a/./../../secret",
    b"a//b",
    b"./../secret",
    b"out-chain/secret",
    b"secret\0/../../x",
];

/// A directory beside the share, with a secret, and links that lead there.
fn traps(share: &Path, outside: &Path) {
    if !outside.join("secret").exists() {
        file(outside.join("secret"), SECRET);
    }
    let relative = Path::new("..").join(outside.file_name().unwrap());
    symlink(&relative, share.join("out")).unwrap();
    symlink(outside, share.join("out-absolute")).unwrap();
    symlink(outside.join("secret"), share.join("out-file")).unwrap();
    symlink("out", share.join("out-chain")).unwrap();
    fs::create_dir_all(share.join("a")).unwrap();
}

/// pynetwork reads any file and writes anywhere by `../`. Whatever is asked in the protocol's own words, nothing is here.
#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_a_share_whoever_asks() {
    let pair = Pair::new(ShareMode::Both).await;
    let outside = TempDir::new().unwrap();
    traps(pair.there.path(), outside.path());
    let server = &pair.server.as_ref().unwrap().0;
    let (before, share_before) = (tree(outside.path()), tree(pair.there.path()));
    for escape in ESCAPES {
        let at = path(escape);
        let content = b"written by a stranger";
        let two = noise(MIB + 1, 1);
        let reads = [
            words("data", "Read", &[("paths", Value::Array(vec![at.clone()]))], b""),
            words("data", "Chunk", &[("path", at.clone()), ("version", version(31)), ("index", 0.into())], b""),
            words(
                "data",
                "Values",
                &[("path", at.clone()), ("version", version(31)), ("first", 0.into()), ("count", 1.into())],
                b"",
            ),
            words("data", "Hash", &[("path", at.clone()), ("version", version(31)), ("purpose", "Get".into())], b""),
        ];
        for request in reads {
            if let Ok(reply) = ask(&pair.client, server, request).await {
                let text = String::from_utf8_lossy(&reply).into_owned();
                assert!(!text.contains(SECRET) && text.contains("Not"), "{}: {text}", String::from_utf8_lossy(escape));
            }
        }
        let change = |kind: &str, more: &[(&str, Value)]| {
            let mut fields = vec![("path".into(), at.clone())];
            fields.extend(more.iter().map(|(name, value)| (Value::from(*name), value.clone())));
            let change = Value::Map(vec![(kind.into(), Value::Map(fields))]);
            words("data", "Change", &[("changes", Value::Array(vec![change]))], b"")
        };
        let below = |name: &[u8]| path(&[escape, b"/", name].concat());
        let write = |at: Value| {
            let records = Value::Array(vec![record(content)]);
            words("data", "Write", &[("paths", Value::Array(vec![at])), ("records", records)], content)
        };
        let writes = [
            write(below(b"new")),
            change("Attributes", &[("mode", 0o777.into()), ("modified_ns", 1.into())]),
            words("data", "Begin", &[("path", below(b"large")), ("version", version(two.len() as u64))], b""),
        ];
        for request in writes {
            if let Ok(reply) = ask(&pair.client, server, request).await {
                let text = String::from_utf8_lossy(&reply).into_owned();
                assert!(text.contains("Not"), "{}: {text}", String::from_utf8_lossy(escape));
            }
        }
        assert_eq!(tree(outside.path()), before, "{}", String::from_utf8_lossy(escape));
    }
    // Through links that lead out, as a person would say it.
    for escape in ["out/secret", "out-absolute/secret", "out-chain/", "out-absolute/*"] {
        let told = pair.run(pair.far(escape), pair.near("got/"), JobKind::Copy).await;
        assert!(matches!(&told.errors[..], [FileError::Refused { .. }]), "{escape}: {told:#?}");
        let told = pair
            .run(
                near(&outside.path().join("secret")),
                pair.far(&format!("{}/x", escape.trim_end_matches('/'))),
                JobKind::Copy,
            )
            .await;
        assert!(!told.errors.is_empty() || !told.failed.is_empty(), "{escape}: {told:#?}");
    }
    assert_eq!((tree(outside.path()), tree(pair.there.path())), (before, share_before), "nothing is written");
    assert!(!pair.here.path().join("got/secret").exists());
}

/// A share whose owner answers as it likes: names of files that lead out of where they are to go.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_hostile_node_names_is_not_written_outside() {
    let cluster = Cluster::new();
    let [hostile, client] = cluster.start_all(["hostile", "client"]).await;
    let parent = TempDir::new().unwrap();
    let (into, outside) = (parent.path().join("into"), parent.path().join("outside"));
    fs::create_dir(&into).unwrap();
    traps(&into, &outside);
    let before = tree(&outside);
    let content = b"from a hostile node";
    let _serving = hostile
        .serve_requests("meshd.files", ServeOptions::default(), move |request| async move {
            let asked = String::from_utf8_lossy(&request.payload).into_owned();
            let directory = Value::Map(vec![
                ("path".into(), path(b"")),
                ("kind".into(), "Directory".into()),
                ("bytes".into(), 0.into()),
                ("modified_ns".into(), 1.into()),
                ("mode".into(), 0o755.into()),
            ]);
            let answer = if asked.contains("Look") {
                let found =
                    vec![("root".into(), path(b"")), ("pattern".into(), Value::Null), ("info".into(), directory)];
                Value::Map(vec![("Found".into(), Value::Map(found))])
            } else {
                Value::Map(vec![("Records".into(), Value::Array(vec![record(content)]))])
            };
            let data: &[u8] = if asked.contains("Look") { b"" } else { content };
            Ok((Codec::Bytes, packed(&answer, data)))
        })
        .await
        .unwrap();
    let escape = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let named = std::sync::Arc::clone(&escape);
    let _lists = hostile
        .serve_channels("meshd.files.list", move |channel| {
            let name: Vec<u8> = named.lock().unwrap().clone();
            async move {
                let line = Value::Array(vec![path(&name), (content.len() as u64).into(), 1.into(), 0o644.into()]);
                for page in [Value::Array(vec![Value::Map(vec![("f".into(), line)])]), Value::Null] {
                    let mut bytes = Vec::new();
                    ciborium::into_writer(&page, &mut bytes).unwrap();
                    let _ = channel.send_bytes(bytes).await;
                }
                channel.finish();
                let _ = channel.closed().await;
                Ok(())
            }
        })
        .await
        .unwrap();
    until("it is offered", async || client.service("meshd.files").unwrap().has_providers()).await;
    until("lists are offered", async || client.service("meshd.files.list").unwrap().has_providers()).await;
    for bad in ESCAPES {
        for kind in [JobKind::Copy, MIRROR] {
            *escape.lock().unwrap() = if bad == b"out-file" { b"out/file".to_vec() } else { bad.to_vec() };
            let told = run(&client, job(vec![far("hostile", "x")], vec![near(&into)], kind)).await;
            if kind == JobKind::Copy && told.errors.is_empty() && told.failed.is_empty() {
                // `x` is a directory of its own there: links of `into` are not in it.
                assert!(bad.starts_with(b"out"), "{}: {told:#?}", String::from_utf8_lossy(bad));
            }
            assert_eq!(tree(&outside), before, "{}", String::from_utf8_lossy(bad));
            let names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
        // Mirrored, what was in the way is not: links are replaced, never followed.
        fs::remove_dir_all(&into).unwrap();
        fs::create_dir(&into).unwrap();
        traps(&into, &outside);
    }
    // It can be done, if the name is a name.
    *escape.lock().unwrap() = b"good".to_vec();
    run(&client, job(vec![far("hostile", "x")], vec![near(&into)], SYNC)).await.well();
    assert_eq!(fs::read(into.join("good")).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_swapped_in_amid_a_transfer_leads_nowhere() {
    let pair = Pair::new(ShareMode::Both).await;
    let outside = TempDir::new().unwrap();
    file(outside.path().join("secret"), SECRET);
    file(pair.there.path().join("way/large"), noise(4 * MIB, 4));
    let server = &pair.server.as_ref().unwrap().0;
    let begin = words("data", "Begin", &[("path", path(b"way/new")), ("version", version(2 * MIB as u64))], b"");
    ask(&pair.client, server, begin).await.unwrap();
    fs::rename(pair.there.path().join("way"), pair.there.path().join("was")).unwrap();
    symlink(outside.path(), pair.there.path().join("way")).unwrap();
    let chunk = noise(MIB, 5);
    let records = Value::Array(vec![record(b"x")]);
    let write = words("data", "Write", &[("paths", Value::Array(vec![path(b"way/x")])), ("records", records)], b"x");
    let refused = ask(&pair.client, server, write).await.unwrap();
    assert!(String::from_utf8_lossy(&refused).contains("Not"));
    let hash = Value::Bytes(blake3::hash(&chunk).as_bytes().to_vec());
    let put = [("path", path(b"way/new")), ("version", version(2 * MIB as u64)), ("index", 0.into()), ("value", hash)];
    assert!(ask(&pair.client, server, words("data", "Put", &put, &chunk)).await.is_err());
    assert_eq!(tree(outside.path()).len(), 1, "nothing is written there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shared_or_not_in_that_mode_is_refused_by_name_of_the_setting() {
    let pair = Pair::new(ShareMode::Read).await;
    file(pair.there.path().join("film"), "x");
    file(pair.here.path().join("new"), "x");
    let refused = |told: Told, by: &str| match &told.errors[..] {
        [FileError::Refused { why, .. }] => assert!(why.contains(by), "{why}"),
        _ => panic!("{told:#?}"),
    };
    refused(pair.run(pair.near("new"), pair.far("new"), JobKind::Copy).await, "mode = \"read\"");
    let mut other = place("server", "film");
    other.share = "other".into();
    let told = pair.run(FilePlace::There(other), pair.near("x"), JobKind::Copy).await;
    assert!(matches!(&told.errors[..], [FileError::NotThere { .. }]), "{told:#?}");
    let told = pair.run(pair.far("nothing"), pair.near("x"), JobKind::Copy).await;
    assert!(matches!(&told.errors[..], [FileError::NotThere { .. }]), "{told:#?}");

    let box_of = TempDir::new().unwrap();
    file(box_of.path().join("secret"), "x");
    let _box = serve(&pair.cluster, "box", box_of.path(), ShareMode::Write).await;
    let _none = pair.cluster.start("none").await;
    let _sharing = _none.share(Vec::new()).await.unwrap();
    offered(&pair.client, 2).await;
    let nothing = async || matches!(pair.client.shares(Some("none"), PATIENCE).await, Err(FileError::Refused { .. }));
    until("it is known that it shares nothing", nothing).await;
    refused(pair.run(far("box", "secret"), pair.near("x"), JobKind::Copy).await, "mode = \"write\"");
    refused(pair.run(far("none", "secret"), pair.near("x"), JobKind::Copy).await, "[[share]]");
    pair.run(pair.near("new"), far("box", ""), JobKind::Copy).await.well();
    assert_eq!(fs::read(box_of.path().join("new")).unwrap(), b"x");
    assert!(!pair.here.path().join("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_say_who_may_get_and_put_what() {
    let (cluster, there, here) = (Cluster::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    for path in ["open/a", "closed/b", "mine/c"] {
        file(there.path().join(path), path);
    }
    let client = cluster.start("client").await;
    let allow = vec![
        rule(Some("nobody reads this"), vec![], Action::Get, "data/closed/**"),
        rule(None, vec![Who::One(client.identity())], Action::Get, "data/mine/**"),
        rule(None, vec![], Action::Put, "data/open/**"),
    ];
    let _server = guarded(&cluster, there.path(), allow).await;
    offered(&client, 1).await;
    let to = |path: &str| near(&here.path().join(path));
    run(&client, job(vec![far("server", "")], vec![to("all")], SYNC)).await.well();
    assert!(here.path().join("all/open/a").exists() && here.path().join("all/mine/c").exists());
    assert!(!here.path().join("all/closed/b").exists(), "it is not even listed");
    let told = run(&client, job(vec![far("server", "closed/b")], vec![to("b")], JobKind::Copy)).await;
    assert!(
        matches!(&told.errors[..], [FileError::Refused { why, .. }] if why.contains("nobody reads this")),
        "{told:#?}"
    );
    file(here.path().join("up/open/a"), "new");
    file(here.path().join("up/mine/c"), "new");
    let told = run(&client, job(vec![to("up")], vec![far("server", "")], SYNC)).await;
    assert!(
        told.failed.iter().any(|failed| failed.1 == "open/a" && failed.2.contains("put data/open/**")),
        "{told:#?}"
    );
    assert_eq!(fs::read(there.path().join("open/a")).unwrap(), b"open/a");
    assert_eq!(fs::read(there.path().join("mine/c")).unwrap(), b"new", "others go on");
}

/// X-RS: no targets.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_makes_no_sense_is_an_error_before_anything_is_done() {
    let pair = Pair::new(ShareMode::Both).await;
    let bad = |from, to| matches!(pair.client.transfer(job(from, to, JobKind::Copy)), Err(FileError::Usage(_)));
    assert!(bad(vec![pair.near("x")], vec![]), "no targets");
    assert!(bad(vec![], vec![pair.far("x")]));
    assert!(bad(vec![pair.far("x")], vec![pair.far("y")]));
    assert!(bad(vec![pair.near("x")], vec![pair.near("y")]));
    let nobody = pair.client.transfer(job(vec![far("nobody", "x")], vec![pair.near("y")], JobKind::Copy));
    assert!(matches!(nobody, Err(FileError::NoSuchNode(_))));
    let told = pair.run(pair.near("missing"), pair.far(""), JobKind::Copy).await;
    assert!(matches!(&told.errors[..], [FileError::Here { .. }]), "{told:#?}");
}

// Interruptions.

/// Runs a job until so many bytes are there, then drops it.
async fn run_until(node: &Node, job: FileJob, enough: u64) {
    let mut transfer = node.transfer(job).unwrap();
    within("it is on its way", async {
        loop {
            match transfer.next().await.expect("it is not over").unwrap() {
                FileEvent::Progress { bytes, .. } if bytes >= enough => return,
                FileEvent::Finished { .. } => panic!("it is over"),
                _ => {}
            }
        }
    })
    .await;
}

const LARGE: usize = 160 * MIB + 99;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_dropped_goes_on_where_it_was() {
    let pair = Pair::new(ShareMode::Both).await;
    let content = noise(LARGE, 6);
    file(pair.there.path().join("film"), &content);
    let get = || job(vec![pair.far("film")], vec![pair.near("got")], JobKind::Copy);
    run_until(&pair.client, get(), 8 * MIB as u64).await;
    assert!(!pair.here.path().join("got").exists(), "whole or not at all");
    let told = run(&pair.client, get()).await.well();
    let (bytes, resumed, ..) = told.sums();
    assert!(resumed >= 8 * MIB as u64 && bytes + resumed == LARGE as u64, "{resumed} resumed, {bytes} moved");
    assert!(fs::read(pair.here.path().join("got")).unwrap() == content);

    let put = || job(vec![pair.near("got")], vec![pair.far("back")], JobKind::Copy);
    run_until(&pair.client, put(), 8 * MIB as u64).await;
    let told = run(&pair.client, put()).await.well();
    let (bytes, resumed, ..) = told.sums();
    assert!(resumed >= 8 * MIB as u64 && bytes + resumed == LARGE as u64, "{resumed} resumed, {bytes} moved");
    assert!(fs::read(pair.there.path().join("back")).unwrap() == content);
    for folder in [pair.here.path(), pair.there.path()] {
        assert!(tree(folder).keys().all(|name| !name.starts_with(b".")), "nothing is left: {:?}", tree(folder).keys());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changed_meanwhile_is_got_anew() {
    let pair = Pair::new(ShareMode::Both).await;
    file(pair.there.path().join("film"), noise(LARGE, 7));
    let get = || job(vec![pair.far("film")], vec![pair.near("got")], JobKind::Copy);
    run_until(&pair.client, get(), 8 * MIB as u64).await;
    let kept = fs::metadata(pair.there.path().join("film")).unwrap().modified().unwrap();
    // Of the same size and time: only the hashes of its chunks tell.
    let mut other = noise(LARGE, 7);
    other[3] ^= 1;
    file(pair.there.path().join("film"), &other);
    fs::File::open(pair.there.path().join("film")).unwrap().set_modified(kept).unwrap();
    let told = run(&pair.client, get()).await.well();
    assert!(told.sums().0 < LARGE as u64, "what did not change is kept");
    assert!(fs::read(pair.here.path().join("got")).unwrap() == other);

    fs::remove_file(pair.here.path().join("got")).unwrap();
    run_until(&pair.client, get(), 8 * MIB as u64).await;
    let new = noise(LARGE - 5, 8);
    file(pair.there.path().join("film"), &new);
    let told = run(&pair.client, get()).await.well();
    assert_eq!(told.sums().1, 0, "nothing of another version is kept");
    assert!(fs::read(pair.here.path().join("got")).unwrap() == new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_is_waited_for_and_the_job_goes_on() {
    for gets in [true, false] {
        let mut pair = Pair::new(ShareMode::Both).await;
        let content = noise(LARGE, 9);
        let (source, result) = if gets { (&pair.there, &pair.here) } else { (&pair.here, &pair.there) };
        file(source.path().join("film"), &content);
        let result = result.path().join("got");
        let job = if gets {
            job(vec![pair.far("film")], vec![pair.near("got")], JobKind::Copy)
        } else {
            job(vec![pair.near("film")], vec![pair.far("got")], JobKind::Copy)
        };
        let mut transfer = pair.client.transfer(job).unwrap();
        let mut told = Told::default();
        within("it is on its way", async {
            loop {
                let event = transfer.next().await.unwrap();
                let enough = matches!(event, Ok(FileEvent::Progress { bytes, .. }) if bytes >= 8 * MIB as u64);
                told.add(event);
                if enough {
                    break;
                }
            }
        })
        .await;
        pair.stop().await;
        within("it waits", async {
            while told.waited == 0 {
                told.add(transfer.next().await.unwrap());
            }
        })
        .await;
        assert!(!result.exists(), "whole or not at all");
        pair.start_again().await;
        let rest = to_the_end(transfer, told).await.well();
        assert_eq!(rest.sums().0, LARGE as u64);
        assert!(fs::read(&result).unwrap() == content, "gets: {gets}");
    }
}

/// X-RS: a file that disappears midway.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_midway_is_told_and_others_go_on() {
    let pair = Pair::new(ShareMode::Both).await;
    for number in 0..200 {
        file(pair.there.path().join(format!("many/{number:03}")), noise(MIB / 2, number));
    }
    let mut transfer = pair.client.transfer(job(vec![pair.far("many")], vec![pair.near("got")], SYNC)).unwrap();
    let mut told = Told::default();
    within("the first is there", async {
        while told.done.len() < 2 {
            told.add(transfer.next().await.unwrap());
        }
    })
    .await;
    fs::remove_file(pair.there.path().join("many/199")).unwrap();
    let rest = to_the_end(transfer, told).await;
    assert!(rest.errors.is_empty(), "{rest:#?}");
    let gone: Vec<&str> = rest.failed.iter().map(|failed| &*failed.1).collect();
    assert_eq!(gone, ["199"], "{rest:#?}");
    assert_eq!(tree(&pair.here.path().join("got")).len(), 199);
}

// Many nodes.

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_nodes_comes_from_all_of_them_and_one_may_die() {
    let (cluster, here) = (Cluster::new(), TempDir::new().unwrap());
    let client = cluster.start("client").await;
    let content = noise(LARGE, 10);
    let mut servers = Vec::new();
    for number in 0..3 {
        let there = TempDir::new().unwrap();
        file(there.path().join("film"), &content);
        file(there.path().join("other"), noise(3 * MIB, number));
        set(there.path().join("film"), 0o644, 1_000_000_000 + number);
        let server = serve(&cluster, "store", there.path(), ShareMode::Both).await;
        servers.push((server, there));
    }
    offered(&client, 3).await;
    let get = |path: &str| job(vec![far("store", path)], vec![near(&here.path().join(path))], JobKind::Copy);
    let mut transfer = client.transfer(get("film")).unwrap();
    let mut told = Told::default();
    within("it is on its way", async {
        loop {
            let event = transfer.next().await.unwrap();
            let enough = matches!(event, Ok(FileEvent::Progress { bytes, .. }) if bytes >= 8 * MIB as u64);
            told.add(event);
            if enough {
                break;
            }
        }
    })
    .await;
    // The first by id is the one that counts: it is the one that dies.
    servers.sort_by_key(|((node, _), _)| node.id());
    let ((first, sharing), _first_files) = servers.remove(0);
    drop(sharing);
    first.shutdown().await;
    let rest = to_the_end(transfer, told).await.well();
    assert_eq!(rest.waited, 0, "nobody is waited for while others have it");
    assert!(fs::read(here.path().join("film")).unwrap() == content);

    // What is called the same and is not the same is not mixed.
    offered(&client, 2).await;
    run(&client, get("other")).await.well();
    let got = fs::read(here.path().join("other")).unwrap();
    assert!((0..3).any(|number| got == noise(3 * MIB, number)), "one of them, whole");
    fs::remove_file(here.path().join("film")).unwrap();
    run(&client, get("film")).await.well();
    let calls = servers.iter().map(|((node, _), _)| node.id()).collect::<Vec<_>>();
    assert_eq!(calls.len(), 2);
    assert!(fs::read(here.path().join("film")).unwrap() == content);
}

/// X-RS: several targets, each with its own end.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_to_a_name_goes_to_all_nodes_of_it_and_each_fails_on_its_own() {
    let (cluster, here) = (Cluster::new(), TempDir::new().unwrap());
    everything(&here.path().join("source"));
    let client = cluster.start("client").await;
    let mut servers = Vec::new();
    for mode in [ShareMode::Both, ShareMode::Read, ShareMode::Write] {
        let there = TempDir::new().unwrap();
        servers.push((serve(&cluster, "store", there.path(), mode).await, there, mode));
    }
    offered(&client, 3).await;
    let put = job(vec![near(&here.path().join("source"))], vec![far("store", "copy")], SYNC);
    let told = run(&client, put).await;
    assert_eq!(told.finished.len(), 2, "{told:#?}");
    assert!(matches!(&told.errors[..], [FileError::Refused { node, .. }] if node == "store"), "{told:#?}");
    for (_, there, mode) in &servers {
        let is_there = there.path().join("copy").exists();
        assert_eq!(is_there, *mode != ShareMode::Read);
        if is_there {
            assert_eq!(tree(&there.path().join("copy")), tree(&here.path().join("source")));
        }
    }
    see_each_other(&[client]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_by_a_process_that_is_gone_is_swept() {
    let pair = Pair::new(ShareMode::Both).await;
    file(pair.there.path().join("copy/.meshd-999999999-3.part"), "left");
    file(pair.here.path().join("source/a"), "a");
    pair.run(pair.near("source"), pair.far("copy"), SYNC).await.well();
    let names: Vec<Vec<u8>> = tree(&pair.there.path().join("copy")).into_keys().collect();
    assert_eq!(names, [b"a".to_vec()]);
    // And no name of that kind can be written by somebody else.
    let server = &pair.server.as_ref().unwrap().0;
    let records = Value::Array(vec![record(b"x")]);
    let forged = [("paths", Value::Array(vec![path(b"copy/.meshd-0123456789abcdef.have")])), ("records", records)];
    let reply = ask(&pair.client, server, words("data", "Write", &forged, b"x")).await.unwrap();
    assert!(String::from_utf8_lossy(&reply).contains("Not"));
    let name = std::ffi::OsString::from_vec(b".meshd-0123456789abcdef.have".to_vec());
    assert!(!pair.there.path().join("copy").join(name).exists());
}

/// Of a large file that nobody goes on with: only who goes through the directory after a week removes it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_gone_on_with_for_a_week_is_swept_on_the_way() {
    let pair = Pair::new(ShareMode::Both).await;
    file(pair.there.path().join("source/a"), "a");
    let (old, young) = (".meshd-0123456789abcdef", ".meshd-fedcba9876543210");
    let (week, copy) = (Duration::from_secs(7 * 86_400), pair.here.path().join("copy"));
    for (name, age) in [(old, week + PATIENCE), (young, week - PATIENCE)] {
        for name in [format!("{name}.part"), format!("{name}.have")] {
            file(copy.join(&name), "left");
            fs::File::open(copy.join(&name)).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
    }
    let left = || [old, young].map(|name| ["part", "have"].map(|end| copy.join(format!("{name}.{end}")).exists()));
    pair.run(pair.far("source/a"), pair.near("copy/"), JobKind::Copy).await.well();
    assert_eq!(left(), [[true; 2]; 2], "one file goes in without a look at others");
    pair.run(pair.far("source"), pair.near("copy"), MIRROR).await.well();
    assert_eq!(left(), [[false; 2], [true; 2]]);
}

// What is not to be lost.

/// A list that stops amid its files is none that ends there: what has not been told of is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_cut_off_deletes_nothing_and_goes_on() {
    let mut pair = Pair::new(ShareMode::Both).await;
    // More than is ever under way: so the list waits as long as nobody reads what happens.
    for number in 0..12_000 {
        fs::write(pair.there.path().join(format!("{number:05}{}", "x".repeat(120))), "").unwrap();
    }
    for path in [pair.there.path().join("zzz"), pair.here.path().join("copy/zzz")] {
        file(&path, "last");
        set(&path, 0o644, 1_000_000_000);
    }
    let mut transfer = pair.client.transfer(job(vec![pair.far("")], vec![pair.near("copy")], MIRROR)).unwrap();
    let mut told = Told::default();
    within("files arrive", async {
        loop {
            let event = transfer.next().await.unwrap();
            let arrives = matches!(event, Ok(FileEvent::Done { .. }));
            told.add(event);
            if arrives {
                return;
            }
        }
    })
    .await;
    let (node, sharing) = pair.server.take().unwrap();
    drop(sharing);
    let again = async {
        within("it shares again", async {
            loop {
                if let Ok(sharing) = node.share(vec![share(pair.there.path(), ShareMode::Both)]).await {
                    return sharing;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    };
    let (told, _sharing) = tokio::join!(to_the_end(transfer, told), again);
    let told = told.well();
    assert_eq!(told.sums().3, 0, "nothing is deleted");
    assert_eq!(fs::read(pair.here.path().join("copy/zzz")).unwrap(), b"last");
    assert_eq!(fs::read_dir(pair.here.path().join("copy")).unwrap().count(), 12_001);
}

/// What a rule hides is still there: a copy of it is not deleted, and what lies in such a gap neither.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_hides_at_the_source_is_not_deleted() {
    let (cluster, there, here) = (Cluster::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    for root in [there.path(), here.path()] {
        for path in ["closed/b", "closed/sub/c", "mixed/hidden", "mixed/shown", "open/a"] {
            file(root.join(path), path);
            set(root.join(path), 0o644, 1_000_000_000);
        }
    }
    let client = cluster.start("client").await;
    let allow =
        vec![rule(None, vec![], Action::Get, "data/closed/**"), rule(None, vec![], Action::Get, "data/mixed/hidden")];
    let _server = guarded(&cluster, there.path(), allow).await;
    offered(&client, 1).await;
    let kept = || ["closed/b", "closed/sub/c", "mixed/hidden"].iter().all(|path| here.path().join(path).exists());
    let gone = |paths: &[&str]| paths.iter().all(|path| !here.path().join(path).exists());
    let mirror = async |from: &str, regex: Option<&str>, kind| {
        for path in ["d", "mixed/z", "n", "z/1/2", "z/3"] {
            file(here.path().join(path), "only here");
        }
        let job = FileJob {
            regex: regex.map(str::to_owned),
            ..job(vec![far("server", from)], vec![near(here.path())], kind)
        };
        let told = run(&client, job).await;
        assert!(kept(), "{from} {regex:?}: {told:#?}");
        assert!(told.errors.is_empty() && told.failed.iter().all(|(_, _, why)| why.contains("hides")), "{told:#?}");
        let failed: Vec<String> = told.failed.iter().map(|(_, path, _)| path.clone()).collect();
        (failed, told.sums().3)
    };
    // Of `d`, which comes right after `closed`, nobody can say that it is not what is hidden.
    let expected = (["closed", "d", "mixed/hidden"].map(str::to_owned).to_vec(), 6);
    assert_eq!(mirror("", None, JobKind::Sync { delete: true, dry_run: true }).await, expected);
    assert_eq!(mirror("", None, MIRROR).await, expected);
    assert!(gone(&["mixed/z", "n", "z"]) && here.path().join("d").exists());
    assert_eq!(mirror("", Some("[bcdn]$"), MIRROR).await.0, ["closed/b", "closed/sub/c", "d", "mixed/hidden"]);
    assert!(gone(&["n"]) && here.path().join("z/1/2").exists());
    assert_eq!(mirror("*/[b-z]*", None, MIRROR).await.0, ["closed/b", "closed/sub", "mixed/hidden"]);
    assert!(gone(&["mixed/z"]));

    // Another node of that name, which has not what is hidden: it may be there all the same.
    let second = TempDir::new().unwrap();
    file(second.path().join("mixed/other"), "x");
    let _second = serve(&cluster, "server", second.path(), ShareMode::Both).await;
    offered(&client, 2).await;
    assert_eq!(mirror("", None, MIRROR).await.0, ["closed", "d", "mixed/hidden"]);
    assert!(gone(&["n", "z"]) && here.path().join("mixed/other").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_hides_at_the_target_is_not_deleted() {
    let (cluster, there, here) = (Cluster::new(), TempDir::new().unwrap(), TempDir::new().unwrap());
    for path in ["closed/b", "gone/other", "gone/secret", "open/a"] {
        file(there.path().join(path), path);
    }
    symlink("a", there.path().join("gone/link")).unwrap();
    file(here.path().join("open/new"), "new");
    file(here.path().join("gone"), "a file where a directory is");
    let client = cluster.start("client").await;
    let allow = vec![
        rule(None, vec![], Action::Put, "data/closed/**"),
        rule(Some("it is secret"), vec![], Action::Put, "data/gone/secret"),
    ];
    let _server = guarded(&cluster, there.path(), allow).await;
    offered(&client, 1).await;
    let mirror = async || run(&client, job(vec![near(here.path())], vec![far("server", "")], MIRROR)).await;
    let kept = || ["closed/b", "gone/secret"].iter().all(|path| there.path().join(path).exists());
    let told = mirror().await;
    assert!(kept() && there.path().join("open/new").exists() && !there.path().join("open/a").exists(), "{told:#?}");
    assert!(told.errors.is_empty() && told.failed.len() == 1 && told.failed[0].1 == "gone", "{told:#?}");
    fs::remove_file(here.path().join("gone")).unwrap();
    let told = mirror().await;
    assert!(kept() && told.errors.is_empty() && told.failed.len() == 1, "{told:#?}");
    assert!(told.failed[0].1 == "gone" && told.failed[0].2.contains("it is secret"), "{told:#?}");
}

/// What cannot be read is there, and what it holds is not known: nothing below it is deleted, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_at_the_source_is_not_deleted() {
    let cluster = Cluster::new();
    let [whole, some, client] = cluster.start_all(["whole", "some", "client"]).await;
    let _whole = lie(&whole, Value::Null, &["unread"]).await;
    let _some = lie(&some, path(b"*/x*"), &["unread"]).await;
    let listed = async || client.service("meshd.files.list").unwrap().providers().len() == 2;
    until("lists are offered", listed).await;
    until("files are offered", async || client.service("meshd.files").unwrap().providers().len() == 2).await;
    for (node, from, regex, goes) in
        [("whole", "", None, "gone/x"), ("whole", "", Some("x"), "gone/x"), ("some", "*/x*", None, "gone/x")]
    {
        let here = TempDir::new().unwrap();
        for path in ["unread/x", "unread/xx/deep", goes] {
            file(here.path().join(path), "only here");
        }
        let job =
            FileJob { regex: regex.map(str::to_owned), ..job(vec![far(node, from)], vec![near(here.path())], MIRROR) };
        let told = run(&client, job).await;
        assert!(["unread/x", "unread/xx/deep"].iter().all(|path| here.path().join(path).exists()), "{node}: {told:#?}");
        assert!(told.errors.is_empty() && told.failed.len() == 1 && told.failed[0].1 == "unread", "{node}: {told:#?}");
        assert!(!here.path().join(goes).exists(), "{node}: {told:#?}");
    }
}

/// A share whose owner tells of what it likes, whatever was asked for.
struct Liar {
    _serving: meshd::Serving,
    _lists: meshd::ChannelService,
}

async fn lie(node: &Node, pattern: Value, names: &'static [&'static str]) -> Liar {
    let content = b"from a hostile node";
    let root = (pattern == Value::Null)
        .then(|| Value::Map(vec![("d".into(), Value::Array(vec![path(b""), 1.into(), 0o755.into()]))]));
    let serving = node.serve_requests("meshd.files", ServeOptions::default(), move |request| {
        let pattern = pattern.clone();
        async move {
            let asked = String::from_utf8_lossy(&request.payload).into_owned();
            let directory = Value::Map(vec![
                ("path".into(), path(b"")),
                ("kind".into(), "Directory".into()),
                ("bytes".into(), 0.into()),
                ("modified_ns".into(), 1.into()),
                ("mode".into(), 0o755.into()),
            ]);
            let answer = if asked.contains("Look") {
                let found = vec![("root".into(), path(b"")), ("pattern".into(), pattern), ("info".into(), directory)];
                Value::Map(vec![("Found".into(), Value::Map(found))])
            } else {
                let gone = Value::Map(vec![("Not".into(), Value::Array(vec![5.into(), "it cannot be read".into()]))]);
                let one = |name: &&&str| if name.contains("gone") { gone.clone() } else { record(content) };
                let asked_for = names.iter().filter(|name| asked.contains(**name));
                Value::Map(vec![("Records".into(), Value::Array(asked_for.map(|name| one(&name)).collect()))])
            };
            let given = names.iter().filter(|name| asked.contains(**name) && !name.contains("gone")).count();
            let data = if asked.contains("Look") { Vec::new() } else { content.repeat(given) };
            Ok((Codec::Bytes, packed(&answer, &data)))
        }
    });
    let lists = node.serve_channels("meshd.files.list", move |channel| {
        let root = root.clone();
        async move {
            let line = |name: &&str| {
                if name.contains("unread") {
                    let line = Value::Array(vec![path(name.as_bytes()), "it cannot be read".into()]);
                    return Value::Map(vec![("u".into(), line)]);
                }
                let bytes = if name.contains("large") { 2 * MIB } else { content.len() };
                let line = vec![path(name.as_bytes()), (bytes as u64).into(), 1.into(), 0o644.into()];
                Value::Map(vec![("f".into(), Value::Array(line))])
            };
            for page in [Value::Array(root.into_iter().chain(names.iter().map(line)).collect()), Value::Null] {
                let mut bytes = Vec::new();
                ciborium::into_writer(&page, &mut bytes).unwrap();
                let _ = channel.send_bytes(bytes).await;
            }
            channel.finish();
            let _ = channel.closed().await;
            Ok(())
        }
    });
    Liar { _serving: serving.await.unwrap(), _lists: lists.await.unwrap() }
}

/// Who asks for `*.txt` gets no `.bashrc`, and nothing is deleted that was not asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_node_gives_nothing_that_the_pattern_does_not_select() {
    let cluster = Cluster::new();
    let [hostile, wide, client] = cluster.start_all(["hostile", "wide", "client"]).await;
    let _names = lie(&hostile, path(b"*.txt"), &[".bashrc", "a.txt"]).await;
    let _pattern = lie(&wide, path(b"**"), &[".bashrc"]).await;
    let listed = async || client.service("meshd.files.list").unwrap().providers().len() == 2;
    until("lists are offered", listed).await;
    until("files are offered", async || client.service("meshd.files").unwrap().providers().len() == 2).await;
    let here = TempDir::new().unwrap();
    file(here.path().join("mine"), "mine");
    for (node, kind) in [("hostile", JobKind::Copy), ("wide", JobKind::Copy), ("hostile", MIRROR), ("wide", MIRROR)] {
        let told = run(&client, job(vec![far(node, "*.txt")], vec![near(here.path())], kind)).await;
        assert!(!here.path().join(".bashrc").exists(), "{node}: {told:#?}");
        assert!(here.path().join("mine").exists(), "{node}: {told:#?}");
        assert_eq!(told.errors.len(), 1, "{node}: {told:#?}");
    }
}

/// Of two nodes of a name one cannot say what it has: what only it may have is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_of_a_group_that_does_not_answer_may_have_is_not_deleted() {
    let (cluster, here) = (Cluster::new(), TempDir::new().unwrap());
    let client = cluster.start("client").await;
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    file(one.path().join("a"), "a");
    file(other.path().join("sub/b"), "b");
    let _one = serve(&cluster, "store", one.path(), ShareMode::Both).await;
    let _other = serve(&cluster, "store", other.path(), ShareMode::Both).await;
    offered(&client, 2).await;
    let sync = || job(vec![far("store", "")], vec![near(&here.path().join("copy"))], MIRROR);
    run(&client, sync()).await.well();
    assert!(here.path().join("copy/a").exists() && here.path().join("copy/sub/b").exists());
    fs::remove_dir_all(other.path()).unwrap();
    let told = run(&client, sync()).await;
    assert_eq!(fs::read(here.path().join("copy/sub/b")).unwrap(), b"b", "{told:#?}");
    assert_eq!(told.errors.len(), 1, "{told:#?}");
    drop(other);
}

/// What is not whole yet is read by nobody, whatever rule is about the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_whole_yet_cannot_be_read() {
    let pair = Pair::new(ShareMode::Both).await;
    let server = &pair.server.as_ref().unwrap().0;
    let begin = words("data", "Begin", &[("path", path(b"film")), ("version", version(2 * MIB as u64))], b"");
    ask(&pair.client, server, begin).await.unwrap();
    let names: Vec<Vec<u8>> = tree(pair.there.path()).into_keys().collect();
    assert_eq!(names.len(), 2);
    for name in names {
        let looked = pair.run(pair.far(std::str::from_utf8(&name).unwrap()), pair.near("got"), JobKind::Copy).await;
        assert!(matches!(&looked.errors[..], [FileError::Refused { .. }]), "{looked:#?}");
        let read = words("data", "Read", &[("paths", Value::Array(vec![path(&name)]))], b"");
        let read = ask(&pair.client, server, read).await.unwrap();
        assert!(String::from_utf8_lossy(&read).contains("Not"), "{:?}", String::from_utf8_lossy(&read));
    }
}

/// A directory takes the place of a file before anything is put into it, however large that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_large_files_takes_the_place_of_a_file() {
    let pair = Pair::new(ShareMode::Both).await;
    for number in 0..4 {
        file(pair.here.path().join(format!("source/d{number}/large")), noise(2 * MIB, number));
        file(pair.there.path().join(format!("copy/d{number}")), "in the way");
    }
    pair.run(pair.near("source"), pair.far("copy"), MIRROR).await.well();
    assert_eq!(tree(&pair.there.path().join("copy")), tree(&pair.here.path().join("source")));
}

/// What is in the way goes when what takes its place has come, not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_the_way_stays_if_the_file_cannot_be_read() {
    let cluster = Cluster::new();
    let [hostile, client] = cluster.start_all(["hostile", "client"]).await;
    let _lies = lie(&hostile, Value::Null, &["gone-large", "gone-small"]).await;
    until("it is offered", async || client.service("meshd.files").unwrap().has_providers()).await;
    until("lists are offered", async || client.service("meshd.files.list").unwrap().has_providers()).await;
    let here = TempDir::new().unwrap();
    for name in ["gone-large", "gone-small"] {
        file(here.path().join(name).join("kept"), "kept");
    }
    let told = run(&client, job(vec![far("hostile", "")], vec![near(here.path())], MIRROR)).await;
    assert_eq!(told.failed.len(), 2, "{told:#?}");
    for name in ["gone-large", "gone-small"] {
        assert_eq!(fs::read(here.path().join(name).join("kept")).unwrap(), b"kept", "{name}");
    }

    // And it does go when it has.
    let pair = Pair::new(ShareMode::Both).await;
    for (name, len) in [("large", 2 * MIB), ("small", 10)] {
        file(pair.here.path().join("copy").join(name).join("old"), "old");
        file(pair.there.path().join(name), noise(len, 3));
    }
    pair.run(pair.far(""), pair.near("copy"), MIRROR).await.well();
    assert_eq!(tree(&pair.here.path().join("copy")), tree(pair.there.path()));
}

/// Who opens lists and does not read them takes no more than so much.
#[tokio::test(flavor = "multi_thread")]
async fn lists_that_nobody_reads_are_few() {
    let pair = Pair::new(ShareMode::Read).await;
    for number in 0..4000 {
        fs::write(pair.there.path().join(format!("{number:05}{}", "x".repeat(120))), "").unwrap();
    }
    until("lists are offered", async || pair.client.service("meshd.files.list").unwrap().has_providers()).await;
    let wanted = ["root", "pattern", "recursive", "directories", "after"].map(|name| {
        let value = match name {
            "root" => path(b""),
            "recursive" | "directories" => false.into(),
            _ => Value::Null,
        };
        (name.into(), value)
    });
    let asked = [("share", "data".into()), ("purpose", "Get".into()), ("wanted", Value::Map(wanted.to_vec()))];
    let asked = Value::Map(asked.into_iter().map(|(name, value)| (name.into(), value)).collect());
    let mut request = Vec::new();
    ciborium::into_writer(&asked, &mut request).unwrap();
    let open = async || {
        let request = meshd::Item { codec: Codec::Bytes, payload: request.clone().into() };
        let options = meshd::OpenOptions { request, ..meshd::OpenOptions::default() };
        pair.client.open_with("meshd.files.list", options).await.unwrap()
    };
    let mut lists = Vec::new();
    for _ in 0..32 {
        let list = open().await;
        within("a page comes", list.next()).await.unwrap().expect("a page");
        lists.push(list);
    }
    let late = open().await;
    assert!(tokio::time::timeout(Duration::from_millis(300), late.next()).await.is_err(), "it waits");
    drop(lists.pop());
    within("it has its turn", late.next()).await.unwrap().expect("a page");
}
