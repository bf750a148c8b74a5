//! A provider made of folders, for tests of what stands above drivers: it outlives the process, is shared
//! by any number of them under a lock of its own, and keeps a list of everything it ever made.
//!
//! ```text
//! lock                 held for every change
//! creates              a line `CLAIM NAME` for each VM ever made
//! calls                a line for each question and request
//! vms/CLAIM/           vm.json, seed, console.log, root/ (the guest's files)
//! networks/ID          what `ensure_shared` brought up
//! KNOB                 an empty file: see [`Knob`]
//! token                the token that it asks for; without the file it asks for none
//! ```
//!
//! `FORGE_FAKE_PROVIDER` names the folder; without it, it lies in the store.

mod disk;
mod listen;
mod token;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    Artefact, Claim, Context, Driver, DriverHome, Endpoints, Error, Forward, Instance, Kind, Mac,
    Network, Nic, Observation, Power, Result, Spec, State, Token, Wants, atomic,
};

use listen::{bind, listen_exactly};

pub use token::{Options, token_file};

/// The variable that names the provider's folder.
pub const VARIABLE: &str = "FORGE_FAKE_PROVIDER";
/// The ports that every machine is reached at; all others are published ones.
const ENDPOINTS: [u16; 2] = [22, 2376];
/// A knob that holds a call up does so for at most this long.
const HOLD: Duration = Duration::from_secs(60);

/// A way in which the provider or its machines misbehave, while an empty file of that name lies in the
/// provider's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// The check of machines that are wished does not return.
    HoldCheck,
    /// `create` does not return.
    HoldCreate,
    /// Questions about machines whose claims the file lists are not answered; about any, where it lists none.
    HoldObserve,
    /// Machines do not answer SSH.
    SilentSsh,
    /// Machines do not show their host key to newcomers.
    HiddenHostKey,
    /// Commands on machines do not end.
    HangingCommands,
    /// Engines do not answer.
    SilentEngine,
    /// Machines ignore the request to shut down.
    DeafToShutdown,
    /// Machines that run are seen to be shutting down.
    GoingDown,
    /// The provider cannot be asked.
    Down,
    /// Machines that are made are given their address by a server of the network, and it may change
    /// ([`Provider::move_to`]).
    Leased,
}

impl Knob {
    /// The name of its file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::HoldCheck => "hold-check",
            Self::HoldCreate => "hold-create",
            Self::HoldObserve => "hold-observe",
            Self::SilentSsh => "silent-ssh",
            Self::HiddenHostKey => "hidden-host-key",
            Self::HangingCommands => "hanging-commands",
            Self::SilentEngine => "silent-engine",
            Self::DeafToShutdown => "deaf-to-shutdown",
            Self::GoingDown => "going-down",
            Self::Down => "down",
            Self::Leased => "leased",
        }
    }
}

/// One machine of the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Whose it is.
    pub claim: Claim,
    /// The visible name.
    pub name: String,
    /// Whether it is on.
    pub on: bool,
    /// How often it was switched on.
    pub starts: u32,
    /// What it is reached by.
    pub endpoints: Vec<Forward>,
    /// What the user published.
    pub published: Vec<Forward>,
    /// Its place on the internal network.
    pub nic: Option<Nic>,
    /// The hardware address of the interface that leads out.
    pub outer_mac: Mac,
    /// The address that a server of its network gave it.
    #[serde(default)]
    pub leased: Option<IpAddr>,
}

impl Vm {
    /// What the provider tells of it.
    ///
    /// # Errors
    /// When nothing leads to it.
    pub fn instance(&self) -> Result<Instance> {
        let at = |port: u16| {
            if let Some(leased) = self.leased {
                // No user may listen below 1024.
                let port = if port == 22 { 2222 } else { port };
                return Ok(SocketAddr::new(leased, port));
            }
            self.endpoints
                .iter()
                .find(|forward| forward.guest == port)
                .map(|forward| forward.host)
                .ok_or_else(|| Error::new(Kind::Invalid, format!("port {port} is not forwarded")))
        };
        Ok(Instance {
            endpoints: Endpoints {
                ssh: at(22)?,
                engine: at(2376)?,
                cluster: self.nic.as_ref().map(|nic| nic.address.into()),
                data: None,
                public: None,
            },
            artefacts: vec![Artefact {
                kind: "folder".to_owned(),
                id: self.claim.to_string(),
            }],
            hardware: BTreeMap::from([("mac".to_owned(), self.outer_mac.to_string())]),
        })
    }
}

