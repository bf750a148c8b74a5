//! The driver itself: each verb safe to repeat, each found by claim.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use forge_driver::folder::records;
use forge_driver::{
    Claim, Driver, DriverHome, Error, Forward, Instance, Kind, Network, Observation, Power, Result,
    Spec, State, Wants, atomic, process,
};

use crate::accel;
use crate::domain::{self, Found};
use crate::network;
use crate::options::Config;
use crate::storage::Pool;
use crate::virsh::Virsh;
use crate::vm::{Folder, Vm};

/// What one machine writes to its disk before anybody uses it, roughly: first boot and engine.
const DISK_NEED: u64 = 512 << 20;

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

    /// Where it is noted which base images are whole.
    fn notes(&self) -> PathBuf {
        self.home.dir.join("bases")
    }

    /// The machine's record, its daemon, and the assurance that the domain is ours.
    async fn own(&self, claim: Claim) -> Result<(Vm, Virsh, State)> {
        let vm = self.folder(claim).demand()?;
        let virsh = Virsh::new(&vm.config);
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
        let virsh = Virsh::new(&self.config);
        let virt = accel::virt(
            &virsh,
            &self.home.assets,
            &self.config,
            spec.image.kernel.as_ref(),
            &self.home.dir,
        )
        .await?;
        let vm = Vm::new(spec, &self.config, virt.to_owned(), base_name(spec)?)?;
        folder.write(&vm)?;
        Ok(vm)
    }

    async fn make(&self, spec: &Spec, mut vm: Vm, folder: &Folder, virsh: &Virsh) -> Result<Vm> {
        let pool = Pool {
            virsh,
            name: &vm.config.pool.clone(),
        };
        let target = pool.ensure().await?.target;
        pool.base(&vm.base, &spec.image, &self.notes()).await?;
        pool.disk(&vm, vm.config.disk_bytes.max(spec.image.size))
            .await?;
        if !vm.seeded {
            pool.seed(&vm, &spec.seed, folder.path()).await?;
            vm.seeded = true;
            vm.folder = Some(target.clone());
            folder.write(&vm)?;
        }
        pool.console(&vm.console()).await?;
        network::ensure(virsh, &self.home.assets, &vm.nic.network).await?;
        network::lease(virsh, &vm.nic).await?;
        domain::check_name(virsh, &vm.name, vm.claim).await?;
        let console = target.join(vm.console());
        let document = domain::describe(&self.home.assets, &vm, &console.to_string_lossy())?;
        virsh.feed(&["define", "/dev/stdin"], &document).await?;
        if vm.config.autostart {
            virsh.call(&["autostart", &vm.claim.to_string()]).await?;
        }
        Ok(vm)
    }

    async fn power_on(&self, vm: &Vm, virsh: &Virsh, state: State) -> Result<()> {
        let claim = vm.claim.to_string();
        match state {
            State::Running | State::Starting | State::Stopping => Ok(()),
            State::Paused => virsh.call(&["resume", &claim]).await.map(drop),
            _ => {
                network::ensure(virsh, &self.home.assets, &vm.nic.network).await?;
                virsh.call(&["start", &claim]).await.map(drop)
            }
        }
    }
}

