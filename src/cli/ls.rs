//! `forge ls`

mod filter;

use std::time::Duration;

use clap::{ArgMatches, Args};
use forge::machine::companions::Config;
use forge::machine::survey::{Condition, Depth, Heard, names, survey};
use forge::machine::tls::{self, Ending};
use forge::machine::{Forge, Record, Stage, relocate};
use forge::place::Role;
use forge::store::Store;
use forge::transfer::import;
use forge_driver::{Context, Error, Kind, Result, State};
use serde_json::{Value, json};

use super::format::Layout;
use super::persona::Persona;
use super::table::table;
use super::wait::Wait;
use super::{Outcome, Session, report};
use filter::{Facts, Filters};

/// List machines
#[derive(Args)]
pub struct Ls {
    /// Print names only; no provider is asked, unless to filter by state
    #[arg(short, long)]
    quiet: bool,
    /// Only machines that fit: driver=NAME, state=STATE, name=REGEX, label=KEY=VALUE, swarm=CLUSTER; of several of
    /// one key one has to fit
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Print each machine by a Go template: {{.Name}} {{.State}} …; `table ` before it adds headings
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

const HEADINGS: [&str; 8] = [
    "NAME", "ACTIVE", "DRIVER", "STATE", "URL", "CLUSTER", "DOCKER", "ERRORS",
];

/// The table of docker-machine (`commands/ls.go`, `lsDefaultFormat`).
const DOCKER_MACHINE: &str = "table {{.Name}}\t{{.Active}}\t{{.DriverName}}\t{{.State}}\t{{.URL}}\t{{.Swarm}}\t{{.DockerVersion}}\t{{.Error}}";

/// What templates can show that only providers tell …
const OF_STATES: [&str; 6] = [
    "Active",
    "ActiveHost",
    "State",
    "URL",
    "Error",
    "ResponseTime",
];
/// … and what engines do.
const OF_ENGINES: [&str; 3] = ["DockerVersion", "Error", "ResponseTime"];

/// What templates can show that is made out of the whole record.
const OF_OPTIONS: [&str; 2] = ["EngineOptions", "SwarmOptions"];

/// One machine of the list.
struct Row {
    name: String,
    /// With what was heard of it.
    found: Result<(Record, Heard)>,
    /// The certificate that is near its end.
    ending: Option<Ending>,
    columns: Persona,
}

impl Ls {
    /// Prints the list.
    pub async fn run(self, session: &Session, matches: &ArgMatches) -> Result<Outcome> {
        let columns = session.persona();
        let filters = Filters::parse(&self.filters)?;
        let standard = (columns == Persona::DockerMachine).then_some(DOCKER_MACHINE);
        let layout = self.format.as_deref().or(standard).map(Layout::parse);
        let layout = layout.transpose()?;
        let store = session.existing()?;
        if self.quiet && filters.by_name_alone() {
            let mut names = store.as_ref().map_or(Ok(Vec::new()), names)?;
            names.retain(|name| filters.take_name(name));
            show_names(session, &names);
            return Ok(Outcome::Done);
        }
        let depth = if self.quiet {
            Depth::Records
        } else {
            depth(session.json(), layout.as_ref())
        };
        let depth = depth.max(if filters.by_state() {
            Depth::States
        } else {
            Depth::Records
        });
        let rows = match &store {
            Some(store) => {
                let forge = session.forge(store.clone(), forge::event::Events::silent());
                rows(
                    &forge,
                    &filters,
                    depth,
                    self.wait.patience(session, matches, "ls")?,
                    columns,
                )
                .await?
            }
            None => Vec::new(),
        };
        if self.quiet {
            let names: Vec<String> = rows.into_iter().map(|row| row.name).collect();
            show_names(session, &names);
        } else if session.json() {
            println!("{}", Value::Array(rows.iter().map(Row::json).collect()));
        } else if let Some(layout) = layout {
            let options = layout.shows(&OF_OPTIONS);
            let fields = rows.iter().map(|row| match (row.record(), &store) {
                (Some(record), Some(store)) if options => {
                    Ok(row.fields(&host_options(record, store)?))
                }
                _ => Ok(row.fields(&Value::Null)),
            });
            print!(
                "{}",
                layout.render(&headings(), &fields.collect::<Result<Vec<_>>>()?)?
            );
        } else {
            let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
            print!("{}", table(&HEADINGS, &cells));
        }
        // Whoever runs scripts is told by `forge doctor`.
        if !self.quiet
            && columns == Persona::Forge
            && let Some(Ok(Some(missing))) = store.as_ref().map(import::cut_off)
        {
            report::note(&format!(
                "{}\nhint: {}",
                import::left_over(&missing),
                import::GO_ON
            ));
        }
        Ok(Outcome::Done)
    }
}

/// Names alone: one a line, or as a list.
fn show_names(session: &Session, names: &[String]) {
    if session.json() {
        println!("{}", json!(names));
    } else {
        let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
        print!("{lines}");
    }
}

/// How far has to be asked for what is shown.
fn depth(json: bool, layout: Option<&Layout>) -> Depth {
    match layout {
        Some(layout) if !json => {
            if layout.shows(&OF_ENGINES) {
                Depth::Engines
            } else if layout.shows(&OF_STATES) {
                Depth::States
            } else {
                Depth::Records
            }
        }
        _ => Depth::Engines,
    }
}

/// The machines that the filters let through, in order.
async fn rows(
    forge: &Forge,
    filters: &Filters,
    depth: Depth,
    patience: Duration,
    columns: Persona,
) -> Result<Vec<Row>> {
    let mut order: Vec<(String, Option<Error>)> = Vec::new();
    let mut asked = Vec::new();
    for (name, record) in listed(&forge.store, filters)? {
        match record {
            Ok(record) => {
                asked.push(record);
                order.push((name, None));
            }
            Err(error) => order.push((name, Some(error))),
        }
    }
    let heard = survey(forge, &mut asked, depth, patience).await;
    let mut answers = asked.into_iter().zip(heard);
    let mut rows = Vec::with_capacity(order.len());
    for (name, damage) in order {
        let found = match damage {
            Some(error) => Err(error),
            None => match answers.next() {
                Some(answer) => Ok(answer),
                None => break,
            },
        };
        let ending = match &found {
            Ok((record, _)) if depth > Depth::Records && record.stage == Stage::Ready => {
                tls::ending(&forge.store, record)
            }
            _ => None,
        };
        rows.push(Row {
            name,
            found,
            ending,
            columns,
        });
    }
    rows.retain(|row| filters.take_state(&row.state()));
    Ok(rows)
}

/// The records that are let through; one that cannot be read has no driver, no label and no swarm.
fn listed(store: &Store, filters: &Filters) -> Result<Vec<(String, Result<Record>)>> {
    let mut records = Record::all(store)?;
    records.retain(|(name, record)| {
        let record = record.as_ref().ok();
        filters.take_name(name)
            && filters.take_facts(&Facts {
                driver: record.map_or("", Record::made_by),
                labels: labels(record),
                swarm: record
                    .and_then(|record| record.member.as_ref())
                    .map(|member| member.cluster.as_str()),
            })
    });
    Ok(records)
}

/// The labels that an engine was given when it was made.
fn labels(record: Option<&Record>) -> &[String] {
    record.map_or(&[], |record| record.engine.labels.as_slice())
}

/// What docker-machine kept of a machine besides what its driver knew.
fn host_options(record: &Record, store: &Store) -> Result<Value> {
    let mut config = serde_json::to_value(Config::of(record, store))
        .or_fail(Kind::Invalid, || {
            format!("the record of `{}` cannot be printed", record.name)
        })?;
    Ok(config["HostOptions"].take())
}

impl Row {
    fn record(&self) -> Option<&Record> {
        self.found.as_ref().ok().map(|(record, _)| record)
    }

