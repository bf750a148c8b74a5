//! Hosts that were there before forge: adopted, kept, and left as they were found.
//!
//! ```text
//! met (trusted, its user logs in) → Claimed → Launched (forge's own key is let in) → Reached (by that key) → Ready
//! ```
//!
//! Nothing is sent to a host before its key is trusted, nothing is changed on it before its claim is on disk.

mod key;
mod meet;
mod plan;
mod restart;
mod settle;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::{Driver, Error, Instance, Kind, Result, locate};

pub use meet::{Ask, Met, Route, meet};
pub use plan::{Facts, Glance, Plan, look};
pub use restart::restart;
pub use settle::{ROOT, Said};

use super::access::{self, Access, Connection, Door};
use super::create::{Up, Wish};
use super::{Forge, Jump, Record, SshAccess, Stage, provision};
use crate::engine::back::{self, End};
use crate::engine::found::{Found, Start};
use crate::engine::settings::Settings;
use crate::http::Stream;
use crate::interrupt;
use crate::playbook::{self, Secrets, Vars};
use crate::remote::login::{self, Entered, Identities, Unlock};
use crate::remote::ssh::{Phase, SshGuest, failed_phase, tcp};
use crate::remote::{Expect, Guest, WithPassword};
use crate::secret::Secret;
use crate::store::Store;
use tokio::time::{Instant, timeout};

/// What a wish knows of a host that was met.
#[derive(Clone, Debug)]
pub struct Adopting {
    /// Where its SSH server is.
    pub ssh: SocketAddr,
    /// The port of its engine.
    pub engine_port: u16,
    /// How SSH is entered.
    pub access: SshAccess,
    /// What is remembered of it, be it an engine that is known by its URL alone.
    pub adopted: Option<super::Adopted>,
}

impl Adopting {
    /// What a new record says of where it is.
    pub(super) fn instance(&self) -> Instance {
        Instance::at(self.ssh.ip(), self.ssh.port(), self.engine_port)
    }
}

/// Refuses a host that this store has already, under another name.
///
/// # Errors
/// [`Kind::Exists`] with that name.
pub fn only_once(store: &Store, wish: &Wish) -> Result<()> {
    let Some(adopting) = &wish.adopting else {
        return Ok(());
    };
    let instance = adopting.instance();
    if !instance.located() {
        return Ok(());
    }
    let at = instance.endpoints;
    for (name, record) in Record::all(store)? {
        let Ok(record) = record else { continue };
        let there = record
            .endpoints()
            .is_ok_and(|there| there.engine == at.engine);
        if name != wish.name && there {
            return Err(Error::new(
                Kind::Exists,
                format!("the engine at {} is machine `{name}` already", at.engine),
            )
            .hint(format!(
                "`forge rm {name}` leaves it as it was; then adopt it by another name"
            )));
        }
    }
    Ok(())
}

/// Brings up a host that its user has just entered, by `user`'s connection. `glance` is what a [`look`] at it came to, where
/// nothing has been waited for since. The caller holds the machine's lock.
///
/// # Errors
/// As [`create::bring_up`](super::create::bring_up).
pub async fn bring_up(
    forge: &Forge,
    record: Record,
    user: Option<Connection>,
    glance: Option<Glance>,
) -> Result<Up> {
    let name = record.name.clone();
    access::enterable(&record)?;
    let driver = forge.driver(&record)?;
    climb(forge, record, &*driver, user, glance)
        .await
        .map_err(|error| error.context(format!("failed to bring up machine `{name}`")))
}

/// Takes an adopted host from whatever stage it is at to one with an engine that answers over TLS. `open` is the
/// connection of its user at the first time, `glance` what was found there a moment ago.
pub(super) async fn climb(
    forge: &Forge,
    mut record: Record,
    driver: &dyn Driver,
    mut open: Option<Connection>,
    glance: Option<Glance>,
) -> Result<Up> {
    let mut changed = 0;
    if record.stage == Stage::Claimed {
        interrupt::check()?;
        let user = open.as_ref().ok_or_else(|| nobody(&record))?;
        forge.events.step("first contact", "", None).await;
        key::let_in(&*user.guest, &key::line(forge, &record)?, forge.patience).await?;
        record.stage = Stage::Launched;
        record.save(&forge.store)?;
        changed += 1;
    }
    if record.stage == Stage::Launched {
        interrupt::check()?;
        let own = access::open(&*forge.access(&record)?, &record, forge.patience).await;
        let own = match own {
            Err(error) if failed_phase(&error) == Some(Phase::Authentication) => {
                return Err(not_let_in(forge, &record, open, error).await);
            }
            own => own?,
        };
        open = Some(own);
        record.stage = Stage::Reached;
        record.save(&forge.store)?;
        changed += 1;
    }
    let connection = match open {
        Some(open) => open,
        None => {
            if record
                .adopted
                .as_ref()
                .is_some_and(|host| host.jump.is_none())
            {
                record = super::reach::located(forge, driver, record, deadline(forge)).await?;
            }
            access::open(&*forge.access(&record)?, &record, forge.patience).await?
        }
    };
    let done = provision::apply_to(forge, record, &connection, glance).await?;
    Ok(Up {
        record: done.record,
        connection,
        changed: changed + done.changed,
    })
}

