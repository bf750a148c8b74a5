//! Managers and workers, spread over zones: plain arithmetic.

use forge_driver::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

pub use crate::place::{Role, Zone};

/// More machines than this are refused: it bounds every list that is made from the numbers.
pub const MOST_MACHINES: u32 = 1000;

/// Above this many managers, consensus traffic costs more than a further one gives.
pub const MANAGERS_THAT_PAY: u32 = 7;

/// One machine's role, its number within the role (from 1), and its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// What it does.
    pub role: Role,
    /// The number in its name.
    pub index: u32,
    /// Where it is.
    pub zone: Zone,
}

/// Where every machine goes, and what an operator should know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Places {
    /// Managers by number, then workers by number.
    pub nodes: Vec<Place>,
    /// What goes ahead but is not what it may seem.
    pub warnings: Vec<String>,
}

/// What is left of the managers when one zone is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Survivors {
    /// Managers outside the lost zone.
    pub managers: u32,
    /// Workers outside the lost zone.
    pub workers: u32,
    /// Managers that the quorum needs.
    pub needed: u32,
}

impl Survivors {
    /// Whether the managers that are left still decide.
    #[must_use]
    pub fn keep_quorum(&self) -> bool {
        self.managers >= self.needed
    }
}

/// How many of `managers` must agree: more than half of them.
#[must_use]
pub fn quorum(managers: u32) -> u32 {
    managers / 2 + 1
}

/// How many of `managers` may be lost with the quorum kept.
#[must_use]
pub fn tolerates(managers: u32) -> u32 {
    managers.saturating_sub(1) / 2
}

impl Places {
    /// What is left when `zone` is lost.
    #[must_use]
    pub fn without(&self, zone: Zone) -> Survivors {
        let count = |role: Role, lost: Option<Zone>| {
            let matching = self
                .nodes
                .iter()
                .filter(|place| place.role == role && Some(place.zone) != lost);
            u32::try_from(matching.count()).unwrap_or(u32::MAX)
        };
        Survivors {
            managers: count(Role::Manager, Some(zone)),
            workers: count(Role::Worker, Some(zone)),
            needed: quorum(count(Role::Manager, None)),
        }
    }
}

/// Spreads the machines evenly: within each role, and in all, no zone has two more than another.
///
/// # Errors
/// [`Kind::Usage`]: an even number of managers or none, no zone, or more zones than machines.
pub fn place(managers: u32, workers: u32, zones: u32) -> Result<Places> {
    extend(&[], managers, workers, zones)
}

/// Like [`place`], with machines that exist already: they stay where they are, and new ones go to the
/// zone with the fewest of their role, then with the fewest machines, then with the lowest number.
/// Without existing machines that is one round after the other.
///
/// # Errors
/// Those of [`place`], and [`Kind::Conflict`] when a machine stands in a zone that is not wished.
pub fn extend(existing: &[Place], managers: u32, workers: u32, zones: u32) -> Result<Places> {
    check(managers, workers, zones)?;
    if let Some(place) = existing
        .iter()
        .find(|place| place.zone.0 == 0 || place.zone.0 > zones)
    {
        let message = format!(
            "{} {} stands in zone `{}`, but only {zones} {} wished",
            place.role,
            place.index,
            place.zone,
            if zones == 1 { "zone is" } else { "zones are" },
        );
        return Err(Error::new(Kind::Conflict, message).hint(
            "machines stay in their zones: keep the number of zones, or remove that machine first",
        ));
    }
    let mut nodes: Vec<Place> = Vec::new();
    for (role, wished) in [(Role::Manager, managers), (Role::Worker, workers)] {
        let kept = |place: &&Place| place.role == role && (1..=wished).contains(&place.index);
        let kept: Vec<Place> = existing.iter().filter(kept).copied().collect();
        nodes.extend(&kept);
        for index in 1..=wished {
            if !kept.iter().any(|place| place.index == index) {
                nodes.push(Place {
                    role,
                    index,
                    zone: emptiest(&nodes, role, zones),
                });
            }
        }
    }
    nodes.sort_unstable_by_key(|place| (place.role, place.index));
    let mut places = Places {
        nodes,
        warnings: Vec::new(),
    };
    places.warnings = warnings(&places, managers, zones);
    Ok(places)
}