    fn heard(&self) -> Option<&Heard> {
        self.found.as_ref().ok().map(|(_, heard)| heard)
    }

    fn runs(&self) -> bool {
        self.heard()
            .is_some_and(|heard| heard.condition == Condition::Told(State::Running))
            && !self.given_up()
    }

    /// docker-machine gave up a machine as a whole whose engine did not answer in time.
    fn given_up(&self) -> bool {
        self.columns == Persona::DockerMachine && self.heard().is_some_and(|heard| heard.late)
    }

    fn state(&self) -> String {
        match self.heard() {
            None => State::Error.to_string(),
            Some(_) if self.given_up() => Condition::Timeout.to_string(),
            // It had no word for that.
            Some(heard)
                if self.columns == Persona::DockerMachine
                    && heard.condition == Condition::Unknown =>
            {
                State::Error.to_string()
            }
            Some(heard) => self.columns.state(heard.condition),
        }
    }

    fn driver(&self) -> &str {
        self.record().map_or("not found", Record::made_by)
    }

    fn url(&self) -> String {
        self.record()
            .filter(|record| record.stage == Stage::Ready && (self.runs() || record.is_url_alone()))
            .and_then(|record| record.url().ok())
            .unwrap_or_default()
    }

    fn active(&self) -> bool {
        let url = self.url();
        !url.is_empty() && std::env::var("DOCKER_HOST").is_ok_and(|host| host == url)
    }

