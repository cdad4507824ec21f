//! Where settings come from, in this order: the file, the environment over it, flags over both.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use pixfleet_shared::settings::{Document, Problem, Problems, nearest};
use pixfleet_worker::provider::{Catalog, Provider, Source, preset_names};

use super::{Config, Log, environment, fields, secrets};

/// The flags that every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Sources {
    /// The settings file. Default: $PIXFLEET_CONFIG, else ./pixfleet.toml, else /etc/pixfleet/pixfleet.toml, else none
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub(crate) config: Option<PathBuf>,
    /// Sets one field over the file and the environment; may be given more than once
    #[arg(long, global = true, value_name = "FIELD=VALUE", help_heading = "Settings")]
    pub(crate) set: Vec<String>,
}

/// Whether the role calls the providers, and so needs their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// A worker does.
    Needed,
    /// An enqueue only wants to know their models, prices and limits: it may run where no key is.
    NotNeeded,
}

/// Settings that were read, and where each came from.
pub(crate) struct Loaded {
    /// The settings.
    pub(crate) config: Config,
    /// As they were written: for the providers' tables, and for problems that only a role can see.
    pub(crate) document: Document,
}

impl Loaded {
    /// The `[log]` settings of a role that runs on its own.
    pub(crate) fn log(&self) -> Log {
        self.config.log.clone()
    }

    /// The `[log]` settings of a command that one waits for: it has its own words for what goes well.
    pub(crate) fn quiet_log(&self) -> Log {
        let mut log = self.log();
        if !self.document.has("log.filter") {
            log.filter = "warn,lapin=off".to_owned();
        }
        log
    }
}

impl Sources {
    /// Reads all sources, for a role that makes no calls.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, but for the providers' tables.
    pub(crate) fn load(&self) -> Result<Loaded, Problems> {
        self.gather(&environment(), Path::new(".")).read()
    }

    /// Reads all sources, and compiles the providers. A table's own files are looked for beside the settings file.
    ///
    /// # Errors
    /// Everything that is wrong in any of them; where keys are needed, one that is not there.
    pub(crate) fn load_with_providers(&self, keys: Keys) -> Result<(Loaded, Catalog), Problems> {
        self.gather(&environment(), Path::new(".")).read_with_providers(keys)
    }

    /// Reads all sources, and compiles the one provider that a command on this machine is about: `name`, or the only one
    /// of the settings. A preset needs no table of its own.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, its key that is not there, or a name that is no provider's.
    pub(crate) fn load_with_provider(&self, name: Option<&str>) -> Result<(Loaded, Provider), Problems> {
        self.gather(&environment(), Path::new(".")).read_with_provider(name)
    }

    /// Every source laid over the other, with this environment and working directory.
    pub(super) fn gather(&self, environment: &[(OsString, OsString)], directory: &Path) -> Gathered {
        let file = self.file(environment, directory);
        let (mut document, mut problems) = match read_file(file.as_deref(), directory) {
            Ok(document) => (document, Problems::default()),
            // The others are still looked at: what is wrong with them is said now, too.
            Err(problems) => (Document::empty("settings"), problems),
        };
        problems.extend(secrets::refused(&document));
        problems.extend(environment::apply(environment, &mut document));
        problems.extend(self.apply_flags(&mut document));
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        Gathered { folder: directory.join(folder), document, problems }
    }

    fn file(&self, environment: &[(OsString, OsString)], directory: &Path) -> Option<PathBuf> {
        let named = environment.iter().find(|(name, value)| name == environment::CONFIG && !value.is_empty());
        let found = || {
            let places = ["pixfleet.toml", "/etc/pixfleet/pixfleet.toml"];
            places.into_iter().map(PathBuf::from).find(|place| directory.join(place).exists())
        };
        self.config.clone().or_else(|| named.map(|(_, path)| path.into())).or_else(found)
    }

    fn apply_flags(&self, document: &mut Document) -> Problems {
        let (known, mut problems) = (fields::fields(), Problems::default());
        // Apart from the others first: a flag is seen by everyone on the machine, so a secret is refused in one.
        let mut flags = Document::empty("--set");
        for flag in &self.set {
            let Some((field, text)) = flag.split_once('=') else {
                problems.push(Problem::of(
                    "--set",
                    "no `=`: write --set FIELD=VALUE, like --set worker.concurrency=8",
                ));
                continue;
            };
            let value = match known.iter().find(|known| known.name == field) {
                Some(field) => field.value(text),
                None => fields::toml_value(text).unwrap_or_else(|| text.into()),
            };
            let origin = format!("--set {field}");
            if !field.contains('[') {
                problems.extend(flags.set(field, value.clone(), &origin).err());
            }
            problems.extend(document.set(field, value, &origin).err());
        }
        problems.extend(secrets::refused(&flags));
        problems
    }
}

/// All sources in one document, and what was wrong with them so far.
pub(super) struct Gathered {
    document: Document,
    folder: PathBuf,
    problems: Problems,
}

