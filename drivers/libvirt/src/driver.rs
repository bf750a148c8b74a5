//! The driver itself: each verb safe to repeat, each found by claim.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use forge_driver::folder::records;
use forge_driver::{
    Claim, Driver, DriverHome, Error, Forward, Instance, Kind, Network, Observation, Power, Result,
    Spec, State, Wants, atomic, hold,
};

use crate::accel;
use crate::apart;
use crate::check;
use crate::domain::{self, Found};
use crate::lease;
use crate::look::{self, Seen};
use crate::network::{self, Choice};
use crate::options::Config;
use crate::storage::Pool;
use crate::virsh::Virsh;
use crate::vm::{Folder, Vm};

/// How long a machine waits until those before it have their network: many may come at once, at a distant daemon.
const TURN: Duration = Duration::from_secs(600);

/// Domains of libvirt.
///
/// Everything that the trait promises holds; besides, one instance serves machines that were made with
/// any configuration: what a machine needs is in its own record.
#[derive(Clone, Debug)]
pub struct LibvirtDriver {
    config: Config,
    home: DriverHome,
}

impl LibvirtDriver {
    /// The driver with its directory.
    #[must_use]
    pub fn open(config: Config, home: DriverHome) -> Self {
        Self { config, home }
    }

    fn folder(&self, claim: Claim) -> Folder {
        Folder::new(&self.home.dir, claim)
    }

    /// Where it is noted which base images are whole at a daemon.
    fn notes(&self, virsh: &Virsh) -> PathBuf {
        self.home.dir.join("bases").join(virsh.uri().folder())
    }

    /// The daemon of a configuration.
    fn virsh(&self, config: &Config) -> Virsh {
        Virsh::new(config, &self.home)
    }

    /// Keeps other commands from making or removing networks of a daemon: a network that nobody is on any more is
    /// not taken down under a machine that is put on it.
    async fn networks(&self, virsh: &Virsh) -> Result<Option<hold::Work>> {
        let folder = self.home.dir.join("networks").join(virsh.uri().folder());
        atomic::private_folder(&folder)?;
        hold::work_within(&folder, TURN).await
    }

    /// The network of a machine is up, and keeps the machine's address for it: also when somebody removed it
    /// meanwhile.
    async fn network(&self, vm: &Vm, virsh: &Virsh) -> Result<()> {
        let _work = self.networks(virsh).await?;
        match (&vm.config.network, &vm.nic) {
            (choice, Some(nic)) => {
                network::ensure(virsh, &self.home.assets, &nic.network, choice).await?;
                lease::give(virsh, nic).await
            }
            (Choice::Named(name), None) => {
                network::start(virsh, "--name", name).await?;
                match vm.address {
                    Some(address) => lease::keep(virsh, name, vm.mac, address).await,
                    None => Ok(()),
                }
            }
            (_, None) => Ok(()),
        }
    }

    /// What the machine's network kept for it is taken back, and the network itself when forge made it and no
    /// other machine at this daemon is on it.
    async fn leave_network(&self, vm: &Vm, virsh: &Virsh) -> Result<()> {
        let _work = self.networks(virsh).await?;
        let nic = match (&vm.config.network, &vm.nic) {
            (_, Some(nic)) => nic,
            (Choice::Named(name), None) => return lease::leave(virsh, name, vm.mac).await,
            (_, None) => return Ok(()),
        };
        lease::take(virsh, nic).await?;
        if self.unused(&nic.network, virsh)? {
            network::release(virsh, &nic.network).await?;
        }
        Ok(())
    }

    /// Whether no machine that stays is on the network at this daemon.
    fn unused(&self, network: &Network, virsh: &Virsh) -> Result<bool> {
        Ok(!records::<Vm>(&self.home.dir)?.iter().any(|vm| {
            !vm.leaving
                && vm.config.uri == *virsh.uri()
                && vm
                    .nic
                    .as_ref()
                    .is_some_and(|nic| nic.network.id == network.id)
        }))
    }

