//! The verbs `ls get put sync`, end to end: daemons with shares, and files that move between them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::PATIENCE;
use crate::daemon::{Daemon, Home, Running, keys, wait_until};

#[test]
fn files_are_listed_got_and_put() {
    // P-2: a folder is downloaded. P-3: files are uploaded into a folder. X-RS: sent twice, and with other content.
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("docs", "read"), ("inbox", "both")])]);
    let (near, docs, inbox) = (mesh.home(0), mesh.share(1, "docs"), mesh.share(1, "inbox"));
    fill(&docs, &[("a.txt", "alpha"), ("sub/b.txt", "beta"), ("sub/deep/c", ""), (".hidden", "x")]);

    let shares = near.ok(&["ls"]);
    assert!(shares.starts_with("NODE  SHARE  MODE  PEER") && shares.contains("far   inbox  both"), "{shares}");
    let shares = lines(&near.ok(&["ls", "far", "--json"]));
    assert_eq!(keys(&shares[0]), ["id", "mode", "node", "share"]);
    assert_eq!(shares.iter().map(|share| &share["share"]).collect::<Vec<_>>(), ["docs", "inbox"]);
    let listed = lines(&near.ok(&["ls", "far:docs", "--json"]));
    assert_eq!(keys(&listed[0]), ["bytes", "id", "kind", "mode", "modified", "node", "path", "share"]);
    assert_eq!(paths(&listed), [".hidden", "a.txt", "sub"]);
    let all = paths(&lines(&near.ok(&["ls", "far:docs", "-r", "--json"])));
    assert_eq!(all, [".hidden", "a.txt", "sub", "sub/b.txt", "sub/deep", "sub/deep/c"]);
    let listed = near.ok(&["ls", "far:docs/sub"]);
    assert!(listed.contains("  sub/b.txt\n") && listed.contains("d") && listed.contains(" 4 B "), "{listed}");
    assert_eq!(paths(&lines(&near.ok(&["ls", "far:docs/a.txt", "--json"]))), ["a.txt"]);

    // One file here, one under another name, a whole directory.
    let place = TempDir::new().unwrap();
    let at = |path: &str| place.path().join(path);
    let word = |path: &str| at(path).to_str().unwrap().to_owned();
    let (code, output, errors) = near.meshd(&["get", "far:docs/a.txt", &word("")]);
    assert_eq!((code, &output[..]), (0, ""), "{errors}");
    assert!(errors.starts_with("1 file, 5 B in ") && errors.lines().count() == 1, "{errors}");
    assert_eq!(fs::read_to_string(at("a.txt")).unwrap(), "alpha");
    near.ok(&["get", "far:docs/a.txt", &word("other")]);
    assert_eq!(fs::read_to_string(at("other")).unwrap(), "alpha");
    near.ok(&["get", "far:docs/sub", &word("")]);
    assert_eq!(fs::read_to_string(at("sub/b.txt")).unwrap(), "beta");
    assert_eq!(fs::read(at("sub/deep/c")).unwrap(), b"");
    // Without a place, into the directory where the command runs; the daemon runs elsewhere.
    let mut command = near.command(&["get", "far:docs/sub/b.txt"]);
    let (status, _, errors) = Running::new(command.current_dir(at("sub/deep"))).wait();
    assert!(status.success(), "{errors}");
    assert_eq!(fs::read_to_string(at("sub/deep/b.txt")).unwrap(), "beta");

    let listed = near.ok(&["put", &word("a.txt"), &word("sub"), "far:inbox", "-v"]);
    assert!(listed.contains("created a.txt\n") && listed.contains("created sub/deep/c\n"), "{listed}");
    assert_eq!(fs::read_to_string(inbox.join("sub/b.txt")).unwrap(), "beta");
    near.ok(&["put", &word("a.txt"), "far:inbox/renamed"]);
    assert_eq!(fs::read_to_string(inbox.join("renamed")).unwrap(), "alpha");
    near.ok(&["put", &word("a.txt"), "far:inbox/new/dir/"]);
    assert_eq!(fs::read_to_string(inbox.join("new/dir/a.txt")).unwrap(), "alpha");
    // The same again changes nothing; other content does.
    let (_, _, errors) = near.meshd(&["put", &word("a.txt"), "far:inbox"]);
    assert!(errors.starts_with("0 files in ") && errors.contains(", 1 unchanged"), "{errors}");
    fs::write(at("a.txt"), "ALPHABET").unwrap();
    let listed = near.ok(&["put", &word("a.txt"), "far:inbox", "-v"]);
    assert_eq!(listed, "replaced a.txt\n");
    assert_eq!(fs::read_to_string(inbox.join("a.txt")).unwrap(), "ALPHABET");
}