fn emptiest(nodes: &[Place], role: Role, zones: u32) -> Zone {
    (1..=zones)
        .map(Zone)
        .min_by_key(|&zone| {
            let here = nodes.iter().filter(|place| place.zone == zone);
            (
                here.clone().filter(|place| place.role == role).count(),
                here.count(),
                zone,
            )
        })
        .unwrap_or(Zone(1))
}

fn check(managers: u32, workers: u32, zones: u32) -> Result<()> {
    if managers == 0 {
        return Err(
            Error::new(Kind::Usage, "a cluster needs at least one manager")
                .hint("ask for `--managers 1`, or for `--managers 3` to survive the loss of one"),
        );
    }
    if managers.is_multiple_of(2) {
        let (below, above) = (managers - 1, managers.saturating_add(1));
        let message = format!("{managers} managers are refused: the number must be odd");
        let reason = format!(
            "{managers} managers need {} for a quorum and survive the loss of {}, as {below} already {}",
            quorum(managers),
            tolerates(managers),
            if below == 1 { "does" } else { "do" },
        );
        return Err(Error::new(Kind::Usage, message)
            .because(reason)
            .hint(format!(
                "ask for `--managers {below}` or `--managers {above}`"
            )));
    }
    let machines = managers.saturating_add(workers);
    if machines > MOST_MACHINES {
        return Err(Error::new(
            Kind::Usage,
            format!("{machines} machines are more than one cluster may have: {MOST_MACHINES}"),
        ));
    }
    if zones == 0 {
        return Err(Error::new(Kind::Usage, "a cluster needs at least one zone")
            .hint("ask for `--zones 1`"));
    }
    if zones > machines {
        let message = format!(
            "{zones} zones are more than the {}: some would stand empty",
            if machines == 1 {
                "one machine".to_owned()
            } else {
                format!("{machines} machines")
            },
        );
        return Err(Error::new(Kind::Usage, message).hint(format!(
            "ask for `--zones {machines}` or fewer, or for more machines"
        )));
    }
    Ok(())
}