/// The provider's folder.
#[derive(Clone, Debug)]
pub struct Provider {
    root: PathBuf,
}

impl Provider {
    /// The provider that `FORGE_FAKE_PROVIDER` names, or the one at `own`.
    #[must_use]
    pub fn of(own: &Path) -> Self {
        Self::at(&std::env::var_os(VARIABLE).map_or_else(|| own.to_owned(), PathBuf::from))
    }

    /// The provider at `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it misbehaves in this way now.
    #[must_use]
    pub fn knob(&self, knob: Knob) -> bool {
        self.root.join(knob.file()).exists()
    }

    /// The folder of one machine.
    #[must_use]
    pub fn folder(&self, claim: Claim) -> PathBuf {
        self.root.join("vms").join(claim.to_string())
    }

    /// The claim and name of each machine ever made, in order.
    #[must_use]
    pub fn creates(&self) -> Vec<(String, String)> {
        self.lines("creates")
            .iter()
            .filter_map(|line| line.split_once(' '))
            .map(|(claim, name)| (claim.to_owned(), name.to_owned()))
            .collect()
    }

    /// Every question and request so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lines("calls")
    }

    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.root.join(name))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The machines that are there, by name.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn vms(&self) -> Result<Vec<Vm>> {
        let mut found = Vec::new();
        for name in self.names("vms")? {
            let Ok(claim) = name.parse() else { continue };
            found.extend(self.read(claim)?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The names of the networks that are up.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn networks(&self) -> Result<Vec<String>> {
        self.names("networks")
    }

    /// Gives the machine another address.
    ///
    /// # Errors
    /// When nothing carries the claim, or its folder cannot be written.
    pub fn move_to(&self, claim: Claim, address: IpAddr) -> Result<()> {
        let _lock = self.lock()?;
        let mut vm = self.must(claim)?;
        vm.leased = Some(address);
        self.save(&vm)
    }

    fn network(&self, id: &str) -> PathBuf {
        self.root.join("networks").join(id)
    }

    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let failed = || format!("failed to list the provider's `{folder}`");
        match fs::read_dir(self.root.join(folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).or_fail(Kind::Io, failed),
            Ok(entries) => Ok(entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| !name.starts_with('.'))
                .collect()),
        }
    }

    fn read(&self, folder: Claim) -> Result<Option<Vm>> {
        let path = self.folder(folder).join("vm.json");
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => {
                let bytes =
                    read.or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))?;
                serde_json::from_slice(&bytes)
                    .map(Some)
                    .or_fail(Kind::Corrupt, || format!("`{}` is damaged", path.display()))
            }
        }
    }

    /// The machine that lies under this claim and carries it.
    ///
    /// # Errors
    /// [`Kind::Refused`] when what lies there carries another one.
    pub fn find(&self, claim: Claim) -> Result<Option<Vm>> {
        match self.read(claim)? {
            Some(vm) if vm.claim != claim => Err(Error::new(
                Kind::Refused,
                format!("what lies under the claim {claim} belongs to another machine"),
            )),
            found => Ok(found),
        }
    }

    fn must(&self, claim: Claim) -> Result<Vm> {
        self.find(claim)?
            .ok_or_else(|| Error::new(Kind::NotFound, format!("nothing carries the claim {claim}")))
    }

    fn save(&self, vm: &Vm) -> Result<()> {
        write_vm(&self.folder(vm.claim), vm)
    }

    fn append(&self, name: &str, line: &str) -> Result<()> {
        let path = self.root.join(name);
        let file = File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .or_fail(Kind::Io, || format!("failed to write `{}`", path.display()))
    }

    /// The lock of the whole provider, held until it is dropped.
    fn lock(&self) -> Result<File> {
        atomic::private_folder(&self.root.join("vms"))?;
        atomic::private_folder(&self.root.join("networks"))?;
        let failed = || "failed to lock the provider".to_owned();
        let file = File::create(self.root.join("lock")).or_fail(Kind::Io, failed)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).or_fail(Kind::Io, failed)?;
        Ok(file)
    }

    /// Notes a call, and fails it when the provider is down.
    fn call(&self, line: &str) -> Result<()> {
        atomic::private_folder(&self.root)?;
        self.append("calls", line)?;
        if self.knob(Knob::Down) {
            return Err(Error::new(Kind::Unavailable, "the provider is down"));
        }
        Ok(())
    }

    fn make(&self, spec: &Spec) -> Result<Vm> {
        let (endpoints, published) = spec
            .forwards
            .iter()
            .partition(|forward| ENDPOINTS.contains(&forward.guest));
        let vm = Vm {
            claim: spec.claim,
            name: spec.name.clone(),
            on: false,
            starts: 0,
            endpoints,
            published,
            nic: spec.nic.clone(),
            outer_mac: spec.outer_mac,
            leased: self.knob(Knob::Leased).then(|| {
                let [.., a, b] = *spec.claim.bytes();
                Ipv4Addr::new(127, 77, a, b).into()
            }),
        };
        let new = self.root.join("vms").join(format!(".new-{}", spec.claim));
        if new.exists() {
            fs::remove_dir_all(&new)
                .or_fail(Kind::Io, || format!("failed to remove `{}`", new.display()))?;
        }
        atomic::private_folder(&new.join("root"))?;
        let seed = [
            &spec.seed.user_data,
            &spec.seed.meta_data,
            &spec.seed.network_config,
        ];
        atomic::write(
            &new.join("seed"),
            seed.map(String::as_str).join("\n").as_bytes(),
            0o600,
        )?;
        write_vm(&new, &vm)?;
        self.append("creates", &format!("{} {}", spec.claim, spec.name))?;
        fs::rename(&new, self.folder(spec.claim))
            .or_fail(Kind::Io, || "failed to make a machine".to_owned())?;
        Ok(vm)
    }

    fn switch_on(&self, mut vm: Vm, listen: bool) -> Result<Vm> {
        if vm.on {
            return Ok(vm);
        }
        if listen {
            listen_exactly(vm.claim, &[&vm.endpoints[..], &vm.published].concat())?;
        }
        let folder = self.folder(vm.claim);
        first_boot(&folder)?;
        vm.on = true;
        vm.starts += 1;
        self.append(
            &format!("vms/{}/console.log", vm.claim),
            &format!("{} has booted, time {}", vm.name, vm.starts),
        )?;
        self.save(&vm)?;
        Ok(vm)
    }
}

