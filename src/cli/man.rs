//! `forge man`

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man as Page;
use forge_driver::{Context, Kind, Result, atomic};
use serde_json::json;

use super::{Outcome, Session, report, tree};

/// Write manual pages into a folder, one for each command
///
/// `forge man ~/.local/share/man/man1` puts them where `man forge` finds them.
#[derive(Args)]
pub struct Man {
    /// The folder; it is made when it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    /// Writes the pages.
    pub fn run(self, session: &Session) -> Result<Outcome> {
        let pages = pages(tree::everything(session.persona()))?;
        fs::create_dir_all(&self.folder).map_err(|error| {
            let folder = self.folder.display();
            atomic::full(error, &format!("failed to make the folder `{folder}`"))
        })?;
        for (name, text) in &pages {
            atomic::write(&self.folder.join(name), text, 0o644)?;
        }
        if session.json() {
            let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
            println!("{}", json!({"folder": self.folder, "pages": names}));
        } else {
            let (count, folder) = (pages.len(), self.folder.display());
            report::note(&format!("{count} pages are in `{folder}`"));
        }
        Ok(Outcome::Done)
    }
}

/// The pages of a command and of those below it: file names and what is in them.
fn pages(whole: Command) -> Result<Vec<(String, Vec<u8>)>> {
    let mut whole = whole.disable_help_subcommand(true);
    let program = whole.get_name().to_owned();
    whole.build();
    let mut pages = Vec::new();
    let mut commands = vec![&whole];
    while let Some(command) = commands.pop() {
        commands.extend(
            command
                .get_subcommands()
                .filter(|command| !command.is_hide_set()),
        );
        pages.push(page(command, &program)?);
    }
    pages.sort();
    Ok(pages)
}

/// One page. Its generator leaves empty words out of the title, and counts up every option in the synopsis.
fn page(command: &Command, program: &str) -> Result<(String, Vec<u8>)> {
    let page = Page::new(command.clone());
    let mut bytes = Vec::new();
    page.render(&mut bytes).or_fail(Kind::Io, failed)?;
    let text = String::from_utf8(bytes).or_fail(Kind::Invalid, failed)?;
    let file = page.get_filename();
    let name = file.trim_end_matches(".1").replace('-', "\\-");
    let title = format!(
        ".TH \"{name}\" \"1\" \"\" \"{program} {}\" \"{program}\"",
        env!("CARGO_PKG_VERSION")
    );
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let mut whole = String::new();
    let mut in_synopsis = false;
    for line in text.lines() {
        if line.starts_with(".SH") {
            in_synopsis = line == ".SH SYNOPSIS";
        }
        if line.starts_with(".TH") {
            whole.push_str(&title);
        } else if line == ".SH SYNOPSIS" {
            whole.push_str(&format!("{line}\n{}", usage.replace('-', "\\-")));
        } else if in_synopsis {
            continue;
        } else {
            whole.push_str(line);
        }
        whole.push('\n');
    }
    Ok((file, whole.into_bytes()))
}

fn failed() -> String {
    "failed to write a page".to_owned()
}