fn warnings(places: &Places, managers: u32, zones: u32) -> Vec<String> {
    let mut warnings = Vec::new();
    if managers > MANAGERS_THAT_PAY {
        warnings.push(format!(
            "{managers} managers: above {MANAGERS_THAT_PAY} the consensus traffic costs more than it gives"
        ));
    }
    if zones < 2 {
        return warnings;
    }
    for zone in (1..=zones).map(Zone) {
        let left = places.without(zone);
        if left.keep_quorum() {
            continue;
        }
        let advice = if managers == 1 {
            "one manager cannot be spread: ask for 3 managers in 3 zones"
        } else if zones == 2 {
            "one of two zones always holds a quorum, so two zones give no tolerance: ask for 3 zones"
        } else {
            "the machines that exist hold that zone's share of managers too high"
        };
        warnings.push(format!(
            "losing zone `{zone}` stops the cluster: {} of {managers} managers would be left, {} are needed; {advice}",
            left.managers, left.needed,
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes(places: &Places, role: Option<Role>, zones: u32) -> Vec<usize> {
        (1..=zones)
            .map(|zone| {
                let here = places.nodes.iter().filter(|place| place.zone == Zone(zone));
                here.filter(|place| role.is_none_or(|role| place.role == role))
                    .count()
            })
            .collect()
    }

    fn even(sizes: &[usize]) -> bool {
        sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1
    }

    #[test]
    fn the_table() {
        let rows = [
            (1, 1, 0, [1, 0], [1, 0, 0]),
            (3, 2, 1, [2, 1], [1, 1, 1]),
            (5, 3, 2, [3, 2], [2, 2, 1]),
            (7, 4, 3, [4, 3], [3, 2, 2]),
            (9, 5, 4, [5, 4], [3, 3, 3]),
        ];
        for (managers, needed, lost, two, three) in rows {
            assert_eq!(quorum(managers), needed, "{managers}");
            assert_eq!(tolerates(managers), lost, "{managers}");
            for (zones, expected) in [(2, &two[..]), (3, &three[..])] {
                // With two workers, so that one manager can stand in three zones.
                let places = place(managers, 2, zones).expect("placed");
                assert_eq!(
                    sizes(&places, Some(Role::Manager), zones),
                    expected,
                    "{managers} in {zones}"
                );
            }
        }
    }

    #[test]
    fn workers_fill_the_zones_that_got_fewer_managers() {
        let places = place(5, 1, 3).expect("placed");
        assert_eq!(sizes(&places, Some(Role::Worker), 3), [0, 0, 1]);
        let places = place(3, 2, 2).expect("placed");
        assert_eq!(sizes(&places, None, 2), [3, 2]);
        assert_eq!(
            places.nodes[3],
            Place {
                role: Role::Worker,
                index: 1,
                zone: Zone(2)
            }
        );
    }

    #[test]
    fn even_numbers_and_none_are_refused_with_the_nearest_good_ones() {
        for (managers, hint) in [
            (
                0,
                "ask for `--managers 1`, or for `--managers 3` to survive the loss of one",
            ),
            (2, "ask for `--managers 1` or `--managers 3`"),
            (4, "ask for `--managers 3` or `--managers 5`"),
        ] {
            let error = place(managers, 2, 1).expect_err("refused");
            assert_eq!(error.kind(), Kind::Usage);
            assert_eq!(error.deepest_hint(), Some(hint));
        }
        let error = place(4, 0, 1).expect_err("refused");
        assert_eq!(
            error.line(),
            "4 managers are refused: the number must be odd: \
             4 managers need 3 for a quorum and survive the loss of 1, as 3 already do"
        );
    }

    #[test]
    fn zones_without_a_machine_are_refused() {
        assert_eq!(place(3, 0, 0).expect_err("none").kind(), Kind::Usage);
        let error = place(3, 1, 5).expect_err("too many");
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(
            error.message(),
            "5 zones are more than the 4 machines: some would stand empty"
        );
        assert_eq!(place(1, 0, 2).expect_err("too many").kind(), Kind::Usage);
        // A zone of workers alone is a sound wish: every manager still has a zone of its own.
        assert_eq!(
            place(3, 2, 5).expect("placed").warnings,
            Vec::<String>::new()
        );
        assert_eq!(
            place(u32::MAX, u32::MAX, 1).expect_err("huge").kind(),
            Kind::Usage
        );
    }

    #[test]
    fn two_zones_warn_and_name_the_zone() {
        let warnings = place(3, 0, 2).expect("goes ahead").warnings;
        assert_eq!(
            warnings,
            [
                "losing zone `z1` stops the cluster: 1 of 3 managers would be left, 2 are needed; \
              one of two zones always holds a quorum, so two zones give no tolerance: ask for 3 zones"
            ]
        );
        assert_eq!(
            place(3, 0, 1).expect("placed").warnings,
            Vec::<String>::new()
        );
        assert_eq!(
            place(3, 0, 3).expect("placed").warnings,
            Vec::<String>::new()
        );
    }

    #[test]
    fn one_manager_in_several_zones_and_more_than_seven_warn() {
        let warnings = place(1, 2, 3).expect("goes ahead").warnings;
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("losing zone `z1` stops the cluster: 0 of 1"),
            "{warnings:?}"
        );
        let warnings = place(9, 0, 3).expect("goes ahead").warnings;
        assert_eq!(
            warnings,
            ["9 managers: above 7 the consensus traffic costs more than it gives"]
        );
        assert!(place(7, 0, 3).expect("placed").warnings.is_empty());
    }

    #[test]
    fn existing_machines_stay_where_they_are() {
        let mut existing = place(3, 2, 3).expect("placed").nodes;
        let grown = extend(&existing, 5, 4, 3).expect("grown");
        for place in &existing {
            assert!(grown.nodes.contains(place), "{place:?}");
        }
        assert!(even(&sizes(&grown, Some(Role::Manager), 3)));
        // A lost machine is put back into the zone that it left.
        let lost = existing.remove(1);
        assert!(
            extend(&existing, 3, 2, 3)
                .expect("mended")
                .nodes
                .contains(&lost)
        );
        let error = extend(&existing, 3, 2, 2).expect_err("zone gone");
        assert_eq!(error.kind(), Kind::Conflict);
    }

    #[test]
    fn zones_survive_their_text() {
        assert_eq!("z12".parse::<Zone>().expect("a zone"), Zone(12));
        for text in ["", "z", "z0", "z+1", "z01", "1", "zone1", "z-1"] {
            assert!(text.parse::<Zone>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_machine_is_placed_once_and_evenly(half in 0_u32..20, workers in 0_u32..60, zones in 1_u32..12) {
            let managers = 2 * half + 1;
            prop_assume!(zones <= managers + workers);
            let places = place(managers, workers, zones).expect("placed");
            let wished: Vec<(Role, u32)> = (1..=managers).map(|index| (Role::Manager, index))
                .chain((1..=workers).map(|index| (Role::Worker, index))).collect();
            let placed: Vec<(Role, u32)> = places.nodes.iter().map(|place| (place.role, place.index)).collect();
            prop_assert_eq!(placed, wished);
            prop_assert!(places.nodes.iter().all(|place| (1..=zones).contains(&place.zone.0)));
            for role in [Some(Role::Manager), Some(Role::Worker), None] {
                prop_assert!(even(&sizes(&places, role, zones)), "{:?}", sizes(&places, role, zones));
            }
            prop_assert!(!sizes(&places, None, zones).contains(&0));
        }

        #[test]
        fn a_zone_is_named_exactly_when_its_loss_stops_the_managers(half in 0_u32..10, workers in 0_u32..12, zones in 2_u32..6) {
            let managers = 2 * half + 1;
            prop_assume!(zones <= managers + workers);
            let places = place(managers, workers, zones).expect("placed");
            for zone in (1..=zones).map(Zone) {
                let lost = sizes(&places, Some(Role::Manager), zones)[zone.0 as usize - 1];
                let left = managers as usize - lost;
                // From first principles: a majority of all managers, the lost ones included.
                let decides = 2 * left > managers as usize;
                prop_assert_eq!(places.without(zone).keep_quorum(), decides);
                let named = places.warnings.iter().any(|text| text.starts_with(&format!("losing zone `{zone}` ")));
                prop_assert_eq!(named, !decides);
            }
            if zones == 2 {
                prop_assert!(places.warnings.iter().any(|text| text.contains("stops the cluster")));
            }
            if zones > 2 && managers > 1 {
                prop_assert!(places.warnings.iter().all(|text| !text.contains("stops the cluster")));
            }
        }

        #[test]
        fn quorum_is_the_smallest_majority(managers in 1_u32..1000) {
            prop_assert!(2 * quorum(managers) > managers);
            prop_assert!(2 * (quorum(managers) - 1) <= managers);
            prop_assert_eq!(managers - tolerates(managers), quorum(managers));
        }

        #[test]
        fn growing_moves_nothing(half in 0_u32..5, more in 0_u32..5, workers in 0_u32..10, extra in 0_u32..10, zones in 1_u32..6) {
            let managers = 2 * half + 1;
            prop_assume!(zones <= managers + workers);
            let before = place(managers, workers, zones).expect("placed");
            let after = extend(&before.nodes, managers + 2 * more, workers + extra, zones).expect("grown");
            for place in &before.nodes {
                prop_assert!(after.nodes.contains(place));
            }
            prop_assert!(even(&sizes(&after, Some(Role::Manager), zones)));
            prop_assert!(even(&sizes(&after, Some(Role::Worker), zones)));
        }
    }
}