    /// The engine's version. docker-machine had a word for every machine that it did not give up.
    fn docker(&self) -> String {
        let Some(heard) = self.heard() else {
            return String::new();
        };
        let unknown = match self.columns {
            Persona::Forge => self.runs(),
            Persona::DockerMachine => heard.condition != Condition::Timeout && !self.given_up(),
        };
        match &heard.engine {
            Some(version) => format!("v{version}"),
            None if unknown => "Unknown".to_owned(),
            None => String::new(),
        }
    }

    fn cluster(&self) -> String {
        self.record()
            .and_then(|record| record.member.as_ref())
            .map(|member| format!("{} ({}, {})", member.cluster, member.role, member.zone))
            .unwrap_or_default()
    }

    /// The cluster in the form that docker-machine had for its swarms.
    fn swarm(&self) -> String {
        self.record()
            .and_then(|record| record.member.as_ref())
            .map(|member| match member.role {
                Role::Manager => format!("{} (master)", member.cluster),
                Role::Worker => member.cluster.clone(),
            })
            .unwrap_or_default()
    }

    /// What keeps the machine from being used, in a few words.
    fn trouble(&self) -> String {
        let (record, heard) = match &self.found {
            Err(error) if error.kind() == Kind::Newer => {
                return "made by a newer forge".to_owned();
            }
            Err(error) => return error.message().to_owned(),
            Ok((record, heard)) => (record, heard),
        };
        let name = &record.name;
        if record.leaving {
            return format!("being removed: `forge rm {name}` goes on");
        }
        if record.stage != Stage::Ready {
            return format!("{}: {} goes on", record.stage, record.resumed_by());
        }
        let told = |ending: &Ending| format!("{ending}: {}", ending.remedy(name));
        match (&heard.trouble, &self.ending) {
            // That is why nothing else works.
            (_, Some(ending)) if ending.over() => told(ending),
            (Some(trouble), _) => trouble.clone(),
            (None, _) if heard.condition == Condition::Told(State::Absent) => {
                "the virtual machine is gone".to_owned()
            }
            (None, Some(ending)) => told(ending),
            (None, None) if self.runs() && !relocate::named(record) => format!(
                "its certificate does not carry its new address: `forge env {name}` makes it anew"
            ),
            (None, None) => String::new(),
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            if self.active() { "*" } else { "-" }.to_owned(),
            self.driver().to_owned(),
            self.state(),
            self.url(),
            self.cluster(),
            self.docker(),
            self.trouble(),
        ]
    }

