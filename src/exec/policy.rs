//! What may be run here, and where it is.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::config::ExecConfig;
use crate::mesh::Failure;
use crate::mesh::exec::{ExecRequest, NOT_EXECUTABLE, NOT_FOUND, REFUSED, Word};

/// What the settings allow, and where programs are looked for.
#[derive(Debug)]
pub(super) struct Policy {
    config: ExecConfig,
    path: OsString,
}

/// A program that the settings allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// By which names rules may know it: as it was asked for, and where it is.
    pub(super) names: Vec<String>,
    /// Where it is, or why it cannot be run.
    pub(super) program: Result<PathBuf, Failure>,
}

impl Policy {
    /// Programs are looked for where this process would: a caller's `PATH` has no say in that.
    pub(super) fn new(config: ExecConfig) -> Self {
        Self { config, path: env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()) }
    }

    /// Finds what is to be run, if that is allowed.
    ///
    /// # Errors
    /// The settings do not allow it: then nothing is told of whether it is there.
    pub(super) fn check(&self, request: &ExecRequest, chdir: &Path) -> Result<Allowed, Failure> {
        let word = request.command.first().map(Word::as_bytes).unwrap_or_default();
        let asked = Path::new(OsStr::from_bytes(word));
        if !self.config.any {
            self.allows(asked).then_some(()).ok_or_else(|| refused(asked))?;
            if let Some(name) = request.env.iter().find_map(|(name, value)| steers(name, value).then_some(name)) {
                let message = format!(
                    "the variable {} could make a program run others: that takes any = true under [exec] in config.toml \
                     of that node",
                    called(Path::new(OsStr::from_bytes(name.as_bytes())))
                );
                return Err(Failure::new(REFUSED, message));
            }
        }
        let mut place = self.find(asked, chdir);
        if let (false, true, Some(name)) =
            (self.config.any || self.lists(asked), asked.is_absolute(), asked.file_name())
        {
            // It is what a name of the list leads to: by a way that nobody can turn elsewhere meanwhile.
            place = self.find(Path::new(name), Path::new("/"));
        }
        let names = self.names(asked, place.as_deref());
        Ok(Allowed { names, program: place.map_or_else(|| Err(not_found(asked)), runnable) })
    }

    /// The names of what was asked for and found at a place: where it really lies among them, so that no way around leads past a
    /// rule about that, and none with `..` in it, which rules would take for something else.
    fn names(&self, asked: &Path, place: Option<&Path>) -> Vec<String> {
        let mut names = Vec::new();
        if is_plain(asked) || is_straight(asked) {
            names.push(asked.to_string_lossy().into_owned());
        }
        if let Some(path) = place {
            let straight = Some(path).filter(|path| is_straight(path)).map(Path::to_owned);
            let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
            let real = parent.zip(path.file_name()).map(|(parent, name)| parent.join(name));
            names.extend([straight, real].into_iter().flatten().map(|path| path.to_string_lossy().into_owned()));
            // A rule for `uname` is about /usr/bin/uname too, if that is the one.
            if let Some(name) = path.file_name()
                && self.find(Path::new(name), Path::new("/")).is_some_and(|found| is_same(&found, path))
            {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        if names.is_empty() {
            names.push(asked.to_string_lossy().into_owned()); // of what is not there
        }
        names.dedup();
        names
    }

    /// Whether the list has the program: by this very name, or, for an absolute path, by the name that leads there.
    fn allows(&self, asked: &Path) -> bool {
        let leads_there = |entry: &String| {
            let entry = Path::new(entry);
            asked.is_absolute()
                && is_plain(entry)
                && asked.file_name() == Some(entry.as_os_str())
                && self.find(entry, Path::new("/")).is_some_and(|found| is_same(&found, asked))
        };
        self.lists(asked) || self.config.allow.iter().any(leads_there)
    }

    /// Whether the list has this very name.
    fn lists(&self, asked: &Path) -> bool {
        let fits = is_plain(asked) || asked.is_absolute();
        fits && self.config.allow.iter().any(|entry| Path::new(entry).as_os_str() == asked.as_os_str())
    }

    /// Where a program is: a plain name somewhere in the path, anything else where it says.
    fn find(&self, asked: &Path, chdir: &Path) -> Option<PathBuf> {
        if !is_plain(asked) {
            return Some(chdir.join(asked)).filter(|path| path.exists());
        }
        let places = || env::split_paths(&self.path).filter(|place| place.is_absolute()).map(|place| place.join(asked));
        let runs = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
        places().find(runs).or_else(|| places().find(|path| path.is_file()))
    }
}

/// A name without a place.
fn is_plain(name: &Path) -> bool {
    !name.as_os_str().as_bytes().contains(&b'/')
}

/// A path from the root without a way back in it.
fn is_straight(path: &Path) -> bool {
    let mut parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    parts.next() == Some(b"")
        && !path.as_os_str().is_empty()
        && parts.all(|part| !part.is_empty() && part != b"." && part != b"..")
}

/// Whether both are the same file by name: of one name, in one directory. What links point to is not looked at, since one file
/// can be many programs by the name that it is called by.
fn is_same(one: &Path, other: &Path) -> bool {
    let parent = |path: &Path| path.parent().and_then(|parent| parent.canonicalize().ok());
    one.file_name() == other.file_name() && parent(one).is_some_and(|place| Some(place) == parent(other))
}

fn runnable(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.is_file() && access(&path, Access::EXEC_OK).is_ok() {
        return Ok(path);
    }
    Err(Failure::new(
        NOT_EXECUTABLE,
        format!("{} cannot be run there: it is no program, or not for this user", called(&path)),
    ))
}

pub(super) fn refused(asked: &Path) -> Failure {
    let message = format!("[exec] allow in config.toml of that node does not have '{}'", called(asked));
    Failure::new(REFUSED, message)
}

/// A name as it is told and logged: in one line, and as much of it as tells which one.
fn called(asked: &Path) -> String {
    let name = asked.to_string_lossy();
    let kept: String = name.chars().take(MAX_CALLED).collect();
    let rest = if kept.len() < name.len() { ".." } else { "" };
    format!("{}{rest}", kept.escape_debug())
}

fn not_found(asked: &Path) -> Failure {
    Failure::new(NOT_FOUND, format!("there is no program '{}' there", called(asked)))
}

/// Whether a variable makes loaders, shells or interpreters run something else than what was allowed. Not all such are known:
/// which programs are allowed, and what they do with their surroundings, is for the owner of the settings to say.
fn steers(name: &Word, value: &Word) -> bool {
    let (name, value) = (name.as_bytes(), value.as_bytes());
    value.starts_with(b"()")
        || STEERING.contains(&name)
        || STEERING_FAMILIES.iter().any(|family| name.starts_with(family))
}

const STEERING: &[&[u8]] = &[
    b"BASHOPTS",
    b"BASH_ENV",
    b"CDPATH",
    b"CLASSPATH",
    b"CURL_HOME",
    b"EDITOR",
    b"ENV",
    b"EXINIT",
    b"GCONV_PATH",
    b"GLIBC_TUNABLES",
    b"GLOBIGNORE",
    b"GNUPGHOME",
    b"HOME",
    b"HOSTALIASES",
    b"IFS",
    b"JAVA_TOOL_OPTIONS",
    b"JDK_JAVA_OPTIONS",
    b"KUBECONFIG",
    b"LESSCLOSE",
    b"LESSOPEN",
    b"LOCALDOMAIN",
    b"LOCPATH",
    b"MANPAGER",
    b"NLSPATH",
    b"PAGER",
    b"PATH",
    b"PHPRC",
    b"PHP_INI_SCAN_DIR",
    b"PROMPT_COMMAND",
    b"PS4",
    b"PSQLRC",
    b"RES_OPTIONS",
    b"R_PROFILE",
    b"R_PROFILE_USER",
    b"SHELL",
    b"SHELLOPTS",
    b"SSLKEYLOGFILE",
    b"SUDO_ASKPASS",
    b"SUDO_EDITOR",
    b"TAR_OPTIONS",
    b"TERMCAP",
    b"TERMINFO",
    b"TMPDIR",
    b"UNZIP",
    b"VIMINIT",
    b"VISUAL",
    b"WGETRC",
    b"ZDOTDIR",
    b"ZIPOPT",
];
const STEERING_FAMILIES: &[&[u8]] = &[
    b"BASH_FUNC_",
    b"CARGO_",
    b"DOCKER_",
    b"DYLD_",
    b"GIT_",
    b"GNUMAKE",
    b"LD_",
    b"LUA_",
    b"MAKE",
    b"MALLOC_",
    b"NODE_",
    b"OPENSSL_",
    b"PERL",
    b"PSQL_",
    b"PYTHON",
    b"RSYNC_",
    b"RUBY",
    b"RUSTC",
    b"SSH_",
    b"SYSTEMD_",
    b"XDG_",
    b"_JAVA",
    b"npm_",
];
/// Letters of a program's name that are told.
const MAX_CALLED: usize = 200;
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn program(path: &Path, mode: u32) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Two places in the path; `tool` in the first, `other` in the second, `data` is not to be run.
    fn policy(allow: &[&str], any: bool) -> (tempfile::TempDir, Policy) {
        let root = tempfile::tempdir().unwrap();
        for place in ["one", "two", "elsewhere"] {
            fs::create_dir(root.path().join(place)).unwrap();
        }
        symlink(root.path().join("one"), root.path().join("link")).unwrap();
        for (name, mode) in [
            ("one/tool", 0o755),
            ("two/tool", 0o755),
            ("two/other", 0o755),
            ("one/data", 0o644),
            ("elsewhere/tool", 0o755),
        ] {
            program(&root.path().join(name), mode);
        }
        symlink(root.path().join("one/tool"), root.path().join("elsewhere/shell")).unwrap();
        let path = env::join_paths([root.path().join("one"), "relative".into(), root.path().join("two")]).unwrap();
        let allow = allow.iter().map(|entry| entry.replace("ROOT", root.path().to_str().unwrap())).collect();
        (root, Policy { config: ExecConfig { allow, any }, path })
    }

    fn check(allow: &[&str], any: bool, asked: &str) -> Result<Allowed, Failure> {
        let (root, policy) = policy(allow, any);
        let asked = asked.replace("ROOT", root.path().to_str().unwrap());
        let request = ExecRequest { command: vec![asked.as_str().into()], ..ExecRequest::default() };
        let mut allowed = policy.check(&request, &root.path().join("one"))?;
        let short = |text: &str| text.replace(root.path().to_str().unwrap(), "ROOT");
        allowed.names = allowed.names.iter().map(|name| short(name)).collect();
        allowed.program = allowed.program.map(|path| short(path.to_str().unwrap()).into());
        Ok(allowed)
    }

    #[test]
    fn what_the_list_has_is_run_from_the_path_and_nothing_else_is() {
        for (allow, asked, found) in [
            (&["tool"][..], "tool", Some("ROOT/one/tool")),
            (&["tool"], "other", None),
            (&["tool", "other"], "other", Some("ROOT/two/other")),
            (&[], "tool", None),
            (&["tool"], "ROOT/one/tool", Some("ROOT/one/tool")),
            (&["tool"], "ROOT/link/tool", Some("ROOT/one/tool")),
            // The name leads to another one.
            (&["tool"], "ROOT/two/tool", None),
            (&["tool"], "ROOT/elsewhere/tool", None),
            // What is called by another name is another program.
            (&["tool"], "ROOT/elsewhere/shell", None),
            (&["ROOT/elsewhere/tool"], "ROOT/elsewhere/tool", Some("ROOT/elsewhere/tool")),
            (&["ROOT/elsewhere/tool"], "ROOT/elsewhere/../elsewhere/tool", None),
            (&["ROOT/one/tool"], "tool", None),
            (&["./tool"], "./tool", None),
            (&["one/tool"], "one/tool", None),
            (&["tool"], "./tool", None),
            (&["tool"], "", None),
            (&["tool"], "TOOL", None),
            (&["*"], "tool", None),
        ] {
            let got = check(allow, false, asked);
            match found {
                Some(found) => assert_eq!(got.unwrap().program, Ok(PathBuf::from(found)), "{allow:?} {asked}"),
                None => assert_eq!(got.unwrap_err().kind, REFUSED, "{allow:?} {asked}"),
            }
        }
    }

    #[test]
    fn any_is_any_and_says_what_is_not_there() {
        assert_eq!(check(&[], true, "tool").unwrap().program, Ok("ROOT/one/tool".into()));
        assert_eq!(check(&[], true, "./tool").unwrap().program, Ok("ROOT/one/./tool".into()), "where it runs");
        for (asked, kind) in [
            ("nothing", NOT_FOUND),
            ("ROOT/nothing", NOT_FOUND),
            ("data", NOT_EXECUTABLE),
            ("ROOT/one/data", NOT_EXECUTABLE),
            ("ROOT/one", NOT_EXECUTABLE),
        ] {
            assert_eq!(check(&[], true, asked).unwrap().program.unwrap_err().kind, kind, "{asked}");
        }
    }

    #[test]
    fn rules_know_a_program_by_all_its_names() {
        assert_eq!(check(&[], true, "tool").unwrap().names, ["tool", "ROOT/one/tool", "tool"]);
        assert_eq!(check(&[], true, "ROOT/link/tool").unwrap().names, ["ROOT/link/tool", "ROOT/one/tool", "tool"]);
        assert_eq!(check(&[], true, "ROOT/two/tool").unwrap().names, ["ROOT/two/tool"]);
    }

    #[test]
    fn no_way_around_leads_past_a_rule_about_where_a_program_is() {
        for asked in
            ["ROOT/link/tool", "ROOT/two/../one/tool", "ROOT/one/./tool", "ROOT//one/tool", "./tool", "../one/tool"]
        {
            let allowed = check(&[], true, asked).unwrap();
            assert!(allowed.names.iter().any(|name| name == "ROOT/one/tool"), "{asked}: {:?}", allowed.names);
            // A rule that names somebody for ROOT/two/** is not about what lies elsewhere.
            assert!(allowed.names.iter().all(|name| !name.contains("..")), "{asked}: {:?}", allowed.names);
        }
        // What is not there is known by what it was asked for.
        assert_eq!(check(&[], true, "../x/y").unwrap().names, ["../x/y"]);
    }

    #[test]
    fn what_is_told_of_a_name_is_bounded_and_one_line() {
        let long = format!("a\n\u{1b}{}", "\u{e9}".repeat(1 << 20));
        for any in [true, false] {
            let failure = match check(&[], any, &long) {
                Ok(allowed) => allowed.program.unwrap_err(),
                Err(failure) => failure,
            };
            assert!(failure.message.len() < 1000, "{} bytes", failure.message.len());
            assert!(!failure.message.contains(['\n', '\u{1b}']), "{}", failure.message);
        }
    }

    /// Each of these has some well-known program run or load what the value names, or write where it says.
    const STEERS: &[(&str, &str)] = &[
        ("LD_PRELOAD", "/x.so"),
        ("PATH", "/x"),
        ("BASH_ENV", "$(x)"),
        ("PYTHONPATH", "/x"),
        ("x", "() { x; }"),
        ("OPENSSL_CONF", "/x"),
        ("OPENSSL_MODULES", "/x"),
        ("GLIBC_TUNABLES", "x"),
        ("TAR_OPTIONS", "--to-command=x"),
        ("RSYNC_RSH", "x"),
        ("MAKEFLAGS", "--eval=x"),
        ("MAKEFILES", "/x"),
        ("LUA_INIT", "x"),
        ("LUA_INIT_5_4", "x"),
        ("JDK_JAVA_OPTIONS", "-javaagent:/x"),
        ("SSH_ASKPASS", "/x"),
        ("MANPAGER", "x"),
        ("SYSTEMD_PAGER", "x"),
        ("LESSCLOSE", "|x"),
        ("ZIPOPT", "-TT x"),
        ("CURL_HOME", "/x"),
        ("WGETRC", "/x"),
        ("GNUPGHOME", "/x"),
        ("KUBECONFIG", "/x"),
        ("DOCKER_CONFIG", "/x"),
        ("PHPRC", "/x"),
        ("R_PROFILE", "/x"),
        ("VIMINIT", "!x"),
        ("EXINIT", "!x"),
        ("SSLKEYLOGFILE", "/x"),
        ("CARGO_HOME", "/x"),
        ("RUSTC_WRAPPER", "x"),
        ("npm_config_script_shell", "x"),
    ];

    #[test]
    fn variables_that_steer_programs_take_any() {
        let (root, policy) = policy(&["tool"], false);
        let request = |name: &str, value: &str| ExecRequest {
            command: vec!["tool".into()],
            env: [(name.into(), value.into())].into(),
            ..ExecRequest::default()
        };
        assert!(policy.check(&request("LANG", "C"), root.path()).is_ok());
        for (name, value) in STEERS {
            let failure = policy.check(&request(name, value), root.path()).unwrap_err();
            assert!(failure.kind == REFUSED && failure.message.contains("[exec]"), "{failure:?}");
        }
    }
}