    /// The machine's record, its daemon, and the assurance that the domain is ours.
    async fn own(&self, claim: Claim) -> Result<(Vm, Virsh, State)> {
        let vm = self.folder(claim).demand()?;
        let virsh = self.virsh(&vm.config);
        match domain::find_one(&virsh, claim).await? {
            Found::Ours(state) => Ok((vm, virsh, state)),
            Found::Foreign => Err(domain::foreign(claim)),
            Found::Nothing => Err(Error::new(
                Kind::NotFound,
                format!(
                    "libvirt at `{}` has no domain `{}` any more",
                    virsh.uri(),
                    vm.name
                ),
            )
            .hint("it was removed behind forge's back; `forge rm` forgets it")),
        }
    }

    /// The record of a machine that is to be made, on disk before the daemon is asked for anything of it.
    async fn decided(&self, spec: &Spec, folder: &Folder) -> Result<Vm> {
        if let Some(mut vm) = folder.read()? {
            if vm.leaving {
                // A removal was cut off, and the machine is wished again.
                vm.leaving = false;
                folder.write(&vm)?;
            }
            return Ok(vm);
        }
        let virsh = self.virsh(&self.config);
        let virt = accel::virt(
            &virsh,
            &self.home.assets,
            &self.config,
            spec.image.kernel.as_ref(),
            &self.home.dir,
        )
        .await?;
        // Stores that use the same image at one daemon each have a volume of it, and take away no other's.
        let owner = self.home.owner.simple().to_string();
        let base = format!("forge-base-{}-{}.qcow2", &owner[..8], spec.image.id()?);
        let vm = Vm::new(spec, &self.config, virt.to_owned(), base)?;
        folder.write(&vm)?;
        Ok(vm)
    }

    async fn make(&self, spec: &Spec, mut vm: Vm, folder: &Folder, virsh: &Virsh) -> Result<Vm> {
        let pool = Pool {
            virsh,
            name: &vm.config.pool.clone(),
        };
        let target = pool.ensure().await?.target;
        if vm.folder.is_none() {
            // From here on something of the machine may be in it.
            vm.folder = Some(target.clone());
            folder.write(&vm)?;
        }
        pool.base(&vm.base, &spec.image, &self.notes(virsh)).await?;
        pool.disk(&vm, vm.config.disk_bytes.max(spec.image.size))
            .await?;
        if !vm.seeded {
            pool.seed(&vm, &spec.seed, folder.path()).await?;
            vm.seeded = true;
            folder.write(&vm)?;
        }
        pool.console(&vm.console()).await?;
        self.network(&vm, virsh).await?;
        if let Choice::Named(name) = &vm.config.network
            && vm.address.is_none()
        {
            vm.address = lease::choose(virsh, name, vm.mac).await?;
            folder.write(&vm)?;
        }
        domain::check_name(virsh, &vm.name, vm.claim).await?;
        let console = target.join(vm.console());
        let document = domain::describe(&self.home.assets, &vm, &console.to_string_lossy())?;
        virsh.feed(&["define", "/dev/stdin"], &document).await?;
        Ok(vm)
    }

    /// Starts the pool of a machine when it was stopped; whether it was.
    async fn pool_again(&self, vm: &Vm, virsh: &Virsh) -> Result<bool> {
        let pool = Pool {
            virsh,
            name: &vm.config.pool,
        };
        if pool.active().await? {
            return Ok(false);
        }
        pool.ensure().await.map(|_| true)
    }

    async fn power_on(&self, vm: &Vm, virsh: &Virsh, state: State) -> Result<()> {
        let claim = vm.claim.to_string();
        match state {
            State::Running | State::Starting | State::Stopping => Ok(()),
            State::Paused => virsh.call(&["resume", &claim]).await.map(drop),
            _ => {
                self.network(vm, virsh).await?;
                let mut started = virsh.call(&["start", &claim]).await;
                if started.is_err() && self.pool_again(vm, virsh).await.unwrap_or(false) {
                    started = virsh.call(&["start", &claim]).await;
                }
                started.map(drop).map_err(|error| not_started(vm, error))
            }
        }
    }
}

/// What to look at when libvirt does not start a domain that it has.
fn not_started(vm: &Vm, error: Error) -> Error {
    if error.deepest_hint().is_some() {
        return error;
    }
    let bridge = match &vm.config.network {
        Choice::Named(name) => format!(
            "`virsh net-dumpxml {name}` names the bridge of its network, `ip link show type bridge` lists those of that host; "
        ),
        Choice::Bridge(name) if vm.config.uri.session() => format!(
            "`/etc/qemu/bridge.conf` of that host has to say `allow {name}`, and `qemu-bridge-helper` there has to be root's with the setuid bit; "
        ),
        Choice::Bridge(name) => {
            format!("`ip link show type bridge` on that host has to list `{name}`; ")
        }
        _ => String::new(),
    };
    error.hint(format!(
        "{bridge}its disk `{}` lies over `{}` in the pool `{}`: where that is gone or damaged, the next `forge create` of the same image brings it again",
        vm.disk(),
        vm.base,
        vm.config.pool
    ))
}

