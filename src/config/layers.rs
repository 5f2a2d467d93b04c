//! How settings come about: default, file, ticket, environment, argument. Later ones win, and the source of each is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::{Table, Value};

use super::{Config, ConfigError, Home, ShareConfig, ShareMode, plain, read_optional};
use crate::mesh::{Action, AllowRule, BalanceRule, GroupBy, MeshName, NodeName, Policy, ServiceName, TopicFilter, Who};

/// What was said besides the file. Kept, so that settings can be loaded again.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    environment: Vec<(String, String)>,
    arguments: Vec<Argument>,
}

/// Settings, and where each came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// The same, key by key.
    pub settings: Vec<Setting>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key, with dots: `discovery.mdns`.
    pub key: String,
    /// Its value, as one would write it; items of lists are separated by commas.
    pub value: String,
    /// Where it came from.
    pub source: String,
}

/// Where a value came from, from the least to the most specific.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// `config.toml`.
    File,
    /// Addresses that came with a ticket.
    Ticket,
    /// This environment variable.
    Environment(String),
    /// This argument.
    Argument(String),
}

#[derive(Clone, Debug)]
struct Argument {
    name: String,
    key: String,
    value: Value,
}

impl Layers {
    /// The environment of this process: `MESHD_` and the key in capitals, with `_` for dots (`MESHD_DISCOVERY_MDNS`).
    /// Lists are separated by commas.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::with_environment(|name| std::env::var(name).ok())
    }

    /// As [`from_environment`](Self::from_environment), with another way to look variables up.
    #[must_use]
    pub fn with_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let names = keys().into_keys().map(|key| variable(&key));
        let environment =
            names.filter_map(|name| get(&name).filter(|value| !value.is_empty()).map(|value| (name, value)));
        Self { environment: environment.collect(), arguments: Vec::new() }
    }

    /// Adds an argument, which wins over everything else.
    pub fn argument(&mut self, name: &str, key: &str, value: impl Into<Value>) {
        self.arguments.push(Argument { name: name.to_owned(), key: key.to_owned(), value: value.into() });
    }

    /// The settings of one mesh.
    ///
    /// # Errors
    /// The file cannot be read, or something says an impossible value.
    pub fn load(&self, home: &Home, mesh: &MeshName) -> Result<Loaded, ConfigError> {
        let (_, file) = read_file(&home.config(mesh))?;
        let (mut table, mut sources) = (table_of(&Config::default()), BTreeMap::new());
        for (key, value) in flatten(&file) {
            set(&mut table, &key, value);
            sources.insert(key, Source::File);
        }
        for (name, text) in &self.environment {
            let (key, example) =
                keys().into_iter().find(|(key, _)| variable(key) == *name).expect("made from the keys");
            let value = parse_as(&example, text).map_err(|message| value_error(name, message))?;
            set_checked(&mut table, &key, value, name)?;
            sources.insert(key, Source::Environment(name.clone()));
        }
        for Argument { name, key, value } in &self.arguments {
            set_checked(&mut table, key, value.clone(), name)?;
            sources.insert(key.clone(), Source::Argument(name.clone()));
        }
        let mut config: Config =
            table.clone().try_into().map_err(|error| value_error("the settings", error.message()))?;
        // A ticket's addresses add to what else is known: they were fetched for good, not for one run.
        let remembered = home.remembered(mesh)?;
        if !remembered.is_empty() {
            sources.entry(BOOTSTRAP.to_owned()).or_insert(Source::Ticket);
        }
        for address in remembered {
            if !config.bootstrap.contains(&address) {
                config.bootstrap.push(address);
            }
        }
        Ok(Loaded { settings: settings(&config, &sources), config })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Ticket => f.write_str("ticket"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Argument(name) => write!(f, "argument {name}"),
        }
    }
}

/// What a file says, checked: the settings, and those keys that it names.
pub(super) fn read_file(path: &Path) -> Result<(Config, Table), ConfigError> {
    let text = read_optional(path)?.unwrap_or_default();
    let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let failed = |error: toml::de::Error| {
        let line = line(error.span().map_or(0, |span| span.start));
        ConfigError::File { path: path.to_owned(), line, message: plain(error.message()) }
    };
    let document = toml::de::DeTable::parse(&text).map_err(failed)?;
    if let Some((key, at)) = unknown_key(document.get_ref()) {
        let nearest = nearest(&key);
        return Err(ConfigError::Unknown { path: path.to_owned(), line: line(at), key, nearest });
    }
    Ok((toml::from_str(&text).map_err(failed)?, toml::from_str(&text).map_err(failed)?))
}