fn write_vm(folder: &Path, vm: &Vm) -> Result<()> {
    let text = serde_json::to_vec_pretty(vm)
        .or_fail(Kind::Invalid, || "a machine cannot be written".to_owned())?;
    atomic::write(&folder.join("vm.json"), &text, 0o600)
}

/// What the first boot makes of the seed: the host key that it brought, and the key that is let in.
fn first_boot(folder: &Path) -> Result<()> {
    let root = folder.join("root");
    let ssh = root.join("etc/ssh");
    if ssh.exists() {
        return Ok(());
    }
    let seed =
        fs::read(folder.join("seed")).or_fail(Kind::Io, || "failed to read the seed".to_owned())?;
    let seed = String::from_utf8_lossy(&seed);
    let private: String = seed
        .lines()
        .skip_while(|line| line.trim() != "ed25519_private: |")
        .skip(1)
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let public = seed
        .lines()
        .find_map(|line| line.trim().strip_prefix("ed25519_public: "))
        .unwrap_or_default();
    let authorized = seed
        .lines()
        .skip_while(|line| line.trim() != "ssh_authorized_keys:")
        .nth(1)
        .and_then(|line| line.trim().strip_prefix("- "))
        .unwrap_or_default();
    atomic::private_folder(&root.join("home"))?;
    atomic::write(
        &root.join("home/authorized_keys"),
        format!("{authorized}\n").as_bytes(),
        0o600,
    )?;
    let new = root.join("etc/.ssh");
    atomic::private_folder(&new)?;
    atomic::write(&new.join("ssh_host_ed25519_key"), private.as_bytes(), 0o600)?;
    atomic::write(
        &new.join("ssh_host_ed25519_key.pub"),
        format!("{public}\n").as_bytes(),
        0o644,
    )?;
    fs::rename(&new, &ssh).or_fail(Kind::Io, || "failed to boot".to_owned())
}

