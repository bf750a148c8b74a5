//! `--filter KEY=VALUE`: which machines are listed. Of several values of a key one has to fit, and of all keys.

use forge_driver::{Error, Kind, Result};
use regex::Regex;

/// The filters of one list.
#[derive(Debug, Default)]
pub struct Filters {
    drivers: Vec<String>,
    states: Vec<String>,
    names: Vec<Regex>,
    labels: Vec<(String, String)>,
    swarms: Vec<String>,
}

/// What is recorded of a machine that filters look at.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// Its driver.
    pub driver: &'a str,
    /// The labels of its engine, `KEY=VALUE`.
    pub labels: &'a [String],
    /// The swarm that it belongs to.
    pub swarm: Option<&'a str>,
}

impl Filters {
    /// Reads filters.
    ///
    /// # Errors
    /// [`Kind::Invalid`], which names the filter that makes no sense.
    pub fn parse(filters: &[String]) -> Result<Self> {
        let mut read = Self::default();
        for filter in filters {
            read.add(filter)?;
        }
        Ok(read)
    }

    fn add(&mut self, filter: &str) -> Result<()> {
        let wrong = |what: String| {
            Error::new(Kind::Invalid, what)
                .hint("write `driver=`, `state=`, `name=REGEX`, `label=KEY=VALUE` or `swarm=`")
        };
        let Some((key, value)) = filter.split_once('=') else {
            return Err(wrong(format!("unsupported filter syntax: `{filter}`")));
        };
        match key.to_lowercase().as_str() {
            "driver" => self.drivers.push(value.to_owned()),
            "state" => self.states.push(value.to_owned()),
            "swarm" => self.swarms.push(value.to_owned()),
            "name" => self.names.push(Regex::new(value).map_err(|error| {
                // The last line of several says what is wrong.
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default();
                wrong(format!("`{value}` is not a regular expression"))
                    .because(why.trim_start_matches("error: ").to_owned())
            })?),
            "label" => match value.split_once('=') {
                Some((label, value)) => self.labels.push((label.to_owned(), value.to_owned())),
                None => {
                    return Err(wrong(format!("unsupported filter syntax: `{filter}`"))
                        .because("a label has a value"));
                }
            },
            _ => return Err(wrong(format!("unsupported filter key `{key}`"))),
        }
        Ok(())
    }

    /// Whether names are enough to decide.
    pub fn by_name_alone(&self) -> bool {
        self.drivers.is_empty()
            && self.states.is_empty()
            && self.labels.is_empty()
            && self.swarms.is_empty()
    }

    /// Whether states are needed to decide.
    pub fn by_state(&self) -> bool {
        !self.states.is_empty()
    }

    /// Whether a machine of this name is listed, as far as its name decides.
    pub fn take_name(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|regex| regex.is_match(name))
    }

    /// Whether it is, as far as what is recorded of it decides.
    pub fn take_facts(&self, facts: &Facts<'_>) -> bool {
        let label = |(key, value): &(String, String)| {
            facts.labels.iter().any(|label| {
                label
                    .split_once('=')
                    .is_some_and(|(name, is)| name == key && alike(is, value))
            })
        };
        one_fits(&self.drivers, |driver| alike(driver, facts.driver))
            && one_fits(&self.swarms, |swarm| {
                facts.swarm.is_some_and(|is| alike(is, swarm))
            })
            && (self.labels.is_empty() || self.labels.iter().any(label))
    }

    /// Whether it is, as far as its state decides.
    pub fn take_state(&self, state: &str) -> bool {
        one_fits(&self.states, |wished| alike(wished, state))
    }
}

fn one_fits(wished: &[String], fits: impl Fn(&str) -> bool) -> bool {
    wished.is_empty() || wished.iter().any(|wished| fits(wished))
}

fn alike(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(words: &[&str]) -> Filters {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Filters::parse(&words).expect("they make sense")
    }

    fn refused(word: &str) -> String {
        let error = Filters::parse(&[word.to_owned()]).expect_err(word);
        assert_eq!(error.kind(), Kind::Invalid, "{word}");
        error.line()
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        assert_eq!(refused("running"), "unsupported filter syntax: `running`");
        assert_eq!(refused("color=red"), "unsupported filter key `color`");
        assert_eq!(
            refused("label=zone"),
            "unsupported filter syntax: `label=zone`: a label has a value"
        );
        assert_eq!(
            refused("name=["),
            "`[` is not a regular expression: unclosed character class"
        );
        assert_eq!(refused(""), "unsupported filter syntax: ``");
    }

    #[test]
    fn without_filters_everything_is_taken() {
        let none = filters(&[]);
        assert!(none.take_name("n1") && none.take_facts(&Facts::default()) && none.take_state(""));
        assert!(none.by_name_alone() && !none.by_state());
    }

    #[test]
    fn one_value_of_a_key_is_enough_and_every_key_has_to_fit() {
        let two = filters(&["driver=qemu", "driver=VirtualBox", "swarm=k1"]);
        let facts = |driver, swarm| Facts {
            driver,
            swarm,
            labels: &[],
        };
        assert!(two.take_facts(&facts("qemu", Some("K1"))));
        assert!(two.take_facts(&facts("virtualbox", Some("k1"))));
        assert!(!two.take_facts(&facts("libvirt", Some("k1"))));
        assert!(!two.take_facts(&facts("qemu", Some("k2"))));
        assert!(!two.take_facts(&facts("qemu", None)));
        assert!(!two.by_name_alone());
    }

    #[test]
    fn names_are_searched_for_and_states_compared() {
        let both = filters(&["NAME=^web", "name=db.?$", "State=running", "state=Saved"]);
        assert!(both.take_name("web-1") && both.take_name("mydb2"));
        assert!(!both.take_name("my-web"));
        assert!(both.take_state("Running") && both.take_state("Saved"));
        assert!(!both.take_state("Stopped"));
        assert!(both.by_state() && !both.by_name_alone());
    }

    #[test]
    fn labels_fit_by_key_to_the_letter_and_by_value_in_any_case() {
        let labels = ["zone=Z1".to_owned(), "eq=a=b".to_owned(), "bare".to_owned()];
        let facts = Facts {
            labels: &labels,
            ..Facts::default()
        };
        assert!(filters(&["label=zone=z1"]).take_facts(&facts));
        assert!(filters(&["label=eq=a=b"]).take_facts(&facts));
        assert!(filters(&["label=zone=z2", "label=zone=z1"]).take_facts(&facts));
        assert!(!filters(&["label=Zone=z1"]).take_facts(&facts));
        assert!(!filters(&["label=bare="]).take_facts(&facts));
    }
}