impl Gathered {
    pub(super) fn read(mut self) -> Result<Loaded, Problems> {
        match self.document.read::<Config>() {
            Ok(config) => {
                self.problems.extend(config.problems(&self.document));
                self.problems.or(Loaded { config, document: self.document })
            }
            Err(more) => {
                self.problems.extend(more);
                Err(self.problems)
            }
        }
    }

    pub(super) fn read_with_providers(self, keys: Keys) -> Result<(Loaded, Catalog), Problems> {
        let catalog = self.catalog(keys);
        match (self.read(), catalog) {
            (Ok(loaded), Ok(catalog)) => Ok((loaded, catalog)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
            (Err(mut problems), Err(more)) => {
                problems.extend(more);
                Err(problems)
            }
        }
    }

    pub(super) fn read_with_provider(self, name: Option<&str>) -> Result<(Loaded, Provider), Problems> {
        let folder = self.folder.clone();
        let loaded = self.read()?;
        let provider = chosen(&loaded.document, name)?;
        let own = loaded.document.subtable(&format!("providers.\"{provider}\""));
        let own = own.unwrap_or_else(|| Document::empty("settings"));
        let provider = Provider::load(&provider, &own, Source::process(&folder))?;
        Ok((loaded, provider))
    }

    fn catalog(&self, keys: Keys) -> Result<Catalog, Problems> {
        if keys == Keys::Needed {
            return Catalog::load(&self.document, Source::process(&self.folder));
        }
        // Every provider finds a key that is none, wherever its own would be: nothing is ever sent with it.
        let mut document = self.document.clone();
        let providers = document.subtable("providers");
        for name in providers.iter().flat_map(Document::keys) {
            // What is not a table is reported by the catalog, with its line.
            let _ =
                document.set(&format!("providers.\"{name}\".auth.key_env"), "NOT_NEEDED".into(), "enqueue");
        }
        let source = Source { env: &|_| Some("not needed".to_owned()), folder: &self.folder };
        Catalog::load(&document, source)
    }
}

/// The name of the provider that is meant.
fn chosen(document: &Document, name: Option<&str>) -> Result<String, Problem> {
    let tables = document.subtable("providers");
    let known: Vec<&str> = tables.iter().flat_map(Document::keys).collect();
    let presets: Vec<&str> = preset_names().collect();
    let refused = |message: String| Err(Problem::of("--provider", message));
    let Some(name) = name else {
        return match known.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => refused(format!(
                "the settings name no provider: give --provider, one of the presets {}, or describe your own \
                 (docs/providers.md)",
                presets.join(", ")
            )),
            several => {
                refused(format!("the settings name several: say which, --provider {}", several.join("|")))
            }
        };
    };
    if known.contains(&name) || presets.contains(&name) {
        return Ok(name.to_owned());
    }
    let meant = match nearest(name, known.iter().chain(&presets).copied()) {
        Some(meant) => format!("did you mean `{meant}`? "),
        None => String::new(),
    };
    let of_settings = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    refused(format!(
        "there is no provider `{name}`: {meant}presets: {}; of the settings: {of_settings}. Describe your own in \
         [providers.{name}] (docs/providers.md)",
        presets.join(", ")
    ))
}

fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