#[test]
fn patterns_and_regular_expressions_select_files() {
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("docs", "read")])]);
    let near = mesh.home(0);
    let names = ["a1.jpg", "a2.jpg", "b1.jpg", "a.txt", "x/a3.jpg", "x/y/a4.jpg", "[odd].jpg"];
    fill(&mesh.share(1, "docs"), &names.map(|name| (name, name)));
    let listed = |args: &[&str]| paths(&lines(&near.ok(&[&["ls", "--json"], args].concat())));
    assert_eq!(listed(&["far:docs/a?.jpg"]), ["a1.jpg", "a2.jpg"]);
    assert_eq!(listed(&["far:docs/[ab]1.jpg"]), ["a1.jpg", "b1.jpg"]);
    assert_eq!(listed(&["far:docs/**/a*.jpg"]), ["a1.jpg", "a2.jpg", "x/a3.jpg", "x/y/a4.jpg"]);
    assert_eq!(listed(&["far:docs/[odd].jpg"]), ["[odd].jpg"], "a file of exactly that name comes first");
    assert_eq!(listed(&["far:docs", "-r", "--regex", r"^x/.*\d\.jpg$"]), ["x/a3.jpg", "x/y/a4.jpg"]);

    let got = |args: &[&str]| {
        let place = TempDir::new().unwrap();
        near.ok(&[&["get"], args, &[place.path().to_str().unwrap()]].concat());
        tree(place.path()).into_keys().filter(|path| !path.ends_with('/')).collect::<Vec<_>>()
    };
    assert_eq!(got(&["far:docs/a?.jpg", "far:docs/a.txt"]), ["a.txt", "a1.jpg", "a2.jpg"]);
    let below = got(&["far:docs", "--regex", r"\d\.jpg$"]);
    assert_eq!(below.len(), 5, "{below:?}");
    assert!(below.iter().all(|path| path.ends_with(".jpg") && !path.contains("odd")), "{below:?}");
    let errors = near.fails(&["get", "far:docs", "--regex", "("], 2, "'(' is no regular expression: unclosed group");
    assert_eq!(errors.lines().count(), 2, "what is wrong, and a hint: {errors}");
    let place = TempDir::new().unwrap();
    let to = place.path().to_str().unwrap();
    near.fails(&["get", "far:docs/*.pdf", to], 1, "nothing there matches far:docs/*.pdf");
    near.fails(&["ls", "far:docs/*.pdf"], 1, "nothing there matches far:docs/*.pdf");
    let (code, _, errors) = near.meshd(&["get", "far:docs", to, "--regex", "pdf$"]);
    assert_eq!((code, &errors[..10]), (0, "0 files in"), "an expression may select nothing");
}

#[test]
fn a_directory_becomes_like_another_one_either_way() {
    // X-RS: modes, times, links within and out of the tree, read-only directories, deleting.
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("site", "both")])]);
    let (near, site) = (mesh.home(0), mesh.share(1, "site"));
    let place = TempDir::new().unwrap();
    let (from, back) = (place.path().join("from"), place.path().join("back"));
    fill(&from, &[("index", "hello"), ("bin/run", "#!"), ("closed/inside", "x"), ("same", "same")]);
    fs::create_dir(from.join("empty")).unwrap();
    symlink("../index", from.join("bin/link")).unwrap();
    symlink("/nowhere/at/all", from.join("out")).unwrap();
    fs::set_permissions(from.join("bin/run"), fs::Permissions::from_mode(0o750)).unwrap();
    let old = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::options().write(true).open(from.join("index")).unwrap().set_modified(old).unwrap();
    fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    fill(&site, &[("old/gone", "x"), ("bin/run", "other")]);
    let words = [from.to_str().unwrap(), "far:site"];

    let would = near.ok(&[&["sync"], &words[..], &["--delete", "--dry-run"]].concat());
    for line in ["create index\n", "replace bin/run\n", "delete old\n", "create bin/link\n", "create empty\n"] {
        assert!(would.contains(line), "{line:?} is not in: {would}");
    }
    assert_eq!(tree(&site).len(), 4, "nothing was done");
    near.ok(&[&["sync"], &words[..]].concat());
    assert!(site.join("old/gone").exists(), "only --delete deletes");
    near.ok(&[&["sync"], &words[..], &["--delete"]].concat());
    assert_eq!(tree(&site), tree(&from));
    let (_, _, errors) = near.meshd(&[&["sync"], &words[..], &["--delete"]].concat());
    assert!(errors.starts_with("0 files in "), "the second time there is nothing to do: {errors}");
    assert_eq!(near.ok(&[&["sync"], &words[..], &["-n"]].concat()), "");

    // And back, where another file is in the way.
    fill(&back, &[("index/is/a/directory", "x"), ("more", "x")]);
    near.ok(&["sync", "far:site", back.to_str().unwrap(), "--delete"]);
    assert_eq!(tree(&back), tree(&from));
    for tree in [&from, &site, &back] {
        fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o755)).unwrap(); // so that it can be removed
    }
}