fn deadline(forge: &Forge) -> Instant {
    Instant::now() + forge.patience
}

fn nobody(record: &Record) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "forge has no key of its own at machine `{}` yet",
            record.name
        ),
    )
    .hint("run the command again that adopted it, with its options: its user logs in once more")
}

/// The server has not taken forge's own key: the line goes again, since it is read by nobody.
async fn not_let_in(
    forge: &Forge,
    record: &Record,
    user: Option<Connection>,
    error: Error,
) -> Error {
    if let (Some(user), Ok(line)) = (user, key::line(forge, record)) {
        // What is left is a line without effect; the error to tell is the first one.
        let _ = key::shut_out(&*user.guest, &line, forge.patience).await;
        let mut back = record.clone();
        back.stage = Stage::Claimed;
        let _ = back.save(&forge.store);
    }
    error.context(format!(
        "the SSH server of machine `{}` does not take the key that was added to ~/.ssh/authorized_keys of user `{}`",
        record.name, record.ssh.user
    ))
    .hint("it may read keys from elsewhere: AuthorizedKeysFile and AuthorizedKeysCommand in its sshd_config(5)")
}

/// How the work on a machine ends that is known by its URL alone.
pub const NOTED: &str = "noted";

/// Notes an engine that is known by its URL alone: nobody logs in there, and nothing is changed. The files that a client
/// shows are put beside the record where there are none: those of another authority are put there by hand.
///
/// # Errors
/// What the file system reports.
pub async fn note(forge: &Forge, mut record: Record) -> Result<Record> {
    let authority = crate::ca::ensure(&forge.store, forge.patience, &forge.events).await?;
    let folder = forge.store.machine_dir(&record.name);
    for (name, text, mode) in [
        ("ca.pem", authority.ca.as_str(), 0o644),
        ("cert.pem", authority.client.as_str(), 0o644),
        ("key.pem", authority.client_key.expose(), 0o600),
    ] {
        let path = folder.join(name);
        if !path.exists() {
            crate::store::write_file(&path, text.as_bytes(), mode)?;
        }
    }
    record.stage = Stage::Ready;
    record.save(&forge.store)?;
    forge.events.finished(NOTED, true).await;
    Ok(record)
}

/// Leaves an adopted host: what is forge's own there goes. So it does on a machine of docker-machine's whose engine forge has
/// set up, but for the key, which is docker-machine's.
///
/// # Errors
/// When the host cannot be reached, or does not take forge's key any more; then nothing was forgotten.
pub(super) async fn leave(forge: &Forge, record: &Record) -> Result<()> {
    let adopted = record.adopted.is_some();
    if !(adopted || record.is_taken_over()) || record.ssh.user.is_empty() {
        return Ok(());
    }
    let key = forge.store.machine_dir(&record.name).join(&record.ssh.key);
    if record.leaving && record.stage < Stage::Reached && !key.exists() {
        // It was left, and the removal of what is remembered has begun.
        return Ok(());
    }
    let opened = access::open(&*forge.access(record)?, record, forge.patience.min(LEAVING)).await;
    let open = match opened {
        Ok(open) => open,
        // Its key was never let in, or was taken away again as the last thing: there is nothing of forge's there.
        Err(error)
            if record.stage < Stage::Reached
                && failed_phase(&error) == Some(Phase::Authentication)
                && error.kind() == Kind::Refused
                && let_in_before(record).await =>
        {
            return Ok(());
        }
        Err(error) => {
            return Err(error.hint(format!(
                "`forge rm -f {}` forgets it; what forge changed there stays",
                record.name
            )));
        }
    };
    let port = record.endpoints()?.engine.port();
    let (found, facts) = look(forge, &*open.guest, port).await?;
    if facts.of_others(Some(record.claim)) {
        let text = "another store of forge's has adopted the host since: what is there is left to that one";
        forge.events.warning(text.to_owned()).await;
    }
    let book = playbook::load(&forge.assets, "adopt/leave")?;
    let vars = leaving(record, &found)?;
    let job = playbook::compile(&[(&book, &vars)], &Secrets::new(), false)?;
    playbook::run(&*open.guest, &job, forge.patience, &|_| {}).await?;
    if !adopted {
        return Ok(());
    }
    if record.stage > Stage::Launched {
        // From here on a host that does not take the key is one that was left.
        let left = Record {
            stage: Stage::Launched,
            ..record.clone()
        };
        left.save(&forge.store)?;
    }
    // The last thing: without it nobody could come back to do the rest.
    key::shut_out(&*open.guest, &key::line(forge, record)?, forge.patience).await
}

