//! The command line: one file for each command, with its arguments and what it does.

// In place of the standard library's, which panic when nobody reads or nothing can be written any more.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!($($text)*)) };
}
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

mod active;
mod adopt;
mod argv;
mod ask;
mod authority;
mod classic_swarm;
mod cluster;
mod completions;
mod config;
mod create;
mod credentials;
mod defaults;
mod doctor;
mod engine;
mod env;
mod export;
mod format;
mod image;
mod import;
mod inspect;
mod led;
mod line;
mod logs;
mod ls;
mod man;
mod mount;
mod names;
mod out;
mod outcome;
mod passphrase;
mod persona;
mod place;
mod power;
mod provision;
mod publish;
mod regenerate;
mod render;
mod report;
mod rm;
mod scp;
mod settings;
mod shell;
mod ssh;
mod ssh_config;
mod sudo;
mod table;
mod tree;
mod turns;
mod upgrade;
mod use_;
mod version;
mod wait;
mod where_is;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use forge::credentials::{Credentials, Passphrases};
use forge::event::Events;
use forge::interrupt;
use forge::machine::{Forge, companions};
use forge::registry::{self, Pick};
use forge::secret::Secret;
use forge::store::Store;
use forge_driver::assets::Assets;
use forge_driver::{Error, Fact, Kind, Result};
use tokio::signal::unix::{SignalKind, signal};

use argv::Rewritten;
use defaults::Defaults;
use line::{Parsed, parsed, read};
use persona::Persona;
use render::{Drawing, Style};

/// From nothing to a running container cluster: virtual machines, engines with TLS, Swarm.
#[derive(Parser)]
#[command(
    name = "forge",
    version,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = false
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Commands,
}

/// What every command understands.
#[derive(Args, Clone)]
pub struct Global {
    /// Keep everything in this folder [default: $MACHINE_STORAGE_PATH, else ~/.forge]
    #[arg(
        short = 's',
        long,
        global = true,
        value_name = "DIR",
        env = "FORGE_HOME",
        hide_env_values = true
    )]
    storage_path: Option<PathBuf>,
    /// Let one wait take at most this many seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600, env = "FORGE_TIMEOUT", hide_env_values = true, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Show every event as it happens
    #[arg(short = 'D', long, global = true, env = "FORGE_DEBUG", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    debug: bool,
    /// Speak SSH without the programs of OpenSSH; `mount` and `scp --delta` need them all the same
    #[arg(long, global = true, env = "FORGE_NATIVE_SSH", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    native_ssh: bool,
    /// Print JSON: one document, or one line for each event and a summary
    #[arg(long, global = true)]
    json: bool,
    /// Let files in DIR/templates and DIR/playbooks stand in for the embedded ones
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FORGE_TEMPLATES_DIR",
        hide_env_values = true
    )]
    templates_dir: Option<PathBuf>,
    #[command(flatten)]
    tls: authority::TlsFiles,
}

#[derive(Subcommand)]
enum Commands {
    Create(create::Create),
    Ls(ls::Ls),
    Env(env::Env),
    Active(active::Active),
    Config(config::Config),
    Use(use_::Use),
    Ssh(ssh::Ssh),
    Scp(scp::Scp),
    Mount(mount::Mount),
    SshConfig(ssh_config::SshConfig),
    Ip(where_is::Ip),
    Upgrade(upgrade::Upgrade),
    Url(where_is::Url),
    Status(where_is::Status),
    Inspect(inspect::Inspect),
    Start(power::Start),
    Stop(power::Stop),
    Restart(power::Restart),
    Kill(power::Kill),
    Provision(provision::Provision),
    Publish(publish::Publish),
    RegenerateCerts(regenerate::RegenerateCerts),
    Logs(logs::Logs),
    Rm(rm::Rm),
    Export(export::Export),
    Import(import::Import),
    /// Form and keep clusters
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Build and keep base images
    #[command(subcommand)]
    Image(image::Image),
    /// Keep tokens of providers and passwords of hosts
    #[command(subcommand)]
    Credentials(credentials::Credentials),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
    Version(version::Version),
}

/// The name of a machine that is left out.
pub const DEFAULT_MACHINE: &str = "default";