#[test]
fn one_directory_goes_to_many_nodes_and_one_that_refuses_holds_up_no_other() {
    // X-RS: one to many, and without a target. X-GRP: a group is all nodes of a name.
    let mesh = Mesh::new(&[
        ("near", &[]),
        ("web", &[("www", "both")]),
        ("web", &[("www", "both")]),
        ("closed", &[("www", "read")]),
    ]);
    let near = mesh.home(0);
    let place = TempDir::new().unwrap();
    fill(place.path(), &[("a", "a"), ("b/c", "c")]);
    let from = place.path().to_str().unwrap();
    let (code, _, errors) = near.meshd(&["sync", from, "web:www"]);
    assert_eq!((code, errors.lines().count()), (0, 2), "a line for each of two: {errors}");
    assert!(errors.lines().all(|line| line.starts_with("web: ")), "{errors}");
    for web in [1, 2] {
        assert_eq!(tree(&mesh.share(web, "www")), tree(place.path()));
    }
    fill(place.path(), &[("a", "changed")]);
    let (code, output, errors) = near.meshd(&["sync", from, "closed:www", "web:www", "--json"]);
    assert_eq!(code, 5, "one of three is refused: {errors}");
    let finished = lines(&output).iter().filter(|event| event["event"] == "finished").count();
    assert_eq!(finished, 2, "{output}");
    assert!(errors.contains("closed") && errors.contains("read"), "{errors}");
    for web in [1, 2] {
        assert_eq!(tree(&mesh.share(web, "www")), tree(place.path()));
    }
    assert!(tree(&mesh.share(3, "www")).is_empty());
    near.fails(&["sync", from], 2, "TO");
}

#[test]
fn what_several_nodes_have_comes_from_all_of_them_and_one_may_die() {
    let mut mesh = Mesh::new(&[("near", &[]), ("store", &[("big", "read")]), ("store", &[("big", "read")])]);
    let near = mesh.home(0);
    for store in [1, 2] {
        large(&mesh.share(store, "big").join("film"), 96);
    }
    let place = TempDir::new().unwrap();
    let mut get = Job::start(&near, &["get", "store:big/film", place.path().to_str().unwrap()]);
    get.midway();
    mesh.kill(1);
    let (code, errors) = get.end();
    assert_eq!(code, 0, "{errors}");
    assert!(same(&place.path().join("film"), &mesh.share(2, "big").join("film")));
    assert_eq!(tree(place.path()).len(), 1, "nothing else is left");
}