/// Whether the host before, where there is one, lets its user in: otherwise it was that one that refused.
async fn let_in_before(record: &Record) -> bool {
    let jump = record.adopted.as_ref().and_then(|host| host.jump.as_ref());
    match jump {
        Some(jump) => enter_jump(jump, LEAVING).await.is_ok(),
        None => true,
    }
}

/// Where a host keeps what forge changes until its engine runs with it.
pub(super) const FORMER: &str = "/var/lib/forge/former";

/// The variables of the playbook `adopt/keep`. Whoever adopts a host was asked whether it is to be taken from another.
/// `asked` when its engine has answered a moment ago.
pub(super) fn keeping(record: &Record, settings: &Settings, asked: bool) -> Vars {
    Vars::new()
        .with("asked", asked)
        .with("claim", record.claim.to_string())
        // A machine that was imported has another claim each time that it is.
        .with(
            "take",
            record.stage != Stage::Ready || record.imported.is_some(),
        )
        .with("others", settings.theirs.is_some())
        .with("theirs", settings.theirs.as_deref().unwrap_or_default())
        .with("daemon", &settings.daemon)
        .with("daemon_changes", settings.daemon_changes)
        .with("former", FORMER)
}

/// The variables of the playbook `adopt/leave`.
///
/// # Errors
/// When a configuration of the engine cannot be read.
pub fn leaving(record: &Record, found: &Found) -> Result<Vars> {
    let back = back::of(found)?;
    let (end, text) = match &back.end {
        End::Stays => ("stays", ""),
        End::Copy => ("copy", ""),
        End::Text(text) => ("text", text.as_str()),
    };
    let (conf, conf_text) = match &found.start {
        Some(Start::Service { path, text }) => (path.as_str(), text.as_str()),
        _ => ("", ""),
    };
    Ok(Vars::new()
        .with("claim", record.claim.to_string())
        .with("before", back.before)
        .with("during", back.during)
        .with("after", back.after)
        .with("live_restore", back.live_restore)
        .with("end", end)
        .with("text", text)
        .with("conf", conf)
        .with("conf_text", conf_text))
}

/// Why the engine of a host does not answer: a firewall there is its owner's, and the command that opens it is theirs.
pub(super) async fn explained(
    forge: &Forge,
    record: &Record,
    guest: &dyn Guest,
    error: Error,
) -> Error {
    let Ok(endpoints) = record.endpoints() else {
        return error;
    };
    let port = endpoints.engine.port();
    match look(forge, guest, port).await {
        Ok((_, facts)) => match facts.firewall(port) {
            Some(hint) => error.hint(hint),
            None => error,
        },
        // The first error is the one to report.
        Err(_) => error,
    }
}

/// A host that is left is waited for so long.
const LEAVING: Duration = Duration::from_secs(60);

/// Nobody to ask.
struct Nobody;

#[async_trait]
impl Unlock for Nobody {
    async fn passphrase(&self, _: &Path, _: usize, _: Instant) -> Result<Secret> {
        Err(Error::new(
            Kind::Unavailable,
            "nobody is asked for it here: an agent opens it (`ssh-add`)",
        ))
    }
}

/// Logs in at a host between, as its user does: by an agent, or by a key without a passphrase.
pub(super) async fn enter_jump(jump: &Jump, deadline: Duration) -> Result<SshGuest> {
    let way = settle::settle(&Said {
        host: jump.host.clone(),
        user: Some(jump.user.clone()),
        port: Some(jump.port),
        config: jump.config.as_deref().map(settle::path),
        ..Said::default()
    })
    .await?;
    let expect = Expect {
        keys: jump.accept.clone(),
        authorities: jump.authorities.clone(),
        principals: vec![jump.known_as().to_owned()],
        ..Expect::default()
    };
    let address = SocketAddr::new(locate(jump.target()).await?, jump.port);
    let failed = || format!("failed to enter `{}`, the host before", jump.host);
    let stream = timeout(deadline, tcp(address))
        .await
        .map_err(|_| Error::new(Kind::Timeout, failed()).because("no answer"))?
        .map_err(|error| Error::new(Kind::Unavailable, failed()).because(error))?;
    let (at, identities): (String, Identities) = (address.to_string(), way.identities);
    let user = (at.as_str(), jump.user.as_str());
    let entered = login::enter(
        Box::new(stream),
        user,
        &expect,
        &identities,
        &Nobody,
        deadline,
    );
    match entered.await.map_err(|error| error.context(failed()))? {
        Entered::In(guest) => Ok(guest),
        Entered::Stranger { error, .. } => Err(error.context(failed())),
    }
}

