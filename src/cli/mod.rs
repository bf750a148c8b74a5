//! The command line: one file for each command, with its arguments and what it does.

mod cluster;
mod create;
mod doctor;
mod env;
mod image;
mod inspect;
mod logs;
mod ls;
mod power;
mod provision;
mod publish;
mod render;
mod report;
mod rm;
mod shell;
mod ssh;
mod ssh_config;
mod table;
mod where_is;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use forge::event::Events;
use forge::interrupt;
use forge::machine::{Forge, companions};
use forge::registry::{self, Pick};
use forge::store::Store;
use forge_driver::assets::Assets;
use forge_driver::{Error, Kind, Result};

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

/// In the help of every command.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, or a plan that has changes (`cluster up --dry-run`), 3 a pre-check failed and nothing was touched, 130 interrupted; `forge ssh` ends with the code of the remote command.";

/// What every command understands.
#[derive(Args, Clone)]
pub struct Global {
    /// Keep everything in this folder [default: ~/.forge]
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
}

#[derive(Subcommand)]
enum Commands {
    Create(create::Create),
    Ls(ls::Ls),
    Env(env::Env),
    Ssh(ssh::Ssh),
    SshConfig(ssh_config::SshConfig),
    Ip(where_is::Ip),
    Url(where_is::Url),
    Status(where_is::Status),
    Inspect(inspect::Inspect),
    Start(power::Start),
    Stop(power::Stop),
    Restart(power::Restart),
    Kill(power::Kill),
    Provision(provision::Provision),
    Publish(publish::Publish),
    Logs(logs::Logs),
    Rm(rm::Rm),
    /// Form and keep clusters
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Build and keep base images
    #[command(subcommand)]
    Image(image::Image),
    Doctor(doctor::Doctor),
}

/// The name of a machine that is left out.
pub const DEFAULT_MACHINE: &str = "default";

/// Parses, runs, and says how it ended.
pub fn main() -> ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if words
        .get(1)
        .is_some_and(|word| word == registry::SWITCH_COMMAND)
    {
        return switch(words.get(2));
    }
    let named = driver_named(&words);
    let picked = picked(&words, named.as_deref());
    let whole = command(called(&words), named.as_deref(), picked.as_ref());
    let matches = match whole.try_get_matches_from(&words) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version go to stdout and are no error; a closed pipe ends them silently.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
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
    let code = runtime.block_on(run(cli, &matches, picked));
    // A thread that still reads standard input would hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(10));
    code
}

/// The name that this program was started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    Forge,
    /// Of a link; scripts expect what docker-machine did.
    DockerMachine,
}

fn called(words: &[std::ffi::OsString]) -> Called {
    let name = words.first().and_then(|word| Path::new(word).file_name());
    if name.is_some_and(|name| name == "docker-machine") {
        Called::DockerMachine
    } else {
        Called::Forge
    }
}

/// The driver that is taken because none is named. The host is looked at for the commands alone that have a
/// driver's options.
fn picked(words: &[std::ffi::OsString], named: Option<&str>) -> Option<Pick> {
    let asks = words.iter().any(|word| word == "create" || word == "up");
    (named.is_none() && asks).then(|| registry::pick(words))
}

/// The whole command, with the options of one driver; the named one's stand in the help.
fn command(called: Called, named: Option<&str>, picked: Option<&Pick>) -> Command {
    let entry = named
        .and_then(|id| registry::find(id).ok())
        .or(picked.map(|picked| picked.entry))
        .unwrap_or(&registry::all()[0]);
    let show = named.is_some();
    let with_options = |command: Command| {
        let before: Vec<String> = command
            .get_arguments()
            .map(|argument| argument.get_id().to_string())
            .collect();
        // The driver's options bring a description of their own along.
        let (about, long) = (
            command.get_about().cloned(),
            command.get_long_about().cloned(),
        );
        let augmented = (entry.augment)(command);
        let command = match called {
            Called::Forge => augmented,
            Called::DockerMachine => registry::as_docker_machine(entry, augmented),
        };
        let command = command
            .about(about.unwrap_or_default())
            .long_about(long.unwrap_or_default());
        let added: Vec<String> = command
            .get_arguments()
            .map(|argument| argument.get_id().to_string())
            .filter(|id| !before.contains(id))
            .collect();
        added.into_iter().fold(command, |command, id| {
            command.mut_arg(id, |argument| argument.hide(!show))
        })
    };
    let command = Cli::command()
        .mut_subcommand("create", with_options)
        .mut_subcommand("cluster", |cluster| {
            cluster.mut_subcommand("up", with_options)
        });
    with_codes(command)
}

