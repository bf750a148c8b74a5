//! The NoCloud seed of a machine, from its record and the keys beside it.

use forge_driver::assets::Assets;
use forge_driver::{Context, Error, Kind, Mac, Result, Seed};
use serde_json::json;
use tera::Tera;

use super::Record;
use crate::remote::KeyPair;

/// What lies beside the record until the first contact is over.
pub(super) const FIRST_HOST_KEY: &str = "first_host_key";

/// Renders the seed: user, authorised key, the host key for the first contact, addresses by hardware
/// address.
pub(super) fn render(
    assets: &Assets,
    record: &Record,
    authorized_key: &str,
    first_host_key: &KeyPair,
) -> Result<Seed> {
    let placement = &record.placement;
    let led_out = |mac: Mac| json!({"mac": mac, "dhcp": true, "address": null});
    let nics = match &placement.nic {
        Some(nic) if placement.leased => vec![led_out(nic.mac)],
        Some(nic) => vec![
            led_out(placement.outer_mac),
            json!({
                "mac": nic.mac,
                "dhcp": placement.served,
                "address": (!placement.served)
                    .then(|| format!("{}/{}", nic.address, nic.network.cidr.prefix_len())),
            }),
        ],
        None => vec![led_out(placement.outer_mac)],
    };
    let values = json!({
        "name": record.name,
        "user": record.ssh.user,
        "authorized_key": authorized_key.trim(),
        "host_key_private": first_host_key.private_openssh.expose(),
        "host_key_public": first_host_key.public_openssh.trim(),
        "instance_id": record.claim,
        "nics": nics,
    });
    let context = tera::Context::from_value(values).map_err(|error| {
        Error::new(Kind::Invalid, "the values of the seed are malformed").because(error)
    })?;
    let part = |name: &str| -> Result<String> {
        let path = format!("templates/seed/{name}.tera");
        // Not escaped: the documents are YAML, and every value is checked to be one word or a key.
        Tera::one_off(&assets.read(&path)?, &context, false)
            .or_fail(Kind::Invalid, || format!("failed to render `{path}`"))
    };
    Ok(Seed {
        user_data: part("user-data")?,
        meta_data: part("meta-data")?,
        network_config: part("network-config")?,
    })
}