/// Parses, runs, and says how it ended.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words
        .get(1)
        .is_some_and(|word| word == registry::SWITCH_COMMAND)
    {
        return switch(words.get(2));
    }
    let persona = Persona::of(words.first());
    let Rewritten {
        words,
        command: asked,
    } = read(persona, words);
    let Parsed {
        matches,
        picked,
        defaults,
    } = match parsed(persona, &words, &asked) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    if persona == Persona::DockerMachine
        && let Err(error) = classic_swarm::none_in(&matches)
    {
        return report::failed(&error, None);
    }
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return report::failed(
                &Error::new(Kind::Io, "forge could not start").because(error),
                None,
            );
        }
    };
    let code = runtime.block_on(run(cli, &matches, persona, picked, defaults));
    // A thread that still reads standard input would hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(10));
    code
}

fn switch(folder: Option<&OsString>) -> ExitCode {
    let Some(folder) = folder else {
        return report::failed(&Error::new(Kind::Usage, "the switch needs a folder"), None);
    };
    match forge_qemu::run_switch(folder.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failed(&error, None),
    }
}

/// How a command ended when it did not fail.
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Another exit code, with nothing more to say.
    Code(u8),
}

/// What a command is given.
pub struct Session {
    global: Global,
    style: Style,
    persona: Persona,
    picked: Option<Pick>,
    /// Tokens that flags of this command gave, by driver.
    given: BTreeMap<&'static str, Secret>,
    typed: Arc<passphrase::Typed>,
    /// What settings say.
    pub defaults: Defaults,
}

/// A store of the moment; nothing of it stays.
pub struct Passing {
    /// What works with it.
    pub forge: Forge,
    _folder: tempfile::TempDir,
}

impl Drop for Passing {
    fn drop(&mut self) {
        registry::leave_runtime(&self.forge.store);
    }
}

impl Session {
    /// The folder of the store.
    ///
    /// # Errors
    /// When neither a flag nor a variable nor HOME says where it is.
    pub fn root(&self) -> Result<PathBuf> {
        if let Some(path) = &self.global.storage_path {
            return absolute(path);
        }
        defaults::store_at_home().ok_or_else(|| {
            Error::new(Kind::Usage, "there is no HOME to keep a store in").hint("set FORGE_HOME")
        })
    }

    /// The store for a command that changes nothing; `None` when there is none yet.
    ///
    /// # Errors
    /// As [`Store::existing`].
    pub fn existing(&self) -> Result<Option<Store>> {
        Store::existing(&self.root()?)
    }

    /// What a command that only reads works with.
    ///
    /// # Errors
    /// When there is no store yet: then there are no machines either.
    pub fn reader(&self) -> Result<Forge> {
        let store = self.existing()?.ok_or_else(|| {
            Error::new(Kind::NotFound, "there is nothing here yet: no machine, no cluster, no image")
                .hint("`forge create n1` makes a machine, `forge cluster up` a cluster; FORGE_HOME says where they are looked for")
                .fact(Fact::NothingYet)
        })?;
        Ok(self.forge(store, Events::silent()))
    }