/// The driver of this provider.
#[derive(Clone, Debug)]
pub struct FakeDriver {
    provider: Provider,
    listen: bool,
    token: Token,
}

impl FakeDriver {
    /// The driver for the command line. Ports are checked and recorded, but no process listens.
    ///
    /// # Errors
    /// When the provider's folder cannot be made.
    pub fn open(home: DriverHome) -> Result<Self> {
        let provider = Provider::of(&home.dir);
        atomic::private_folder(&provider.root)?;
        Ok(Self {
            provider,
            listen: false,
            token: home.token,
        })
    }

    /// A driver whose machines' ports this very process listens at.
    ///
    /// # Errors
    /// When the provider's folder cannot be made.
    pub fn listening(root: &Path) -> Result<Self> {
        atomic::private_folder(root)?;
        Ok(Self {
            provider: Provider::at(root),
            listen: true,
            token: Token::default(),
        })
    }

    /// Notes a call, and fails it when the provider is down or asks for another token.
    async fn call(&self, line: &str) -> Result<()> {
        self.provider.call(line)?;
        token::admit(&self.provider.root, &self.token).await
    }

    async fn held(&self, knob: Knob) {
        let until = Instant::now() + HOLD;
        while self.provider.knob(knob) && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn switch_off(&self, mut vm: Vm) -> Result<()> {
        if self.listen {
            listen_exactly(vm.claim, &[])?;
        }
        vm.on = false;
        self.provider.save(&vm)
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn id(&self) -> &'static str {
        "fake"
    }

    fn wants(&self) -> Wants {
        if self.provider.knob(Knob::Leased) {
            return Wants {
                leased: true,
                ..Wants::default()
            };
        }
        Wants {
            forwards: true,
            network: "10.133.7.0/24".parse().ok(),
            ..Wants::default()
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        self.call(&format!("check {}", specs.len())).await?;
        if !specs.is_empty() {
            self.held(Knob::HoldCheck).await;
        }
        let ranges = specs
            .iter()
            .filter_map(|spec| spec.nic.as_ref().map(|nic| &nic.network));
        for wished in ranges {
            for id in self.provider.networks()? {
                let range = fs::read_to_string(self.provider.network(&id)).unwrap_or_default();
                if id != wished.id.to_string() && range.trim() == wished.cidr.to_string() {
                    return Err(Error::new(
                        Kind::Precheck,
                        format!("the network {} overlaps the network {id}", wished.cidr),
                    ));
                }
            }
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        self.call("list").await?;
        let vms = self.provider.vms()?;
        Ok(vms.into_iter().map(|vm| (vm.claim, vm.name)).collect())
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        self.call(&format!("observe {}", claims.len())).await?;
        let held = self.provider.lines(Knob::HoldObserve.file());
        if held.is_empty() || claims.iter().any(|one| held.contains(&one.to_string())) {
            self.held(Knob::HoldObserve).await;
        }
        let look = |claim: &Claim| {
            let vm = match self.provider.find(*claim) {
                Err(error) if error.kind() == Kind::Refused => None,
                found => found?,
            };
            Ok(Observation {
                claim: *claim,
                state: match &vm {
                    None => State::Absent,
                    Some(vm) if vm.on && self.provider.knob(Knob::GoingDown) => State::Stopping,
                    Some(vm) if vm.on => State::Running,
                    Some(_) => State::Stopped,
                },
                network: None,
                instance: vm.map(|vm| vm.instance()).transpose()?,
                trouble: None,
            })
        };
        claims.iter().map(look).collect()
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        self.call(&format!("create {}", spec.claim)).await?;
        self.held(Knob::HoldCreate).await;
        let _lock = self.provider.lock()?;
        let vm = match self.provider.find(spec.claim)? {
            Some(vm) => vm,
            None => self.provider.make(spec)?,
        };
        self.provider.switch_on(vm, self.listen)?.instance()
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let call = format!("set_power {claim} {power:?}");
        self.call(&call).await?;
        let _lock = self.provider.lock()?;
        let vm = self.provider.must(claim)?;
        match power {
            Power::On => self.provider.switch_on(vm, self.listen).map(|_| ()),
            Power::Shutdown if self.provider.knob(Knob::DeafToShutdown) => Ok(()),
            Power::Shutdown | Power::Kill => self.switch_off(vm),
        }
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        self.call(&format!("forward {claim}")).await?;
        let _lock = self.provider.lock()?;
        let mut vm = self.provider.must(claim)?;
        if self.listen && vm.on {
            listen_exactly(claim, &[&vm.endpoints[..], forwards].concat())?;
        } else {
            for new in forwards.iter().filter(|new| !vm.published.contains(new)) {
                bind(new.host)?;
            }
        }
        vm.published = forwards.to_vec();
        self.provider.save(&vm)
    }

    async fn blank_seed(&self, claim: Claim) -> Result<()> {
        self.call(&format!("blank_seed {claim}")).await?;
        let _lock = self.provider.lock()?;
        self.provider.must(claim)?;
        let path = self.provider.folder(claim).join("seed");
        let failed = || format!("failed to blank `{}`", path.display());
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .or_fail(Kind::Io, failed)?;
        let length = file.metadata().or_fail(Kind::Io, failed)?.len();
        let zeros = vec![0; usize::try_from(length).unwrap_or_default()];
        file.write_all(&zeros).or_fail(Kind::Io, failed)
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        self.call(&format!("destroy {claim}")).await?;
        let _lock = self.provider.lock()?;
        if self.provider.find(claim)?.is_none() {
            return Ok(());
        }
        if self.listen {
            listen_exactly(claim, &[])?;
        }
        let gone = self
            .provider
            .root
            .join("vms")
            .join(format!(".gone-{claim}"));
        let failed = || format!("failed to remove the machine {claim}");
        if gone.exists() {
            fs::remove_dir_all(&gone).or_fail(Kind::Io, failed)?;
        }
        fs::rename(self.provider.folder(claim), &gone).or_fail(Kind::Io, failed)?;
        fs::remove_dir_all(&gone).or_fail(Kind::Io, failed)
    }

    async fn pack(&self, claim: Claim) -> Result<PathBuf> {
        self.call(&format!("pack {claim}")).await?;
        disk::pack(&self.provider, claim)
    }

    async fn unpack(&self, spec: &Spec) -> Result<Instance> {
        self.call(&format!("unpack {}", spec.claim)).await?;
        disk::unpack(&self.provider, spec)
    }

    async fn ensure_shared(&self, network: &Network) -> Result<()> {
        let call = format!("ensure_shared {}", network.id);
        self.call(&call).await?;
        let _lock = self.provider.lock()?;
        let path = self.provider.network(&network.id.to_string());
        atomic::write(&path, format!("{}\n", network.cidr).as_bytes(), 0o600)
    }

    async fn release_shared(&self, network: &Network) -> Result<()> {
        self.call(&format!("release_shared {}", network.id)).await?;
        let _lock = self.provider.lock()?;
        let used = self.provider.vms()?.iter().any(|vm| {
            vm.nic
                .as_ref()
                .is_some_and(|nic| nic.network.id == network.id)
        });
        if used {
            return Ok(());
        }
        let path = self.provider.network(&network.id.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                .or_fail(Kind::Io, || {
                    format!("failed to remove `{}`", path.display())
                }),
            _ => Ok(()),
        }
    }

    fn console(&self, claim: Claim) -> Option<PathBuf> {
        Some(self.provider.folder(claim).join("console.log"))
    }
}