fn read_file(file: Option<&Path>, directory: &Path) -> Result<Document, Problems> {
    let Some(path) = file else {
        return Ok(Document::empty("settings"));
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(directory.join(path))
        .map_err(|error| Problem::of(&name, format!("the settings file can't be read: {error}")))?;
    Document::parse(&name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Given {
        directory: tempfile::TempDir,
        environment: Vec<(OsString, OsString)>,
        sources: Sources,
    }

    fn given(toml: &str, environment: &[(&str, &str)], set: &[&str]) -> Given {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("pixfleet.toml"), toml).unwrap();
        Given {
            directory,
            environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            sources: Sources { config: None, set: set.iter().map(|&flag| flag.to_owned()).collect() },
        }
    }

    impl Given {
        fn load(&self) -> Result<Loaded, Problems> {
            self.gathered().read()
        }

        fn gathered(&self) -> Gathered {
            self.sources.gather(&self.environment, self.directory.path())
        }

        fn problems(&self) -> String {
            self.load().err().map(|problems| problems.to_string()).unwrap_or_default()
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_flags_over_both() {
        let toml = "[rabbitmq]\nlanes = 1\nheartbeat_s = 11\n[log]\nfilter = 'warn'";
        let environment = [("PIXFLEET_RABBITMQ_LANES", "2"), ("PIXFLEET_LOG_FILTER", "error")];
        let loaded = given(toml, &environment, &["rabbitmq.lanes=3"]).load().unwrap();
        assert_eq!(loaded.config.rabbitmq.lanes, 3);
        assert_eq!(loaded.config.log.filter, "error");
        assert_eq!(loaded.config.rabbitmq.heartbeat_s, 11);
        assert_eq!(loaded.document.origin("rabbitmq.lanes"), "--set rabbitmq.lanes");
        assert_eq!(loaded.document.origin("rabbitmq.heartbeat_s"), "pixfleet.toml:3");
    }

    #[test]
    fn no_file_at_all_means_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = Sources::default().gather(&[], directory.path()).read().unwrap();
        assert_eq!(loaded.config, Config::default());
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let given = given("", &[("PIXFLEET_CONFIG", "other.toml")], &[]);
        assert!(
            given.problems().starts_with("other.toml: the settings file can't be read: "),
            "{}",
            given.problems()
        );
    }

    #[test]
    fn what_is_wrong_in_every_source_is_said_at_once() {
        let toml = "[rabbitmq]\nlanse = 4\nurl = 'amqp://me:hunter2@mq'\n[admin]\nlisten = 9600\n";
        let environment = [("PIXFLEET_RABBITMQ_LANES", "none"), ("PIXFLEET_LOG_FORMT", "json")];
        let flags = ["log.format=yaml", "redis.url=redis://:hunter2@r", "nonsense"];
        let problems = given(toml, &environment, &flags).problems();
        let starts = [
            "--set: no `=`",
            "--set log.format: log.format: found the text `yaml`: give `text` or `json`",
            "--set redis.url: redis.url: holds a password: put the URL into PIXFLEET_REDIS_URL",
            "PIXFLEET_LOG_FORMT: unknown variable: did you mean `PIXFLEET_LOG_FORMAT`?",
            "PIXFLEET_RABBITMQ_LANES: rabbitmq.lanes: found the text `none`: give a whole number from 1 to 16",
            "pixfleet.toml:2: rabbitmq.lanse: unknown key: did you mean `lanes`?",
            "pixfleet.toml:3: rabbitmq.url: holds a password",
            "pixfleet.toml:5: admin.listen: found 9600: give a text",
        ];
        assert_eq!(problems.lines().count(), starts.len(), "{problems}");
        for (line, start) in problems.lines().zip(starts) {
            assert!(line.starts_with(start), "{line}\ndoes not start with\n{start}");
        }
        assert!(!problems.contains("hunter2"));
    }

    #[test]
    fn values_that_only_a_library_can_read_are_checked_too() {
        let toml =
            "[rabbitmq]\nurl = 'http://mq'\n[log]\nfilter = 'pixfleet=loud'\n[admin]\nlisten = 'here'\n";
        let problems = given(toml, &[], &[]).problems();
        for start in [
            "pixfleet.toml:2: rabbitmq.url: ",
            "pixfleet.toml:4: log.filter: ",
            "pixfleet.toml:6: admin.listen: ",
        ] {
            assert!(problems.lines().any(|line| line.starts_with(start)), "{problems}");
        }
    }

    #[test]
    fn a_password_is_welcome_in_the_environment() {
        let given = given("", &[("PIXFLEET_RABBITMQ_URL", "amqp://me:hunter2@mq/v")], &[]);
        assert_eq!(given.load().unwrap().config.rabbitmq.url, "amqp://me:hunter2@mq/v");
    }

    #[test]
    fn a_provider_keeps_its_table_and_its_lines() {
        let toml = "[providers.\"my api\"]\npreset = 'restb'\nlimits = [{ name = 'rate', calls = 4 }]\n";
        let loaded = given(toml, &[], &["providers.\"my api\".limits[0].calls=8"]).load().unwrap();
        let table = loaded.document.subtable("providers.\"my api\"").unwrap();
        assert_eq!(table.get("limits[0].calls"), Some(8.into()));
        assert_eq!(
            table.problem("preset", "unknown").to_string(),
            "pixfleet.toml:2: providers.\"my api\".preset: unknown"
        );
    }

    #[test]
    fn what_is_wrong_with_a_provider_is_said_with_the_rest() {
        let toml = "[log]\nfiltr = 'info'\n[providers.mine]\npreset = 'restbb'\n";
        let problems =
            given(toml, &[], &[]).gathered().read_with_providers(Keys::Needed).err().unwrap().to_string();
        assert!(problems.starts_with("pixfleet.toml:2: log.filtr: "), "{problems}");
        assert!(problems.contains("\npixfleet.toml:4: providers.mine.preset: "), "{problems}");
    }

    #[test]
    fn a_key_is_demanded_of_a_worker_and_not_of_an_enqueue() {
        let toml = "[providers.mine]\npreset = 'restb'\nauth.key_file = '/nowhere'\nauth.key_env = 'PIXFLEET_TEST_NO_KEY'\n";
        let given = given(toml, &[], &[]);
        let problems = given.gathered().read_with_providers(Keys::Needed).err().unwrap().to_string();
        assert!(problems.contains("/nowhere"), "{problems}");
        let (_, catalog) = given.gathered().read_with_providers(Keys::NotNeeded).ok().unwrap();
        assert_eq!(catalog.iter().count(), 1);
    }

    #[test]
    fn a_command_that_one_waits_for_is_quiet_unless_told_otherwise() {
        let told = given("[log]\nfilter = 'debug'", &[], &[]).load().unwrap();
        assert_eq!(told.quiet_log().filter, "debug");
        let untold = given("", &[], &[]).load().unwrap();
        assert_eq!(untold.quiet_log().filter, "warn,lapin=off");
        assert_eq!(untold.log(), Config::default().log);
    }
}