/// The exit codes stand in the help of every command.
fn with_codes(command: Command) -> Command {
    command.after_help(EXIT_CODES).mut_subcommands(with_codes)
}

/// The driver that the words or the environment name; the parser proper judges it later.
fn driver_named(words: &[std::ffi::OsString]) -> Option<String> {
    let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        match word {
            "--" => break,
            "--driver" | "-d" => return words.next().map(str::to_owned),
            _ => {
                let short = || Some(word.strip_prefix("-d")?.trim_start_matches('='));
                if let Some(value) = word.strip_prefix("--driver=").or_else(short) {
                    return Some(value.to_owned());
                }
            }
        }
    }
    configured_driver()
}

/// The driver that the environment names; an empty variable names none.
fn configured_driver() -> Option<String> {
    std::env::var("FORGE_DRIVER")
        .ok()
        .filter(|id| !id.is_empty())
}

fn switch(folder: Option<&std::ffi::OsString>) -> ExitCode {
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
    picked: Option<Pick>,
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
            return std::path::absolute(path).map_err(|error| {
                Error::new(
                    Kind::Usage,
                    format!("`{}` cannot be a store", path.display()),
                )
                .because(error)
            });
        }
        std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(|home| PathBuf::from(home).join(".forge"))
            .ok_or_else(|| {
                Error::new(Kind::Usage, "there is no HOME to keep a store in")
                    .hint("set FORGE_HOME")
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
        let drawing = Drawing::start(self.style, receiver, &store, command)?;
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

    fn forge(&self, store: Store, events: Events) -> Forge {
        Forge {
            store,
            assets: self.assets(),
            events,
            patience: self.patience(),
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
}

async fn run(cli: Cli, matches: &ArgMatches, picked: Option<Pick>) -> ExitCode {
    watch_signals();
    if cli.global.json {
        report::as_json();
    }
    let style = if cli.global.json {
        Style::Json
    } else if std::io::stderr().is_terminal() && !cli.global.debug {
        Style::Bars
    } else {
        Style::Plain {
            debug: cli.global.debug,
        }
    };
    let session = Session {
        global: cli.global,
        style,
        picked,
    };
    let done = match cli.command {
        Commands::Create(command) => command.run(&session, leaf(matches)).await,
        Commands::Ls(command) => command.run(&session).await,
        Commands::Env(command) => command.run(&session).await,
        Commands::Ssh(command) => command.run(&session).await,
        Commands::SshConfig(command) => command.run(&session),
        Commands::Ip(command) => command.run(&session),
        Commands::Url(command) => command.run(&session).await,
        Commands::Status(command) => command.run(&session).await,
        Commands::Inspect(command) => command.run(&session),
        Commands::Start(command) => command.run(&session).await,
        Commands::Stop(command) => command.run(&session).await,
        Commands::Restart(command) => command.run(&session).await,
        Commands::Kill(command) => command.run(&session).await,
        Commands::Provision(command) => command.run(&session).await,
        Commands::Publish(command) => command.run(&session).await,
        Commands::Logs(command) => command.run(&session).await,
        Commands::Rm(command) => command.run(&session).await,
        Commands::Cluster(command) => command.run(&session, leaf(matches)).await,
        Commands::Image(command) => command.run(&session).await,
        Commands::Doctor(command) => command.run(&session).await,
    };
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => report::failed(&error, None),
    }
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
    tokio::spawn(async {
        let Ok(mut term) =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        else {
            return;
        };
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
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
    use super::*;

    fn words(text: &str) -> Vec<std::ffi::OsString> {
        text.split(' ').map(Into::into).collect()
    }

    /// What the parser makes of a line.
    fn parsed(text: &str) -> std::result::Result<ArgMatches, clap::Error> {
        let all = words(text);
        let named = driver_named(&all);
        let picked = picked(&all, named.as_deref());
        command(called(&all), named.as_deref(), picked.as_ref()).try_get_matches_from(&all)
    }

    #[test]
    fn the_whole_command_holds_together_with_every_driver() {
        for entry in registry::all() {
            for called in [Called::Forge, Called::DockerMachine] {
                command(called, Some(entry.id), None).debug_assert();
            }
        }
        command(Called::Forge, None, None).debug_assert();
    }

    #[test]
    fn the_driver_is_found_wherever_it_stands() {
        for text in [
            "forge create n1 --driver x",
            "forge create --driver=x n1",
            "forge cluster up -d x",
            "forge create -dx n1",
            "forge create -d=x n1",
        ] {
            assert_eq!(driver_named(&words(text)).as_deref(), Some("x"), "{text}");
        }
        assert_eq!(
            driver_named(&words("forge ssh n1 -- --driver x")),
            std::env::var("FORGE_DRIVER").ok()
        );
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