/// The first key that means nothing, with its place in the text.
fn unknown_key(document: &toml::de::DeTable<'_>) -> Option<(String, usize)> {
    let known = table_of(&sample());
    let mut unknown = Vec::new();
    for (key, value) in document {
        let name = key.get_ref().to_string();
        match (known.get(&name), value.get_ref()) {
            (None, _) => unknown.push((name, key.span().start)),
            (Some(Value::Table(section)), toml::de::DeValue::Table(inner)) => {
                let strange = inner.keys().filter(|key| !section.contains_key(key.get_ref().as_ref()));
                unknown.extend(strange.map(|key| (format!("{name}.{}", key.get_ref()), key.span().start)));
            }
            (Some(known @ Value::Array(_)), toml::de::DeValue::Array(tables)) if !keys_of_tables(known).is_empty() => {
                let known = keys_of_tables(known);
                let keys = tables.iter().filter_map(|table| table.get_ref().as_table()).flat_map(|table| table.keys());
                let strange = keys.filter(|key| !known.iter().any(|known| known == key.get_ref().as_ref()));
                unknown.extend(strange.map(|key| (format!("{name}.{}", key.get_ref()), key.span().start)));
            }
            _ => {}
        }
    }
    unknown.into_iter().min_by_key(|(_, at)| *at)
}

/// The known key that resembles this one most, if any does: by its whole path, or by its last part in another section.
fn nearest(key: &str) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness =
        |known: &str| strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(&last(key), &last(known)) - ELSEWHERE);
    let sections = table_of(&sample()).into_iter().filter(|(_, value)| value.is_table()).map(|(name, _)| name);
    let in_lists = keys()
        .into_iter()
        .flat_map(|(name, value)| keys_of_tables(&value).into_iter().map(move |key| format!("{name}.{key}")));
    let known = keys().into_keys().chain(sections).chain(in_lists).map(|known| (likeness(&known), known));
    let best = known.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= ALIKE).then_some(best.1)
}

/// Every key with a value of its type.
fn keys() -> BTreeMap<String, Value> {
    flatten(&table_of(&sample())).into_iter().collect()
}

/// The keys of the tables in a list, if it is one of tables.
fn keys_of_tables(list: &Value) -> BTreeSet<String> {
    let tables = list.as_array().into_iter().flatten().filter_map(Value::as_table);
    tables.flat_map(|table| table.keys().cloned()).collect()
}

/// A configuration in which every key has a value.
fn sample() -> Config {
    let (policy, group_by) = (Policy::default(), GroupBy::default());
    let topics = TopicFilter::new("jobs/**").map(|filter| BalanceRule::Topics { filter, policy, group_by });
    let service =
        ServiceName::new("resize").map(|service| BalanceRule::Service { service, policy: Policy::LeastLoaded });
    let balance = [topics, service].into_iter().flatten().collect();
    let share = vec![ShareConfig { name: "data".to_owned(), path: "data".into(), mode: ShareMode::Read }];
    let name = Some("ops only".to_owned());
    let allow = vec![AllowRule { name, who: vec![Who::Everyone], action: vec![Action::Get], pattern: "**".to_owned() }];
    Config { name: NodeName::new("node").ok(), balance, share, allow, ..Config::default() }
}

fn variable(key: &str) -> String {
    format!("MESHD_{}", key.replace('.', "_").to_uppercase())
}

fn table_of(config: &Config) -> Table {
    Table::try_from(config).expect("settings are TOML: a test prints them")
}

/// Keys with dots. Sections are one deep.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let flat = table.iter().flat_map(|(key, value)| match value {
        Value::Table(section) => {
            section.iter().map(|(inner, value)| (format!("{key}.{inner}"), value.clone())).collect::<Vec<_>>()
        }
        value => vec![(key.clone(), value.clone())],
    });
    flat.collect()
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, inner)) => {
            if let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) {
                section.insert(inner.to_owned(), value);
            }
        }
        None => drop(table.insert(key.to_owned(), value)),
    }
}