#[test]
fn exit_codes_of_file_verbs_say_what_happened() {
    let nobody = Home::new();
    for verb in [&["ls"][..], &["get", "n:s/x"], &["put", "/etc/hostname", "n:s"], &["sync", "/etc", "n:s"]] {
        nobody.fails(verb, 6, "no daemon runs here");
    }
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("docs", "read"), ("inbox", "write")]), ("bare", &[])]);
    let near = mesh.home(0);
    fill(&mesh.share(1, "docs"), &[("a", "a"), ("private/b", "b")]);
    fill(&mesh.share(1, "inbox"), &[("c", "c")]);
    let place = TempDir::new().unwrap();
    let to = place.path().to_str().unwrap();
    near.fails(&["get", "nobody:docs/a", to], 3, "nobody");
    near.fails(&["ls", "nobody:docs"], 3, "nobody");
    near.fails(&["ls", "nobody"], 3, "nobody");
    near.fails(&["get", "bare:docs/a", to], 5, "[[share]]");
    near.fails(&["get", "far:nothing/a", to], 1, "nothing");
    near.fails(&["get", "far:docs/nothing", to], 1, "nothing");
    near.fails(&["ls", "far:docs/nothing"], 1, "nothing");
    near.fails(&["get", "far:inbox/c", to], 5, "write");
    near.fails(&["ls", "far:inbox"], 5, "write");
    near.fails(&["put", "/etc/hostname", "far:docs"], 5, "read");
    near.fails(&["sync", "/etc/ssl", "far:docs", "--delete"], 5, "read");
    near.fails(&["put", "/nowhere/at/all", "far:inbox"], 1, "/nowhere/at/all");
    let file = place.path().join("file");
    fs::write(&file, "in the way").unwrap();
    near.fails(&["get", "far:docs/a", file.join("below").to_str().unwrap()], 1, "file: Not a directory");
    fs::remove_file(&file).unwrap();
    near.fails(&["get", "docs/a"], 2, "NODE:SHARE/PATH");
    near.fails(&["get", "far:"], 2, "names no share");
    near.fails(&["get", "far:docs/a", "b", "c"], 2, "only the last word");
    near.fails(&["put", "far:docs", "far:inbox"], 2, "put takes files that are here");
    near.fails(&["sync", "far:docs", "far:inbox"], 2, "both directories are on nodes");
    near.fails(&["sync", "/etc", "/tmp"], 2, "both directories are here");
    near.fails(&["ls", "-r"], 2, "meshd ls NODE:SHARE");
    // A file here whose name reads as a place on a node.
    fs::write(place.path().join("far:docs"), "x").unwrap();
    let mut command = near.command(&["put", "far:docs", "far:inbox"]);
    let (status, _, errors) = Running::new(command.current_dir(place.path())).wait();
    assert!(status.code() == Some(2) && errors.contains("which one?") && errors.contains("./far:docs"), "{errors}");
    let mut command = near.command(&["put", "./far:docs", "far:inbox"]);
    assert!(Running::new(command.current_dir(place.path())).wait().0.success());
    assert_eq!(fs::read_to_string(mesh.share(1, "inbox").join("far:docs")).unwrap(), "x");
    assert_eq!(tree(place.path()).len(), 1, "nothing came from all that");
}

#[test]
fn a_rule_says_by_its_name_who_may_not() {
    // pynetwork let anybody read any file.
    let other = Home::new().json(&["identity"])["identity"].as_str().unwrap().to_owned();
    let rules = format!(
        "[[allow]]\nname = \"the archive is mine\"\nwho = [\"{other}\"]\naction = [\"get\", \"put\"]\npattern = \"docs/private/**\"\n"
    );
    let mesh = Mesh::with_rules(&[("near", &[]), ("far", &[("docs", "both")])], &rules);
    let near = mesh.home(0);
    let docs = mesh.share(1, "docs");
    fill(&docs, &[("open", "open"), ("private/b", "b")]);
    let place = TempDir::new().unwrap();
    let to = place.path().to_str().unwrap();
    near.ok(&["get", "far:docs/open", to]);
    near.fails(&["get", "far:docs/private/b", to], 5, "the archive is mine");
    near.fails(&["put", "/etc/hostname", "far:docs/private/c"], 5, "the archive is mine");
    assert_eq!(tree(place.path()).into_keys().collect::<Vec<_>>(), ["open"]);
    assert!(!docs.join("private/c").exists());
    // What it hides is not taken to be gone.
    fill(place.path(), &[("private/b", "b"), ("gone", "x")]);
    let (code, _, errors) = near.meshd(&["sync", "--delete", "far:docs", to]);
    assert!(code == 1 && errors.contains("private: not deleted: a rule there hides something"), "{code} {errors}");
    assert!(errors.contains("1 deleted, ") && errors.contains("1 failed"), "{errors}");
    assert!(place.path().join("private/b").exists() && !place.path().join("gone").exists());
}