/// The way to a machine whose `sudo` asks for a password.
pub(super) struct WithSudo {
    /// The way there.
    pub(super) access: Arc<dyn Access>,
    /// The password.
    pub(super) password: Secret,
}

#[async_trait]
impl Access for WithSudo {
    async fn knock(&self, record: &Record) -> Result<Door> {
        self.access.knock(record).await
    }

    async fn connect(&self, record: &Record, door: Door, deadline: Duration) -> Result<Connection> {
        let open = self.access.connect(record, door, deadline).await?;
        let password = self.password.clone();
        let guest = WithPassword::checked(open.guest, password, deadline).await;
        Ok(Connection {
            guest: Arc::new(
                guest.map_err(|error| error.context(format!("machine `{}`", record.name)))?,
            ),
            host_key: open.host_key,
        })
    }

    async fn presented_key(&self, record: &Record, deadline: Duration) -> Result<String> {
        self.access.presented_key(record, deadline).await
    }

    async fn engine(&self, record: &Record, deadline: Duration) -> Result<Box<dyn Stream>> {
        self.access.engine(record, deadline).await
    }
}

/// What a script of root's needs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// Nothing: the user is root, or becomes root without being asked.
    Free,
    /// The password that `sudo` asks for.
    Password,
}

/// What a script of root's needs there. `sudo` is asked for what will be run: it may be allowed for that alone.
const ROOTS: &str = "if [ -w / ]; then echo free; \
elif command -v sudo >/dev/null 2>&1; then if sudo -n sh -c : 2>/dev/null; then echo free; else echo password; fi; \
elif command -v doas >/dev/null 2>&1; then if doas -n sh -c : 2>/dev/null; then echo free; else echo doas; fi; \
else echo none; fi";

/// What a script of root's needs on a host that is about to be adopted.
///
/// # Errors
/// What the connection reports; [`Kind::Unavailable`] where its user cannot become root by what forge knows.
pub async fn root(guest: &dyn Guest, deadline: Duration) -> Result<Root> {
    let line = format!("sh -c {}", playbook::quote(ROOTS));
    let output = guest.exec(&line, b"", deadline).await?;
    becoming(&output.text())
}

fn becoming(said: &str) -> Result<Root> {
    let nobody = |why: &str| {
        Err(
            Error::new(Kind::Unavailable, "its user cannot become root there")
                .because(why)
                .hint("log in as root, or let the user become root: `USER ALL=(ALL) NOPASSWD: ALL` for `sudo`, `permit nopass USER` for `doas`"),
        )
    };
    match said.lines().last().map(str::trim) {
        Some("free") => Ok(Root::Free),
        Some("password") => Ok(Root::Password),
        Some("doas") => {
            nobody("`doas` asks for a password, or refuses; it takes one from a terminal alone")
        }
        Some("none") => nobody("it is not root, and there is neither `sudo` nor `doas`"),
        _ => nobody("its shell does not run what it is given"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_cannot_become_root_is_told_so() {
        for (said, root) in [
            ("free\n", Root::Free),
            ("Welcome!\npassword\n", Root::Password),
        ] {
            assert_eq!(becoming(said).expect(said), root);
        }
        for (said, why) in [
            ("none\n", "neither `sudo` nor `doas`"),
            ("doas\n", "`doas` asks for a password"),
            (
                "This account is not available.\n",
                "does not run what it is given",
            ),
        ] {
            let error = becoming(said).expect_err(said);
            assert!(error.line().contains(why), "{}", error.line());
        }
    }

    /// What the probe says where only these words of `sudo` are let through, or where only these programs are.
    fn probed(programs: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in programs {
            // Written by a child: what this process holds open for writing cannot be run (ETXTBSY).
            let made = std::process::Command::new("/bin/sh")
                .args(["-c", "printf '%s' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
                .arg(folder.path().join(name))
                .arg(text)
                .status()
                .expect("sh");
            assert!(made.success());
        }
        // Nobody may write there.
        let line = ROOTS.replace("[ -w / ]", "false");
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &line])
            .env("PATH", folder.path())
            .output()
            .expect("sh");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[test]
    fn sudo_is_asked_for_what_will_be_run() {
        let shell_alone = "#!/bin/sh\n[ \"$1 $2\" = '-n sh' ]\n";
        let no = "#!/bin/sh\nexit 1\n";
        assert_eq!(probed(&[("sudo", shell_alone)]), "free");
        assert_eq!(probed(&[("sudo", no)]), "password");
        assert_eq!(probed(&[("doas", shell_alone)]), "free");
        assert_eq!(probed(&[("doas", no)]), "doas");
        assert_eq!(probed(&[]), "none");
    }
}
