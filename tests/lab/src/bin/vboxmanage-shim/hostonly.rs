//! Host-only interfaces. To the real VBoxManage every interface named `vboxnetN` is one: it lists them and
//! gives them their addresses. Making and removing them takes its kernel module, so that is done here.

use crate::network::{exists, ip};
use crate::{Result, real};

/// The number of interfaces that VirtualBox itself allows.
const MOST: u32 = 128;

/// `hostonlyif create`: the first free name, with the address that VirtualBox gives it.
pub fn create() -> Result<u8> {
    let number = (0..MOST)
        .find(|number| !exists(&format!("vboxnet{number}")))
        .ok_or("too many host-only interfaces")?;
    let name = format!("vboxnet{number}");
    let mac = format!("0a:00:27:00:00:{number:02x}");
    ip(&["link", "add", &name, "address", &mac, "type", "bridge"])?;
    ip(&[
        "addr",
        "add",
        &format!("192.168.{}.1/24", 56 + number),
        "dev",
        &name,
    ])?;
    ip(&["link", "set", &name, "up"])?;
    eprintln!("0%...10%...20%...30%...40%...50%...60%...70%...80%...90%...100%");
    println!("Interface '{name}' was successfully created");
    Ok(0)
}

/// `hostonlyif remove`: an unknown one is refused by the real VBoxManage.
pub fn remove(name: &str) -> Result<u8> {
    if !name.starts_with("vboxnet") || !exists(name) {
        return real::exec(&["hostonlyif", "remove", name].map(Into::into));
    }
    ip(&["link", "delete", name])?;
    eprintln!("0%...10%...20%...30%...40%...50%...60%...70%...80%...90%...100%");
    Ok(0)
}
