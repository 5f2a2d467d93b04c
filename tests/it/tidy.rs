//! Rules of the source tree that the compiler cannot check.

use std::fs;
use std::path::{Path, PathBuf};

/// What a part of `src/` may not mention. Imports point one way: mesh, wire, net, protocol, node, daemon, cli.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("mesh", &["tokio::", "libp2p::", "std::net", "std::fs", "::now()", "rand::rng()"]),
    ("mesh", &["crate::wire", "crate::keys", "crate::config", "crate::net"]),
    ("mesh", &["crate::protocol", "crate::node", "crate::socket", "crate::daemon", "crate::cli"]),
    ("keys", &["tokio::", "libp2p::", "crate::wire", "crate::net", "crate::protocol", "crate::node", "crate::cli"]),
    ("wire", &["tokio::", "libp2p::", "std::fs", "std::net", "crate::config", "crate::net", "crate::protocol"]),
    ("wire", &["crate::node", "crate::socket", "crate::daemon", "crate::cli"]),
    ("config", &["tokio::", "libp2p::", "crate::net", "crate::protocol", "crate::node", "crate::daemon", "crate::cli"]),
    (
        "config.rs",
        &["tokio::", "libp2p::", "crate::net", "crate::protocol", "crate::node", "crate::daemon", "crate::cli"],
    ),
    ("net", &["crate::config", "crate::protocol", "crate::node", "crate::socket", "crate::daemon", "crate::cli"]),
    ("protocol", &["libp2p::", "crate::config", "crate::keys", "crate::node", "crate::daemon", "crate::cli"]),
    ("node", &["libp2p::", "crate::socket", "crate::daemon", "crate::cli"]),
    ("socket.rs", &["libp2p::", "crate::mesh", "crate::net", "crate::node", "crate::daemon", "crate::cli"]),
    (
        "bench",
        &["libp2p::", "crate::mesh", "crate::keys", "crate::wire", "crate::config", "crate::net", "crate::protocol"],
    ),
    ("bench", &["crate::node", "crate::socket", "crate::daemon", "crate::cli"]),
    ("keeper.rs", &["libp2p::", "crate::"]),
    ("memory.rs", &["tokio::", "libp2p::", "crate::"]),
    (
        "files",
        &["libp2p::", "crate::wire", "crate::net", "crate::protocol", "crate::socket", "crate::daemon", "crate::cli"],
    ),
    (
        "exec",
        &["libp2p::", "crate::wire", "crate::net", "crate::protocol", "crate::socket", "crate::daemon", "crate::cli"],
    ),
    ("launch", &["libp2p::", "crate::wire", "crate::net", "crate::protocol", "crate::node", "crate::socket"]),
    ("launch", &["crate::daemon", "crate::cli"]),
    ("recording", &["libp2p::", "crate::wire", "crate::net", "crate::protocol", "crate::node", "crate::socket"]),
    ("recording", &["crate::daemon", "crate::cli"]),
    ("daemon", &["libp2p::", "crate::net", "crate::protocol", "crate::cli"]),
    ("cli", &["libp2p::", "crate::net", "crate::protocol", "crate::node", "crate::mesh::engine"]),
];

/// Lines of a file, tests apart. A longer one has a second noun in it.
const MOST_LINES: usize = 600;

#[test]
fn imports_point_one_way() {
    for (part, words) in FORBIDDEN {
        let part = sources().join(part);
        let files = if part.is_dir() { rust_files(&part) } else { vec![part] };
        for file in files {
            let text = code(&file);
            for (number, line) in lines_of_code(&text) {
                let found = words.iter().find(|word| line.contains(*word));
                assert_eq!(found, None, "{}:{number}: {line}", file.display());
            }
        }
    }
}

#[test]
fn protocols_do_not_know_each_other() {
    // One protocol in several files: pubsub sends, arrivals receives, subscription keeps, delivery knows what became of it.
    // Pings travel with messages.
    let known = [
        ("pubsub.rs", "ping"),
        ("pubsub.rs", "subscription"),
        ("pubsub.rs", "delivery"),
        ("sending.rs", "subscription"),
        ("sending.rs", "delivery"),
        ("receipt.rs", "sending"),
        ("receipt.rs", "delivery"),
        ("retain.rs", "delivery"),
        ("delivery.rs", "subscription"),
        ("arrivals.rs", "pubsub"),
        ("arrivals.rs", "subscription"),
        ("arrivals.rs", "delivery"),
    ];
    let folder = sources().join("protocol");
    let files = rust_files(&folder);
    // The guard is no protocol: all ask it.
    let names: Vec<String> =
        files.iter().map(|file| stem(file)).filter(|name| name != "mod" && name != "guard").collect();
    for file in &files {
        let text = code(file);
        for (number, line) in lines_of_code(&text) {
            for name in names.iter().filter(|name| stem(file) != **name) {
                let mentions = [format!("super::{name}"), format!("crate::protocol::{name}")];
                let allowed = known.iter().any(|(from, to)| file.ends_with(from) && name == to);
                let found = mentions.iter().any(|mention| line.contains(mention));
                assert!(!found || allowed, "{}:{number}: {line}", file.display());
            }
        }
    }
}