#[test]
fn events_are_objects_with_the_keys_that_are_documented() {
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("docs", "read"), ("inbox", "both")])]);
    let near = mesh.home(0);
    fill(&mesh.share(1, "docs"), &[("a", "aaaa"), ("b/c", "c")]);
    let place = TempDir::new().unwrap();
    let (code, output, errors) = near.meshd(&["get", "far:docs", place.path().to_str().unwrap(), "--json"]);
    assert_eq!((code, &errors[..]), (0, ""), "all of it is in the objects");
    let events = lines(&output);
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    assert_eq!(keys(of("planned")[0]), ["bytes", "event", "files", "node", "resumed", "target"]);
    assert_eq!(keys(of("done")[0]), ["bytes", "event", "path", "target", "what"]);
    for progress in of("progress") {
        assert_eq!(keys(progress), ["bytes", "event", "files", "target"]);
    }
    let finished = of("finished");
    let documented = ["bytes", "deleted", "event", "failed", "files", "millis", "resumed", "target", "unchanged"];
    assert_eq!((finished.len(), keys(finished[0])), (1, documented.to_vec()));
    assert_eq!((&finished[0]["bytes"], &finished[0]["failed"]), (&5.into(), &0.into()));
    assert_eq!(events.last().unwrap()["event"], "finished");
    // What cannot be moved is told in its place, and the rest is moved.
    let secret = mesh.share(1, "inbox").join("secret");
    fs::create_dir_all(secret.join("a")).unwrap(); // a directory is where a file is to be
    fs::write(secret.join("a/x"), "x").unwrap();
    let from = place.path().join("docs");
    let (code, output, errors) = near.meshd(&["put", from.join("a").to_str().unwrap(), "far:inbox/secret", "--json"]);
    let failed = lines(&output).into_iter().find(|event| event["event"] == "failed");
    let failed = failed.unwrap_or_else(|| panic!("{code} {output} {errors}"));
    assert_eq!(code, 1, "{errors}");
    assert!(failed["error"].as_str().is_some_and(|error| !error.is_empty()), "{failed}");
    assert_eq!(fs::read_to_string(secret.join("a/x")).unwrap(), "x");
    // A name that is no text.
    let odd = std::ffi::OsStr::new("odd\u{1b}[31m");
    fs::write(mesh.share(1, "docs").join(odd), "x").unwrap();
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(odd).to_vec();
    let listed = lines(&near.ok(&["ls", "far:docs", "--json"]));
    let listed = listed.iter().find(|file| file["path"].as_str().unwrap().starts_with("odd")).unwrap();
    assert_eq!(listed["path"].as_str().unwrap().as_bytes(), bytes);
    let broken: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"no\xfftext");
    fs::write(mesh.share(1, "docs").join(broken), "x").unwrap();
    let listed = lines(&near.ok(&["ls", "far:docs", "--json"]));
    let listed = listed.iter().find(|file| file.get("path_base64").is_some()).unwrap();
    assert_eq!(
        (&listed["path"], &listed["path_base64"]),
        (&json!("no\u{fffd}text"), &json!(data_encoding::BASE64.encode(b"no\xfftext")))
    );
}

#[test]
fn ctrl_c_stops_a_job_and_the_same_command_goes_on() {
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("big", "both")])]);
    let near = mesh.home(0);
    let film = mesh.share(1, "big").join("film");
    large(&film, 128);
    let place = TempDir::new().unwrap();
    let words = ["get", "far:big/film", place.path().to_str().unwrap()];
    let mut get = Job::start(&near, &words);
    let had = get.midway();
    get.interrupt();
    let (code, errors) = get.end();
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("stopped") && errors.contains("the same command goes on"), "{errors}");
    assert!(!place.path().join("film").exists(), "a file appears whole or not at all");
    let resumed = finished(&near, &words);
    assert!(resumed["resumed"].as_u64().unwrap() >= had / 2, "{resumed}, after {had}");
    assert!(same(&place.path().join("film"), &film));
    assert_eq!(tree(place.path()).len(), 1, "nothing else is left");
    // The other way, by SIGKILL: the daemon notices, and stops too.
    let words = ["put", place.path().join("film").to_str().unwrap(), "far:big/copy"].map(str::to_owned);
    let words = words.each_ref().map(String::as_str);
    let mut put = Job::start(&near, &words);
    put.midway();
    drop(put); // killed
    let resumed = finished(&near, &words);
    assert!(resumed["resumed"].as_u64().unwrap() > 0, "{resumed}");
    assert!(same(&film, &mesh.share(1, "big").join("copy")));
}

#[test]
fn when_the_far_daemon_is_killed_midway_the_job_goes_on_once_it_is_back() {
    let mut mesh = Mesh::new(&[("near", &[]), ("far", &[("big", "both")])]);
    let near = mesh.home(0);
    let film = mesh.share(1, "big").join("film");
    large(&film, 128);
    let place = TempDir::new().unwrap();
    let copy = place.path().join("film");
    for (words, to) in [
        (["get", "far:big/film", place.path().to_str().unwrap()], copy.clone()),
        (["put", copy.to_str().unwrap(), "far:big/back"], mesh.share(1, "big").join("back")),
    ] {
        let mut job = Job::start(&near, &words);
        job.midway();
        mesh.kill(1);
        job.until("waiting");
        assert!(!to.exists(), "a file appears whole or not at all");
        mesh.restart(1);
        let (code, errors) = job.end();
        assert_eq!(code, 0, "{words:?}: {errors}");
        assert!(same(&to, &film), "{words:?}");
    }
    assert_eq!(tree(place.path()).len(), 1, "nothing else is left");
    assert_eq!(tree(&mesh.share(1, "big")).len(), 2, "nothing else is left there");
}