/// Sets a value, and blames `origin` if the whole then makes no sense.
fn set_checked(table: &mut Table, key: &str, value: Value, origin: &str) -> Result<(), ConfigError> {
    set(table, key, value);
    table.clone().try_into::<Config>().map_err(|error| value_error(origin, error.message().to_owned()))?;
    Ok(())
}

/// A text as a value of the same type as the example.
fn parse_as(example: &Value, text: &str) -> Result<Value, String> {
    Ok(match example {
        Value::Boolean(_) => Value::Boolean(match text {
            "1" | "true" | "yes" | "on" => true,
            "0" | "false" | "no" | "off" => false,
            _ => return Err(format!("'{text}' is neither true nor false")),
        }),
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| format!("'{text}' is no number"))?),
        Value::Array(items) if items.iter().any(Value::is_table) => {
            // As in the file, in one line: { topic = "jobs/**", policy = "hash" }, { .. }
            let list = text.trim().trim_start_matches('[').trim_end_matches(']');
            let document: Table = toml::from_str(&format!("list = [{list}]")).map_err(|_| {
                format!("'{text}' is no list of rules: write {}", items.first().map(text_of).unwrap_or_default())
            })?;
            document.get("list").cloned().unwrap_or(Value::Array(Vec::new()))
        }
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        }
        _ => Value::String(text.to_owned()),
    })
}

fn settings(config: &Config, sources: &BTreeMap<String, Source>) -> Vec<Setting> {
    let values: BTreeMap<_, _> = flatten(&table_of(config)).into_iter().collect();
    let setting = |key: String| {
        let value = values.get(&key).map(text_of).unwrap_or_default();
        let source = sources.get(&key).unwrap_or(&Source::Default).to_string();
        Setting { key, value, source }
    };
    keys().into_keys().map(setting).collect()
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(", "),
        value => value.to_string(),
    }
}

fn value_error(origin: &str, message: impl ToString) -> ConfigError {
    ConfigError::Value { origin: origin.to_owned(), message: plain(&message.to_string()) }
}