#[async_trait]
impl Driver for LibvirtDriver {
    fn id(&self) -> &'static str {
        "libvirt"
    }

    fn wants(&self) -> Wants {
        Wants {
            forwards: false,
            network: self.config.range(),
            leased: true,
            ..Wants::default()
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        check::check(&self.config, &self.virsh(&self.config), specs).await?;
        if self.config.zones.len() < 2 {
            return Ok(());
        }
        let apart = apart::check(&self.config, &self.home).await;
        apart.map_err(|error| error.of_kind(Kind::Precheck))
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let mut records: BTreeMap<Claim, Result<Option<Vm>>> = BTreeMap::new();
        for claim in claims {
            records.insert(*claim, self.folder(*claim).read());
        }
        let vms = records
            .values()
            .filter_map(|record| record.as_ref().ok()?.clone());
        let seen = look::look(&self.home, vms.collect()).await?;
        Ok(claims
            .iter()
            .map(|claim| {
                let mut trouble = None;
                let (state, instance) = match (&records[claim], seen.get(claim)) {
                    (Ok(Some(vm)), Some(Seen::There(state, address))) => {
                        (*state, Some(vm.instance(*address)))
                    }
                    (Ok(Some(vm)), Some(Seen::Unknown(why))) => {
                        trouble = Some(why.clone());
                        (State::Error, Some(vm.instance(None)))
                    }
                    (Err(error), _) if error.kind() != Kind::Refused => {
                        trouble = Some(error.line());
                        (State::Error, None)
                    }
                    _ => (State::Absent, None),
                };
                Observation {
                    claim: *claim,
                    state,
                    network: None,
                    instance,
                    trouble,
                }
            })
            .collect())
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        Ok(records::<Vm>(&self.home.dir)?
            .into_iter()
            .map(|vm| (vm.claim, vm.name))
            .collect())
    }

    async fn create(&self, spec: &Spec) -> Result<Instance> {
        let folder = self.folder(spec.claim);
        folder.read()?;
        atomic::private_folder(folder.path())?;
        let _work = folder.work().await?;
        let mut vm = self.decided(spec, &folder).await?;
        let virsh = self.virsh(&vm.config);
        let state = match domain::find_one(&virsh, vm.claim).await? {
            Found::Foreign => return Err(domain::foreign(vm.claim)),
            Found::Ours(state) => state,
            Found::Nothing => {
                vm = self.make(spec, vm, &folder, &virsh).await?;
                State::Stopped
            }
        };
        if vm.config.autostart {
            virsh.call(&["autostart", &vm.claim.to_string()]).await?;
        }
        self.power_on(&vm, &virsh, state).await?;
        Ok(vm.instance(None))
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let (vm, virsh, state) = self.own(claim).await?;
        let id = claim.to_string();
        let off = matches!(state, State::Stopped | State::Saved);
        match power {
            Power::On => self.power_on(&vm, &virsh, state).await,
            // Without its saved memory it is off, as if the plug were pulled.
            Power::Kill if state == State::Saved => {
                virsh.call(&["managedsave-remove", &id]).await.map(drop)
            }
            Power::Shutdown | Power::Kill if off => Ok(()),
            Power::Shutdown => {
                if state == State::Paused {
                    // A guest that stands still does not see the button.
                    virsh.call(&["resume", &id]).await?;
                }
                virsh
                    .call(&["shutdown", &id, "--mode", "acpi"])
                    .await
                    .map(drop)
            }
            Power::Kill => match virsh.call(&["destroy", &id]).await {
                // It went down by itself in this moment.
                Err(error) => match domain::find_one(&virsh, claim).await? {
                    Found::Ours(State::Stopped) => Ok(()),
                    _ => Err(error),
                },
                Ok(_) => Ok(()),
            },
        }
    }

    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()> {
        self.folder(claim).demand()?;
        if forwards.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            "a machine of the driver `libvirt` has an address of its own: its ports need no forwarding",
        ))
    }

    async fn blank_seed(&self, claim: Claim) -> Result<()> {
        let (vm, virsh, _) = self.own(claim).await?;
        let folder = self.folder(claim);
        let pool = Pool {
            virsh: &virsh,
            name: &vm.config.pool,
        };
        pool.blank(&vm, folder.path()).await
    }

    async fn destroy(&self, claim: Claim) -> Result<()> {
        let folder = self.folder(claim);
        let Some(_work) = folder.work().await? else {
            return Ok(());
        };
        if let Some(mut vm) = folder.read()? {
            let virsh = self.virsh(&vm.config);
            let id = claim.to_string();
            match domain::find_one(&virsh, claim).await? {
                Found::Foreign => return Err(domain::foreign(claim)),
                Found::Nothing => {}
                Found::Ours(state) => {
                    if !matches!(state, State::Stopped | State::Saved) {
                        // It may go down by itself in this moment; what does not shows below.
                        let _ = virsh.call(&["destroy", &id]).await;
                    }
                    let undefined = virsh
                        .call(&[
                            "undefine",
                            &id,
                            "--managed-save",
                            "--snapshots-metadata",
                            "--checkpoints-metadata",
                            "--nvram",
                        ])
                        .await;
                    // One that was undefined while it ran is gone as soon as it is off.
                    if undefined.is_err()
                        && domain::find_one(&virsh, claim).await? != Found::Nothing
                    {
                        undefined?;
                    }
                }
            }
            let pool = Pool {
                virsh: &virsh,
                name: &vm.config.pool.clone(),
            };
            if !vm.leaving {
                vm.leaving = true;
                folder.write(&vm)?;
            }
            if vm.folder.is_some() {
                // Also a pool that was forgotten: what the machine has in it is still in its folder.
                pool.ensure().await?;
                pool.remove(&vm).await?;
                // Of machines that leave at the same time, the last to say so takes the base along.
                let unused = || {
                    Ok(!records::<Vm>(&self.home.dir)?.iter().any(|other| {
                        !other.leaving
                            && other.base == vm.base
                            && other.config.pool == vm.config.pool
                            && other.config.uri == vm.config.uri
                    }))
                };
                pool.drop_base(&vm.base, &self.notes(&virsh), unused)
                    .await?;
            }
            self.leave_network(&vm, &virsh).await?;
            accel::sweep(&virsh, &self.home.dir).await?;
        } else {
            // It was cut off before anything was decided, which is when guests are tried.
            accel::sweep(&self.virsh(&self.config), &self.home.dir).await?;
        }
        folder.remove()
    }

    async fn ensure_shared(&self, wanted: &Network) -> Result<()> {
        let virsh = self.virsh(&self.config);
        let _work = self.networks(&virsh).await?;
        network::ensure(&virsh, &self.home.assets, wanted, &self.config.network).await
    }

    async fn release_shared(&self, wanted: &Network) -> Result<()> {
        let virsh = self.virsh(&self.config);
        let _work = self.networks(&virsh).await?;
        if self.unused(wanted, &virsh)? {
            network::release(&virsh, wanted).await?;
        }
        Ok(())
    }

    /// The file lies where the daemon keeps disks: root alone may read it there, and on another host nobody here.
    fn console(&self, claim: Claim) -> Option<PathBuf> {
        let vm = self.folder(claim).read().ok()??;
        if vm.config.uri.over_ssh() {
            return None;
        }
        Some(vm.folder.as_ref()?.join(vm.console()))
    }

    /// The console is a volume of the pool, so the daemon gives it out to whoever may use it.
    async fn read_console(&self, claim: Claim) -> Result<Option<Vec<u8>>> {
        let folder = self.folder(claim);
        let Some(vm) = folder.read()? else {
            return Ok(None);
        };
        let here = self.console(claim).map(std::fs::read);
        if let Some(Ok(bytes)) = here {
            return Ok(Some(bytes));
        }
        let virsh = self.virsh(&vm.config);
        let pool = Pool {
            virsh: &virsh,
            name: &vm.config.pool,
        };
        let text = pool.read(&vm.console(), folder.path()).await;
        text.map(Some)
            .map_err(|error| error.context(format!("failed to read the console of `{}`", vm.name)))
    }
}