#[test]
fn when_the_near_daemon_is_killed_midway_the_same_command_goes_on() {
    let mut mesh = Mesh::new(&[("near", &[]), ("far", &[("big", "read")])]);
    let near = mesh.home(0);
    let film = mesh.share(1, "big").join("film");
    large(&film, 128);
    let place = TempDir::new().unwrap();
    let words = ["get", "far:big/film", place.path().to_str().unwrap()];
    let mut get = Job::start(&near, &words);
    get.midway();
    mesh.kill(0);
    let (code, errors) = get.end();
    assert_eq!(code, 6, "{errors}");
    mesh.restart(0);
    let resumed = finished(&near, &words);
    assert!(resumed["resumed"].as_u64().unwrap() > 0, "{resumed}");
    assert!(same(&place.path().join("film"), &film));
    assert_eq!(tree(place.path()).len(), 1, "nothing else is left");
}

#[test]
fn paths_that_lead_out_are_refused_and_nothing_is_written() {
    // pynetwork read any file, and wrote anywhere by names with `..`.
    let mesh = Mesh::new(&[("near", &[]), ("far", &[("docs", "both")])]);
    let (near, docs) = (mesh.home(0), mesh.share(1, "docs"));
    fill(&docs, &[("a", "a"), ("d/b", "b")]);
    let outside = TempDir::new().unwrap();
    fill(outside.path(), &[("secret", "secret")]);
    let secret = outside.path().join("secret");
    symlink(outside.path(), docs.join("out")).unwrap();
    symlink(&secret, docs.join("leak")).unwrap();
    symlink("../../../../../../etc", docs.join("d/up")).unwrap();
    let before = (tree(outside.path()), tree(&docs));
    let place = TempDir::new().unwrap();
    let to = place.path().to_str().unwrap();
    for word in [
        "far:docs/../docs/a",
        "far:docs/..",
        "far:docs//etc/hostname",
        "far:docs/d/../../secret",
        "far:../docs/a",
        "far:/etc/hostname",
        "far:docs/out/secret",
        "far:docs/d/up/hostname",
        "far:docs/out/*",
        "far:docs/./a",
    ] {
        let (code, _, errors) = near.meshd(&["get", word, to]);
        assert!([1, 2, 5].contains(&code) && errors.contains("meshd: "), "{word}: {code} {errors}");
        assert!(tree(place.path()).is_empty(), "{word}: {:?}", tree(place.path()));
    }
    for word in [
        "far:docs/../x",
        "far:docs/..",
        "far:docs//tmp/x",
        "far:docs/d/../../x",
        "far:../x",
        "far:/tmp/x",
        "far:docs/out/x",
        "far:docs/out/secret",
        "far:docs/d/up/hostname",
        "far:docs/out/",
    ] {
        let (code, _, errors) = near.meshd(&["put", "/etc/hostname", word]);
        assert!([1, 2, 5].contains(&code) && !errors.is_empty(), "{word}: {code} {errors}");
        assert_eq!((tree(outside.path()), tree(&docs)), before, "{word}: something was written");
    }
    // A link that leads out is copied as what it is, and never read through; nor is one here written through.
    near.ok(&["get", "far:docs/leak", to]);
    assert_eq!(fs::read_link(place.path().join("leak")).unwrap(), secret);
    fs::remove_file(place.path().join("leak")).unwrap();
    symlink(outside.path(), place.path().join("docs")).unwrap();
    near.meshd(&["get", "far:docs", to]);
    assert_eq!(tree(outside.path()), before.0, "nothing was written through a link");
}

#[test]
fn a_share_without_its_directory_is_warned_of_and_refused() {
    let home = Home::new();
    let folder = home.path().join("default");
    fs::create_dir_all(&folder).unwrap();
    let config = "[[share]]\nname = \"gone\"\npath = \"no/such\"\n[[share]]\nname = \"here\"\npath = \"files\"\n";
    fs::write(folder.join("config.toml"), config).unwrap();
    fill(&folder.join("files"), &[("a", "a")]); // a relative path starts at the folder of the mesh
    let daemon = home.run(&["--name", "me"]);
    let place = TempDir::new().unwrap();
    let to = place.path().to_str().unwrap();
    home.fails(&["get", "me:gone/x", to], 1, "gone");
    home.ok(&["get", "me:here/a", to]);
    assert_eq!(fs::read_to_string(place.path().join("a")).unwrap(), "a");
    let (status, _, log) = daemon.stop();
    assert!(status.success() && log.contains("no such directory") && log.contains("no/such"), "{log}");
    fs::write(folder.join("config.toml"), config.replace("here", "gone")).unwrap();
    let errors = home.fails(&["run", "--no-mdns"], 2, "two shares are named 'gone'");
    assert!(errors.contains("hint: ") && errors.contains("[[share]]"), "{errors}");
}