const BOOTSTRAP: &str = "bootstrap";
/// Jaro-Winkler likeness above which a key is worth suggesting: typos score above 0.9, strangers below 0.7.
const ALIKE: f64 = 0.8;
/// What a key loses by standing in another section than the one written.
const ELSEWHERE: f64 = 0.05;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn home(config: &str) -> (tempfile::TempDir, Home, MeshName) {
        let dir = tempfile::tempdir().unwrap();
        let (home, mesh) = (Home::new(dir.path()), MeshName::new("lab").unwrap());
        fs::create_dir(home.mesh(&mesh)).unwrap();
        fs::write(home.config(&mesh), config).unwrap();
        (dir, home, mesh)
    }

    fn source(loaded: &Loaded, key: &str) -> (String, String) {
        let setting = loaded.settings.iter().find(|setting| setting.key == key).unwrap();
        (setting.value.clone(), setting.source.clone())
    }

    #[test]
    fn argument_beats_environment_beats_file_beats_default() {
        let (_dir, home, mesh) = home("name = \"file\"\nlisten = [\"1.2.3.4:5\"]\n[limits]\nmessage_bytes = \"1 MiB\"");
        let mut layers = Layers::with_environment(|name| match name {
            "MESHD_NAME" => Some("environment".to_owned()),
            "MESHD_DISCOVERY_MDNS" => Some("off".to_owned()),
            "MESHD_BOOTSTRAP" => Some("a:1, b:2".to_owned()),
            _ => None,
        });
        layers.argument("--name", "name", "argument");
        let loaded = layers.load(&home, &mesh).unwrap();
        assert_eq!(loaded.config.name.as_ref().unwrap().as_str(), "argument");
        assert!(!loaded.config.discovery.mdns && loaded.config.discovery.kad);
        assert_eq!(loaded.config.limits.message_bytes.get(), 1 << 20);
        for (key, value, from) in [
            ("name", "argument", "argument --name"),
            ("discovery.mdns", "false", "environment MESHD_DISCOVERY_MDNS"),
            ("bootstrap", "/dns/a/tcp/1, /dns/b/tcp/2", "environment MESHD_BOOTSTRAP"),
            ("listen", "/ip4/1.2.3.4/tcp/5", "file"),
            ("limits.message_bytes", "1 MiB", "file"),
            ("times.send_timeout", "1s", "default"),
        ] {
            assert_eq!(source(&loaded, key), (value.to_owned(), from.to_owned()), "{key}");
        }
    }

    #[test]
    fn a_tickets_addresses_add_to_the_others() {
        let (_dir, home, mesh) = home("bootstrap = [\"a:1\"]");
        fs::write(home.bootstrap(&mesh), "/ip4/1.2.3.4/tcp/5\n\nnonsense\n/dns/a/tcp/1\n").unwrap();
        let loaded = Layers::default().load(&home, &mesh).unwrap();
        assert_eq!(loaded.config.bootstrap, ["/dns/a/tcp/1", "/ip4/1.2.3.4/tcp/5"]);
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        for (text, line, key, suggestion) in [
            ("\nlissten = []", 2, "lissten", Some("listen")),
            ("[discovery]\nmdsn = false", 2, "discovery.mdsn", Some("discovery.mdns")),
            ("mdns = false", 1, "mdns", Some("discovery.mdns")),
            ("# a\nmessage_bytes = 3", 2, "message_bytes", Some("limits.message_bytes")),
            ("discovery.kadd = true", 1, "discovery.kadd", Some("discovery.kad")),
            ("[limit]\nx = 1", 1, "limit", Some("limits")),
            ("[[balance]]\n\npolcy = 1", 3, "balance.polcy", Some("balance.policy")),
            ("[[balance]]\n[[balance]]\ngroup = 1", 3, "balance.group", Some("balance.group_by")),
            ("[[balanec]]\npolicy = \"hash\"", 1, "balanec", Some("balance")),
            ("zzz = 1", 1, "zzz", None),
        ] {
            let (_dir, home, mesh) = home(text);
            match Layers::default().load(&home, &mesh) {
                Err(ConfigError::Unknown { line: at, key: found, nearest, .. }) => {
                    assert_eq!((at, found.as_str(), nearest.as_deref()), (line, key, suggestion), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_bad_value_names_the_variable_or_argument() {
        let (_dir, home, mesh) = home("");
        for (variable, value) in [
            ("MESHD_DISCOVERY_MDNS", "maybe"),
            ("MESHD_LIMITS_LINK_QUEUE_MESSAGES", "0"),
            ("MESHD_LIMITS_LINK_QUEUE_MESSAGES", "x"),
            ("MESHD_LISTEN", "nonsense"),
            ("MESHD_TIMES_SEND_TIMEOUT", "soon"),
            ("MESHD_BALANCE", "hash"),
            ("MESHD_BALANCE", "{ topic = \"a\", policy = \"fair\" }"),
        ] {
            let layers = Layers::with_environment(|name| (name == variable).then(|| value.to_owned()));
            let error = layers.load(&home, &mesh).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{variable}: ")), "{error}");
        }
        let mut layers = Layers::default();
        layers.argument("--listen", "listen", vec!["nonsense"]);
        let error = layers.load(&home, &mesh).unwrap_err().to_string();
        assert!(error.starts_with("--listen: ") && error.contains("host:port"), "{error}");
    }

    #[test]
    fn rules_read_back_as_they_are_printed() {
        let (_dir, home, mesh) = home(
            "[[balance]]\ntopic = \"a/**\"\npolicy = \"hash\"\ngroup_by = \"host\"\n\
             [[balance]]\nservice = \"b\"\npolicy = \"random\"",
        );
        let loaded = Layers::default().load(&home, &mesh).unwrap();
        let (value, from) = source(&loaded, "balance");
        let printed =
            "{ group_by = \"host\", policy = \"hash\", topic = \"a/**\" }, { policy = \"random\", service = \"b\" }";
        assert_eq!((value.as_str(), from.as_str()), (printed, "file"));
        for text in [value.clone(), format!("[{value}]")] {
            let layers = Layers::with_environment(|name| (name == "MESHD_BALANCE").then(|| text.clone()));
            assert_eq!(layers.load(&home, &mesh).unwrap().config.balance, loaded.config.balance);
        }
    }

    #[test]
    fn every_key_is_listed_once() {
        let (_dir, home, mesh) = home("");
        let settings = Layers::default().load(&home, &mesh).unwrap().settings;
        let keys: Vec<_> = settings.iter().map(|setting| setting.key.as_str()).collect();
        assert_eq!(keys.len(), 22, "{keys:?}");
        assert!(settings.iter().all(|setting| setting.source == "default"));
    }
}