    /// What a command that changes something works with, and the task that draws it.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn worker(&self, command: &str) -> Result<(Forge, Drawing)> {
        let store = Store::open(&self.root()?)?;
        let (events, receiver) = Events::channel();
        let style = match self.style {
            // Of what docker-machine did not do, it has no words.
            Style::Words { debug } if !persona::has_words(command) => Style::Plain { debug },
            style => style,
        };
        let drawing = Drawing::start(style, receiver, &store, command)?;
        // What serves other programs alone holds no command up.
        if let Err(error) = companions::follow(&store) {
            report::note(&format!("warning: {}", error.line()));
        }
        Ok((self.forge(store, events), drawing))
    }

    /// An empty store of the moment, for a command that looks around where there is none yet: it goes with the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn passing(&self) -> Result<Passing> {
        let folder = tempfile::tempdir().map_err(|error| {
            Error::new(Kind::Io, "failed to make a folder to look around in").because(error)
        })?;
        let store = Store::open(&folder.path().join("store"))?;
        Ok(Passing {
            forge: self.forge(store, Events::silent()),
            _folder: folder,
        })
    }

    /// Whoever knows the passphrase of the sealed file: one for the whole command, which asks once.
    pub fn passphrases(&self) -> Arc<dyn Passphrases> {
        self.typed.clone()
    }

    /// The secrets of a store; `passphrases` knows that of the sealed file.
    pub fn credentials(&self, store: &Store, passphrases: Arc<dyn Passphrases>) -> Credentials {
        Credentials::new(store, passphrases, self.patience(), self.given.clone())
    }

    fn forge(&self, store: Store, events: Events) -> Forge {
        Forge {
            credentials: self.credentials(&store, self.passphrases()),
            store,
            assets: self.assets(),
            events,
            patience: self.patience(),
            sudo: Arc::default(),
        }
    }

    /// Templates and playbooks.
    pub fn assets(&self) -> Assets {
        Assets::new(self.global.templates_dir.clone())
    }

    /// `--timeout`
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.global.timeout)
    }

    /// `--json`
    pub fn json(&self) -> bool {
        self.global.json
    }

    /// `--native-ssh`
    pub fn native_ssh(&self) -> bool {
        self.global.native_ssh
    }

    /// Says something to whoever wants to see everything (`--debug`).
    pub fn tell(&self, text: &str) {
        if matches!(
            self.style,
            Style::Plain { debug: true } | Style::Words { debug: true }
        ) {
            report::note(text);
        }
    }

    /// The name that this program was started by.
    pub fn persona(&self) -> Persona {
        self.persona
    }

    /// Says something that docker-machine said, where its words are expected.
    pub fn say(&self, text: &str) {
        if !self.json() {
            self.persona.say(text);
        }
    }
}

/// A path from the root of the file system.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::new(
            Kind::Usage,
            format!("`{}` leads nowhere from here", path.display()),
        )
        .because(error)
    })
}

async fn run(
    cli: Cli,
    matches: &ArgMatches,
    persona: Persona,
    picked: Option<Pick>,
    defaults: Defaults,
) -> ExitCode {
    watch_signals();
    let debug = cli.global.debug;
    let style = if cli.global.json {
        Style::Json
    } else if persona == Persona::DockerMachine {
        Style::Words { debug }
    } else if std::io::stderr().is_terminal() && !debug {
        Style::Bars
    } else {
        Style::Plain { debug }
    };
    let session = Session {
        global: cli.global,
        style,
        persona,
        picked,
        given: tokens(leaf(matches)),
        typed: Arc::new(passphrase::Typed::new(None)),
        defaults,
    };
    if let Err(error) = authority::settle(&session, matches).await {
        return report::failed(&error, None);
    }
    let done = match cli.command {
        Commands::Create(command) => command.run(&session, leaf(matches)).await,
        Commands::Ls(command) => command.run(&session, leaf(matches)).await,
        Commands::Env(command) => command.run(&session).await,
        Commands::Active(command) => command.run(&session),
        Commands::Config(command) => command.run(&session, matches).await,
        Commands::Use(command) => command.run(&session).await,
        Commands::Ssh(command) => command.run(&session).await,
        Commands::Scp(command) => command.run(&session).await,
        Commands::Mount(command) => command.run(&session).await,
        Commands::SshConfig(command) => command.run(&session),
        Commands::Ip(command) => command.run(&session).await,
        Commands::Url(command) => command.run(&session).await,
        Commands::Status(command) => command.run(&session, leaf(matches)).await,
        Commands::Inspect(command) => command.run(&session),
        Commands::Start(command) => command.run(&session).await,
        Commands::Stop(command) => command.run(&session).await,
        Commands::Restart(command) => command.run(&session).await,
        Commands::Kill(command) => command.run(&session).await,
        Commands::Provision(command) => command.run(&session, leaf(matches)).await,
        Commands::Publish(command) => command.run(&session).await,
        Commands::RegenerateCerts(command) => command.run(&session).await,
        Commands::Logs(command) => command.run(&session).await,
        Commands::Rm(command) => command.run(&session).await,
        Commands::Export(command) => command.run(&session).await,
        Commands::Import(command) => command.run(&session).await,
        Commands::Cluster(command) => command.run(&session, leaf(matches)).await,
        Commands::Image(command) => command.run(&session).await,
        Commands::Credentials(command) => command.run(&session).await,
        Commands::Doctor(command) => command.run(&session).await,
        Commands::Completions(command) => command.run(&session),
        Commands::Man(command) => command.run(&session),
        Commands::Upgrade(command) => command.run(&session).await,
        Commands::Version(command) => command.run(&session).await,
    };
    // What failed before says more.
    let done = match (done, out::finish()) {
        (Ok(_), Err(error)) => Err(error),
        (done, _) => done,
    };
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => report::failed(&unnamed(error, matches), None),
    }
}