#[test]
fn only_tests_unwrap() {
    for file in rust_files(&sources()) {
        let text = code(&file);
        for (number, line) in lines_of_code(&text) {
            assert!(!line.contains(".unwrap()"), "{}:{number}: {line}", file.display());
        }
    }
}

#[test]
fn only_the_output_of_the_command_line_prints() {
    for file in rust_files(&sources()) {
        if file.ends_with("cli/output.rs") {
            continue;
        }
        let text = code(&file);
        for (number, line) in lines_of_code(&text) {
            let prints = ["println!", "print!(", "dbg!(", "io::stdout()", "io::stderr()"];
            assert!(!prints.iter().any(|print| line.contains(print)), "{}:{number}: {line}", file.display());
        }
    }
}

#[test]
fn progress_is_drawn_in_one_file() {
    // What draws bars writes to stderr by itself, so it is kept where it can be seen that nothing harmful is handed to it.
    for file in rust_files(&sources()).iter().filter(|file| !file.ends_with("cli/files/bars.rs")) {
        let text = code(file);
        for (number, line) in lines_of_code(&text) {
            assert!(!line.contains("indicatif"), "{}:{number}: {line}", file.display());
        }
    }
}

#[test]
fn no_queue_is_unbounded() {
    for file in rust_files(&sources()) {
        let text = code(&file);
        for (number, line) in lines_of_code(&text) {
            let unbounded = ["unbounded_channel", "mpsc::unbounded", "UnboundedSender", "mpsc::channel()"];
            assert!(!unbounded.iter().any(|word| line.contains(word)), "{}:{number}: {line}", file.display());
        }
    }
}

#[test]
fn files_are_short_enough_to_hold_one_noun() {
    let mut long = Vec::new();
    for file in rust_files(&sources()) {
        let name = file.strip_prefix(sources()).unwrap().to_owned();
        let lines = code(&file).lines().count();
        if lines > MOST_LINES {
            long.push(format!("{}: {lines} lines of at most {MOST_LINES}", name.display()));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/CONFORMANCE.md")).unwrap();
    let table = text.lines().filter(|line| line.starts_with('|'));
    let named = table.flat_map(|line| line.split('`').skip(1).step_by(2)).filter_map(|words| words.split_once("::"));
    let mut missing = Vec::new();
    for (place, test) in named {
        let files = [format!("tests/it/{place}.rs"), format!("src/{place}.rs"), format!("src/{place}/mod.rs")];
        let declared = format!("fn {test}(");
        let has = |file: &String| fs::read_to_string(root.join(file)).is_ok_and(|code| code.contains(&declared));
        if !files.iter().any(has) {
            missing.push(format!("{place}::{test}"));
        }
    }
    assert_eq!(missing, [""; 0], "docs/CONFORMANCE.md names what is not there");
}

/// Lines that are not comments, with their numbers.
fn lines_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
}

/// The lock file of what measures other systems is one of its own, and names what meshd needs, too.
#[test]
fn the_lock_file_of_the_comparison_is_up_to_date() {
    let needs = |lock: &str| -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(lock);
        let text = fs::read_to_string(path).unwrap();
        let own = text.split("\n\n").find(|package| package.contains("name = \"meshd\"\n")).expect("it names meshd");
        // A name may have a version behind it, if there are several.
        let names = own.lines().filter_map(|line| line.trim().strip_prefix('"')?.split(['"', ' ']).next());
        names.filter(|name| !ONLY_FOR_TESTS.contains(name)).map(str::to_owned).collect()
    };
    assert_eq!(
        needs("scripts/bench_peers/Cargo.lock"),
        needs("Cargo.lock"),
        "run cargo metadata in scripts/bench_peers"
    );
}

/// Packages that are needed to test meshd alone.
const ONLY_FOR_TESTS: &[&str] = &["criterion", "proptest", "tempfile"];

/// The text of a file up to its tests; nothing of one that is there for tests only.
fn code(file: &Path) -> String {
    if is_for_tests(file) {
        return String::new();
    }
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let modules = ["mod ", "pub(crate) mod "].map(|module| text.find(&format!("\n#[cfg(test)]\n{module}")));
    let tests = modules.into_iter().flatten().min().unwrap_or(text.len());
    text[..tests].to_owned()
}

/// Whether the module is declared under `cfg(test)`.
fn is_for_tests(file: &Path) -> bool {
    let Ok(parent) = fs::read_to_string(file.with_file_name("mod.rs")) else { return false };
    let declared = format!("mod {};", stem(file));
    let mut lines = parent.lines().map(str::trim);
    let mut before = "";
    lines.any(|line| {
        let found = line.ends_with(&declared) && before == "#[cfg(test)]";
        before = line;
        found
    })
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().into_owned()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