/// The volume of the base image: images of one store have names of their own, so another store's are others.
fn base_name(spec: &Spec) -> Result<String> {
    let id = spec
        .image
        .disk
        .parent()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!(
                    "`{}` is in no folder of an image",
                    spec.image.disk.display()
                ),
            )
        })?;
    let owner = spec
        .nic
        .as_ref()
        .map(|nic| nic.network.owner.simple().to_string())
        .unwrap_or_default();
    Ok(format!(
        "forge-base-{}-{id}.qcow2",
        owner.get(..8).unwrap_or("none")
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
            network: Some(self.config.network_cidr),
            leased: true,
            ..Wants::default()
        }
    }

    async fn check(&self, specs: &[Spec]) -> Result<()> {
        let config = &self.config;
        if process::which(&config.virsh).is_none() {
            return Err(Error::new(
                Kind::Precheck,
                format!("`{}`, which speaks to libvirt, is not installed", config.virsh.display()),
            )
            .hint("install it: Debian's package is `libvirt-clients`, the daemon's `libvirt-daemon-system`"));
        }
        let precheck = |error: Error| error.of_kind(Kind::Precheck);
        let virsh = Virsh::new(config);
        let pool = Pool {
            virsh: &virsh,
            name: &config.pool,
        };
        let need = DISK_NEED.saturating_mul(specs.len() as u64);
        if let Some(seen) = pool.check().await.map_err(precheck)?
            && seen.available < need
        {
            return Err(Error::new(
                Kind::Precheck,
                format!(
                    "the storage pool `{}` is too full: {} machines need {} MiB to begin with, and {} MiB are free",
                    config.pool,
                    specs.len(),
                    need >> 20,
                    seen.available >> 20
                ),
            )
            .hint("free some space in it, or choose another with `--libvirt-pool`"));
        }
        for spec in specs {
            if !spec.image.disk.is_file() {
                return Err(Error::new(
                    Kind::Precheck,
                    format!("the base image `{}` is missing", spec.image.disk.display()),
                )
                .hint(
                    "run `forge image ls` to see what there is, `forge image build` to make one",
                ));
            }
            domain::check_name(&virsh, &spec.name, spec.claim)
                .await
                .map_err(precheck)?;
        }
        if let Some(nic) = specs.iter().find_map(|spec| spec.nic.as_ref()) {
            network::check(&virsh, &nic.network)
                .await
                .map_err(precheck)?;
        }
        Ok(())
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let mut records: BTreeMap<Claim, Result<Option<Vm>>> = BTreeMap::new();
        for claim in claims {
            records.insert(*claim, self.folder(*claim).read());
        }
        // One connection for all machines of a daemon.
        let mut daemons: BTreeMap<&str, Vec<&Vm>> = BTreeMap::new();
        for vm in records
            .values()
            .filter_map(|record| record.as_ref().ok()?.as_ref())
        {
            daemons.entry(&vm.config.uri).or_default().push(vm);
        }
        let mut found: BTreeMap<Claim, Found> = BTreeMap::new();
        for vms in daemons.values() {
            let claims: Vec<Claim> = vms.iter().map(|vm| vm.claim).collect();
            let answers = domain::find(&Virsh::new(&vms[0].config), &claims).await?;
            found.extend(claims.into_iter().zip(answers));
        }
        Ok(claims
            .iter()
            .map(|claim| {
                let (state, instance) = match (&records[claim], found.get(claim)) {
                    (Ok(Some(vm)), Some(Found::Ours(state))) => (*state, Some(vm.instance())),
                    (Err(error), _) if error.kind() != Kind::Refused => (State::Error, None),
                    _ => (State::Absent, None),
                };
                Observation {
                    claim: *claim,
                    state,
                    network: None,
                    instance,
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
        let virsh = Virsh::new(&vm.config);
        let state = match domain::find_one(&virsh, vm.claim).await? {
            Found::Foreign => return Err(domain::foreign(vm.claim)),
            Found::Ours(state) => state,
            Found::Nothing => {
                vm = self.make(spec, vm, &folder, &virsh).await?;
                State::Stopped
            }
        };
        self.power_on(&vm, &virsh, state).await?;
        Ok(vm.instance())
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        let (vm, virsh, state) = self.own(claim).await?;
        let id = claim.to_string();
        let off = matches!(state, State::Stopped | State::Saved);
        match power {
            Power::On => self.power_on(&vm, &virsh, state).await,
            Power::Shutdown | Power::Kill if off => Ok(()),
            Power::Shutdown => virsh
                .call(&["shutdown", &id, "--mode", "acpi"])
                .await
                .map(drop),
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
            let virsh = Virsh::new(&vm.config);
            let id = claim.to_string();
            match domain::find_one(&virsh, claim).await? {
                Found::Foreign => return Err(domain::foreign(claim)),
                Found::Nothing => {}
                Found::Ours(state) => {
                    if !matches!(state, State::Stopped | State::Saved) {
                        // It may go down by itself in this moment; what does not shows below.
                        let _ = virsh.call(&["destroy", &id]).await;
                    }
                    virsh
                        .call(&[
                            "undefine",
                            &id,
                            "--managed-save",
                            "--snapshots-metadata",
                            "--checkpoints-metadata",
                            "--nvram",
                        ])
                        .await?;
                }
            }
            let pool = Pool {
                virsh: &virsh,
                name: &vm.config.pool.clone(),
            };
            if let Some(seen) = pool.check().await? {
                pool.start(seen).await?;
                pool.remove(&vm).await?;
                // Of machines that leave at the same time, the last to say so takes the base along.
                let base = vm.base.clone();
                let unused = || {
                    vm.leaving = true;
                    folder.write(&vm)?;
                    Ok(!records::<Vm>(&self.home.dir)?.iter().any(|other| {
                        !other.leaving
                            && other.base == vm.base
                            && other.config.pool == vm.config.pool
                    }))
                };
                pool.drop_base(&base, &self.notes(), unused).await?;
            }
            network::unlease(&virsh, &vm.nic).await?;
        }
        folder.remove()
    }

    async fn ensure_shared(&self, wanted: &Network) -> Result<()> {
        network::ensure(&Virsh::new(&self.config), &self.home.assets, wanted).await
    }

    async fn release_shared(&self, wanted: &Network) -> Result<()> {
        if records::<Vm>(&self.home.dir)?
            .iter()
            .any(|vm| vm.nic.network.id == wanted.id)
        {
            return Ok(());
        }
        network::release(&Virsh::new(&self.config), wanted).await
    }

    /// The file lies where the daemon keeps disks: root alone may read it there.
    fn console(&self, claim: Claim) -> Option<PathBuf> {
        let vm = self.folder(claim).read().ok()??;
        Some(vm.folder.as_ref()?.join(vm.console()))
    }
}