    fn json(&self) -> Value {
        let record = self.record();
        json!({
            "name": self.name,
            "driver": record.map(Record::made_by),
            "state": self.state(),
            "stage": record.map(|record| record.stage),
            "url": self.url(),
            "ip": record.and_then(|record| record.endpoints().ok()).map(|endpoints| endpoints.ssh.ip()),
            "active": self.active(),
            "member": record.and_then(|record| record.member.as_ref()),
            "engine": self.heard().and_then(|heard| heard.engine.as_ref()),
            "error": self.trouble(),
        })
    }

    /// What a template can show, by docker-machine's names, and the place in a cluster (`Cluster`). `options` are the
    /// [`host_options`], where they are shown.
    fn fields(&self, options: &Value) -> Value {
        let active = self.active();
        json!({
            "Name": self.name,
            "Active": if active { "*" } else { "-" },
            "ActiveHost": active,
            "ActiveSwarm": false,
            "DriverName": self.driver(),
            "State": self.state(),
            "URL": self.url(),
            "SwarmOptions": options["SwarmOptions"],
            "Swarm": self.swarm(),
            "EngineOptions": options["EngineOptions"],
            "Error": self.trouble(),
            "DockerVersion": self.docker(),
            "ResponseTime": self.heard().map_or_else(String::new, |heard| duration(heard.took)),
            "Cluster": self.cluster(),
        })
    }
}

/// What stands above the columns of a table that shows these fields.
fn headings() -> Value {
    json!({
        "Name": "NAME",
        "Active": "ACTIVE",
        "ActiveHost": "ACTIVE_HOST",
        "ActiveSwarm": "ACTIVE_SWARM",
        "DriverName": "DRIVER",
        "State": "STATE",
        "URL": "URL",
        "SwarmOptions": "SWARM_OPTIONS",
        "Swarm": "SWARM",
        "EngineOptions": "ENGINE_OPTIONS",
        "Error": "ERRORS",
        "DockerVersion": "DOCKER",
        "ResponseTime": "RESPONSE",
        "Cluster": "CLUSTER",
    })
}

/// A time in milliseconds, as Go prints it (`time.Duration.String`): `0s`, `120ms`, `1.5s`, `1m0.25s`.
fn duration(took: Duration) -> String {
    let millis = took.saturating_add(Duration::from_micros(500)).as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_docker_machine_is_one_that_can_be_shown() {
        let layout = Layout::parse(DOCKER_MACHINE).expect("a template");
        assert_eq!(
            layout.render(&headings(), &[]).expect("headings"),
            "NAME   ACTIVE   DRIVER   STATE   URL   SWARM   DOCKER   ERRORS\n"
        );
        assert_eq!(depth(false, Some(&layout)), Depth::Engines);
    }

    #[test]
    fn nobody_is_asked_for_what_is_recorded() {
        for (format, needed) in [
            ("{{.Name}} {{.DriverName}} {{.Swarm}}", Depth::Records),
            ("{{.Name}}\\t{{.URL}}", Depth::States),
            ("{{if .ActiveHost}}*{{end}}", Depth::States),
            ("table {{.Name}} {{.DockerVersion}}", Depth::Engines),
            ("{{json .}}", Depth::Engines),
        ] {
            let layout = Layout::parse(format).expect(format);
            assert_eq!(depth(false, Some(&layout)), needed, "{format}");
            assert_eq!(depth(true, Some(&layout)), Depth::Engines, "{format}");
        }
        assert_eq!(depth(false, None), Depth::Engines);
    }

    #[test]
    fn times_are_go_s() {
        for (millis, text) in [
            (0, "0s"),
            (1, "1ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1250, "1.25s"),
            (10_000, "10s"),
            (60_000, "1m0s"),
            (83_500, "1m23.5s"),
            (3_600_000, "1h0m0s"),
            (86_400_000, "24h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_micros(1499)), "1ms");
        assert_eq!(duration(Duration::from_micros(1500)), "2ms");
    }
}