/// That the machine which stands for an omitted name is not there says less than that no machine was named.
fn unnamed(error: Error, matches: &ArgMatches) -> Error {
    match error.deepest_fact() {
        Some(fact @ Fact::NoMachine(name))
            if name == DEFAULT_MACHINE && persona::Line::of(matches).names_none() =>
        {
            Error::new(
                Kind::NotFound,
                format!("no machine is named, and there is no machine `{DEFAULT_MACHINE}`"),
            )
            .hint("`forge ls` shows the machines")
            .fact(fact.clone())
        }
        _ => error,
    }
}

/// The tokens that flags gave, by driver: those that everybody on this host can see while the command runs.
fn tokens(matches: &ArgMatches) -> BTreeMap<&'static str, Secret> {
    let mut given = BTreeMap::new();
    for entry in registry::all() {
        let Some(option) = entry.token else { continue };
        let Ok(Some(secret)) = matches.try_get_one::<Secret>(option.flag) else {
            continue;
        };
        if matches.value_source(option.flag) == Some(ValueSource::CommandLine) {
            report::note(&format!(
                "warning: everybody on this host sees the token in the process list while this runs; {} or `forge credentials set {}` does not show it",
                option.variable, entry.id
            ));
            given.insert(entry.id, secret.clone());
        }
    }
    given
}

/// The matches of the innermost subcommand: what a driver's options are read from.
fn leaf(matches: &ArgMatches) -> &ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => leaf(inner),
        None => matches,
    }
}

/// The first Ctrl-C (or SIGTERM) is a wish that the work checks between steps; the second one leaves.
fn watch_signals() {
    // They are caught from here on, whenever the task gets its first turn.
    let (Ok(mut int), Ok(mut term)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            if interrupt::passed_on() {
                continue;
            }
            // `timeout` signals its child, and then the group that the child is in: one wish, said twice.
            if first.is_some_and(|first| first.elapsed() < Duration::from_millis(500)) {
                continue;
            }
            first.get_or_insert_with(Instant::now);
            if interrupt::request() {
                std::process::exit(130);
            }
            report::note(
                "interrupted: finishing the step under way and saving; once more leaves at once",
            );
        }
    });
}

#[cfg(test)]
mod tests {
    use super::tree::{command, driver_named, picked};
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(Into::into).collect()
    }

    /// What the parser makes of a line.
    fn parsed(text: &str) -> std::result::Result<ArgMatches, clap::Error> {
        let all = words(text);
        let persona = Persona::of(all.first());
        let all = read(persona, all).words;
        let named = driver_named(&all);
        let picked = picked(persona, &all, named.as_deref());
        command(persona, named.as_deref(), picked.as_ref()).try_get_matches_from(&all)
    }

    #[test]
    fn options_of_a_driver_work_without_naming_it_and_stay_out_of_the_common_help() {
        for text in [
            "forge create --qemu-memory 2048 n2",
            "forge cluster up --virtualbox-memory 2048",
        ] {
            parsed(text).expect("parses");
        }
        let help = |text: &str| parsed(text).expect_err("help").to_string();
        assert!(!help("forge create --help").contains("--qemu-memory"));
        assert!(help("forge create --driver qemu --help").contains("--qemu-memory"));
    }

    #[test]
    fn under_the_name_docker_machine_the_second_interface_is_host_only() {
        let network = |program: &str| {
            let matches = parsed(&format!("{program} create --driver virtualbox n1"));
            let entry = registry::find("virtualbox").expect("a driver");
            let (config, _) = (entry.resolve)(leaf(&matches.expect("parses"))).expect("resolved");
            (entry.network)(&config).expect("a network").expect("one")
        };
        assert_eq!(network("/usr/bin/forge").to_string(), "10.133.7.0/24");
        let link = network("/usr/local/bin/docker-machine");
        assert_eq!(link.to_string(), "192.168.60.0/24");
    }

    #[test]
    fn an_option_of_another_driver_is_an_error() {
        let error =
            parsed("forge create --driver qemu --virtualbox-memory 2048 n2").expect_err("unknown");
        assert_eq!(error.exit_code(), 2);
    }
}