#[test]
fn a_directory_is_kept_alike_on_many_nodes_as_it_changes() {
    let mesh = Mesh::new(&[
        ("near", &[]),
        ("web", &[("www", "both")]),
        ("web", &[("www", "both")]),
        ("mirror", &[("backup", "both")]),
    ]);
    let place = TempDir::new().unwrap();
    let site = place.path().join("site");
    fill(&site, &[("index", "one"), ("old", "x")]);
    let copies = [mesh.share(1, "www"), mesh.share(2, "www"), mesh.share(3, "backup").join("site")];
    let alike = || copies.iter().all(|copy| copy.is_dir() && tree(copy) == tree(&site));
    let words = [site.to_str().unwrap(), "web:www", "mirror:backup/site"];
    let mut running = script(&mesh.home(0), "hot_sync.sh", &words);
    wait_until("all are alike", alike);
    fill(&site, &[("index", "another"), ("new/page", "x")]);
    fs::remove_file(site.join("old")).unwrap();
    wait_until("all are alike again", alike);
    assert!(running.is_running() && !copies[2].join("old").exists());
    kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
    let (_, listed, errors) = running.wait();
    assert!(listed.contains("web: replaced index\n") && listed.contains("mirror: deleted old\n"), "{listed}{errors}");
}

#[test]
fn files_are_fetched_and_deleted_when_a_disk_is_full() {
    let mesh = Mesh::new(&[("near", &[]), ("camera", &[("recordings", "both")])]);
    let (near, camera) = (mesh.home(0), mesh.home(1));
    let (recordings, place) = (mesh.share(1, "recordings"), TempDir::new().unwrap());
    fill(&recordings, &[("a.mp4", "a"), ("sub/b (1).mp4", "b"), ("keep.txt", "c")]);
    let usage = camera.path().join("usage");
    fs::write(&usage, "15").unwrap();
    let exec = format!("cat {}", usage.display());
    let _usage = camera.spawn(&["serve", "usage", "--name", "camera", "--exec", &exec]);
    let to = place.path().join("recordings");
    let words = ["camera", "recordings", r"\.mp4$", to.to_str().unwrap()];
    let backup = || {
        let (status, output, errors) = script(&near, "backup.sh", &words).wait();
        assert!(status.success(), "{output}{errors}");
        output
    };
    assert_eq!(backup(), "camera is at 15 %: nothing to do\n");
    assert!(!to.exists());
    fs::write(&usage, "35").unwrap();
    assert_eq!(backup(), "camera was at 35 %: fetched and deleted 2 files\n");
    assert_eq!(fs::read_to_string(to.join("sub/b (1).mp4")).unwrap(), "b");
    assert!(to.join("a.mp4").exists() && !to.join("keep.txt").exists());
    assert!(recordings.join("keep.txt").exists() && !recordings.join("a.mp4").exists());
    assert!(!recordings.join("sub/b (1).mp4").exists());
    assert_eq!(backup(), "camera is at 35 %, and has no such files\n");
}

/// Starts one of the example scripts, for which `meshd` is the program that was built.
fn script(home: &Home, name: &str, words: &[&str]) -> Running {
    let program = Path::new(env!("CARGO_BIN_EXE_meshd")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = home.command(&[]);
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    command = Command::new(script);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", path).env("EVERY", "0.1").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::new(&mut command)
}

/// Daemons of one mesh, each with directories that it shares.
struct Mesh {
    daemons: Vec<Option<Daemon>>,
    homes: Vec<Home>,
    names: Vec<String>,
}

impl Mesh {
    /// Names, and of each its shares with their modes.
    fn new(nodes: &[(&str, &[(&str, &str)])]) -> Self {
        Self::with_rules(nodes, "")
    }

    /// With something more in the settings of all.
    fn with_rules(nodes: &[(&str, &[(&str, &str)])], rules: &str) -> Self {
        let first = Home::new();
        first.ok(&["key", "new"]);
        let mut mesh = Self { daemons: Vec::new(), homes: Vec::new(), names: Vec::new() };
        for (number, (name, shares)) in nodes.iter().enumerate() {
            let home = if number == 0 { first.clone() } else { first.beside() };
            let folder = home.path().join("default");
            if number > 0 {
                fs::create_dir_all(&folder).unwrap();
                fs::copy(first.path().join("default/key"), folder.join("key")).unwrap();
            }
            let mut config = String::new();
            for (share, mode) in *shares {
                config += &format!("[[share]]\nname = \"{share}\"\npath = \"shared/{share}\"\nmode = \"{mode}\"\n");
                fs::create_dir_all(folder.join("shared").join(share)).unwrap();
            }
            fs::write(folder.join("config.toml"), config + rules).unwrap();
            mesh.homes.push(home);
            mesh.names.push((*name).to_owned());
            mesh.daemons.push(None);
            mesh.start(number);
        }
        mesh.linked();
        mesh
    }

    fn home(&self, number: usize) -> Home {
        self.homes[number].clone()
    }

    fn share(&self, number: usize, share: &str) -> PathBuf {
        self.homes[number].path().join("default/shared").join(share)
    }

    /// As `kill -9` does.
    fn kill(&mut self, number: usize) {
        drop(self.daemons[number].take().expect("it runs"));
    }

    fn restart(&mut self, number: usize) {
        self.start(number);
        self.linked();
    }

    fn start(&mut self, number: usize) {
        self.daemons[number] = Some(self.homes[number].run(&["--name", &self.names[number]]));
    }

    fn linked(&self) {
        let others = self.homes.len() - 1;
        wait_until("they are linked", || self.homes.iter().all(|home| home.json(&["status"])["peers"] == others));
    }
}

/// A verb that runs, and the events that it prints.
struct Job {
    running: Running,
    events: Receiver<Value>,
}

impl Job {
    fn start(home: &Home, words: &[&str]) -> Self {
        let mut running = home.spawn(&[words, &["--json"]].concat());
        let pipe: ChildStdout = running.child.stdout.take().unwrap();
        let (tell, events) = mpsc::sync_channel(100_000);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                if tell.send(serde_json::from_str(&line.unwrap()).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { running, events }
    }

    /// Waits until some has come, but not all; how many bytes.
    fn midway(&mut self) -> u64 {
        let mut total = 0;
        loop {
            let event = self.events.recv_timeout(PATIENCE).expect("something happens");
            match event["event"].as_str().unwrap() {
                "planned" => total = event["bytes"].as_u64().unwrap(),
                "progress" => {
                    let bytes = event["bytes"].as_u64().unwrap();
                    assert!(bytes < total, "it was done before it was seen: make the file larger");
                    if bytes > total / 20 {
                        return bytes;
                    }
                }
                "waiting" | "begun" => {}
                other => panic!("{other} before it was midway: {event}"),
            }
        }
    }

    fn until(&mut self, wanted: &str) {
        while self.events.recv_timeout(PATIENCE).expect("something happens")["event"] != wanted {}
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.running.child), Signal::INT).unwrap();
    }

    /// Exit code and stderr.
    fn end(self) -> (i32, String) {
        let reader = std::thread::spawn(move || self.events.iter().count()); // so that it can go on printing
        let (status, _, errors) = self.running.wait();
        reader.join().unwrap();
        (status.code().unwrap_or(-1), errors)
    }
}

/// Runs a verb to its end, which is to be good, and gives its last event.
fn finished(home: &Home, words: &[&str]) -> Value {
    let output = home.ok(&[words, &["--json"]].concat());
    let last = lines(&output).pop().unwrap();
    assert_eq!(last["event"], "finished", "{last}");
    last
}

fn fill(dir: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A file of so many MiB, no two of which are alike.
fn large(path: &Path, mib: u32) {
    let mut file = File::create(path).unwrap();
    let mut block: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for number in 0..mib {
        block[..4].copy_from_slice(&number.to_be_bytes());
        file.write_all(&block).unwrap();
    }
}

fn same(one: &Path, other: &Path) -> bool {
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
        bytes
    };
    read(one) == read(other)
}

/// Mode, content or what a link says, time in seconds and nanoseconds.
type Known = (u32, Vec<u8>, (i64, i64));

/// All below a directory, by path, with `/` behind directories.
fn tree(dir: &Path) -> BTreeMap<String, Known> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let known = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            if known.is_dir() {
                found.insert(name + "/", (known.mode(), Vec::new(), (0, 0)));
                left.push(path);
            } else if known.is_symlink() {
                let target = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
                found.insert(name, (0, target, (0, 0)));
            } else {
                found.insert(name, (known.mode(), fs::read(&path).unwrap(), (known.mtime(), known.mtime_nsec())));
            }
        }
    }
    found
}

fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

fn paths(listed: &[Value]) -> Vec<String> {
    let mut paths: Vec<String> = listed.iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect();
    paths.sort_unstable();
    paths
}
