//! What starts an engine: units of systemd and the files of variables that they read.
//!
//! The rules are those of systemd.syntax(7), systemd.service(5) (command lines) and systemd.exec(5) (`EnvironmentFile=`),
//! as far as units of engines use them.

use std::collections::BTreeMap;

/// The settings of the section `[Service]`, in their order: lines that go on behind a backslash are one, and comments
/// between them are none of it.
pub fn service(text: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut inside = false;
    let mut pending: Option<String> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with('#') || trimmed.starts_with(';') {
            continue;
        }
        let whole = match pending.take() {
            Some(begun) => format!("{begun} {trimmed}"),
            None => trimmed.to_owned(),
        };
        if let Some(begun) = whole.strip_suffix('\\') {
            pending = Some(begun.trim_end().to_owned());
            continue;
        }
        keep(&whole, &mut inside, &mut settings);
    }
    if let Some(whole) = pending {
        keep(&whole, &mut inside, &mut settings);
    }
    settings
}

fn keep(line: &str, inside: &mut bool, settings: &mut Vec<(String, String)>) {
    if line.starts_with('[') {
        *inside = line == "[Service]";
    } else if *inside && let Some((name, value)) = line.split_once('=') {
        settings.push((name.trim().to_owned(), value.trim().to_owned()));
    }
}

/// The last value of a setting; an empty one takes back those before it.
pub fn last<'a>(settings: &'a [(String, String)], name: &str) -> Option<&'a str> {
    settings
        .iter()
        .rev()
        .find(|(setting, _)| setting == name)
        .map(|(_, value)| value.as_str())
        .filter(|value| !value.is_empty())
}

/// All values of a setting that adds up; an empty one takes back those before it.
pub fn all<'a>(settings: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let mut values = Vec::new();
    for (_, value) in settings.iter().filter(|(setting, _)| setting == name) {
        if value.is_empty() {
            values.clear();
        } else {
            values.push(value.as_str());
        }
    }
    values
}

/// The words of a command line, with variables put in: `${NAME}` anywhere, `$NAME` as a word of its own, which is
/// split at blanks. A variable that is not set is nothing.
pub fn words(line: &str, variables: &BTreeMap<String, String>) -> Vec<String> {
    let mut words = Vec::new();
    for (word, bare) in split(line) {
        match word.strip_prefix('$') {
            Some(name) if bare && is_name(name) => {
                let value = variables.get(name).map_or("", String::as_str);
                words.extend(split(value).into_iter().map(|(word, _)| word));
            }
            _ => words.push(filled(&word, variables)),
        }
    }
    words
}

/// Splits at blanks outside quotes; each word with whether no quote was in it.
fn split(line: &str) -> Vec<(String, bool)> {
    let mut words = Vec::new();
    let mut word: Option<(String, bool)> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default().1 = true;
            }
            ('\\', Some('"') | None) => {
                let word = word.get_or_insert_default();
                word.0.extend(letters.next());
                word.1 = true;
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().0.push(letter),
        }
    }
    words.extend(word);
    words
        .into_iter()
        .map(|(word, quoted)| (word, !quoted))
        .collect()
}

fn filled(word: &str, variables: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let mut rest = word;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, behind)) = behind.split_once('}') else {
            break;
        };
        text.push_str(before);
        text.push_str(variables.get(name).map_or("", String::as_str));
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// Whether it can be the name of a variable.
pub fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The variables of a file with a `NAME=value` on each line, quotes taken off: an environment file of systemd's, or a
/// file of settings that shells read. What is no such line is passed over.
pub fn variables(text: &str) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if let Some((name, value)) = line.split_once('=')
            && is_name(name)
        {
            variables.insert(name.to_owned(), value_of(value));
        }
    }
    variables
}

/// A value without its quotes.
fn value_of(text: &str) -> String {
    let words: Vec<String> = split(text).into_iter().map(|(word, _)| word).collect();
    words.join(" ")
}

/// A line for an environment file of systemd's: in double quotes, where a backslash takes the meaning off `"`, `\`,
/// `` ` `` and `$`.
pub fn environment_line(name: &str, value: &str) -> String {
    let mut text = format!("{name}=\"");
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | '`' | '$') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn lines_that_go_on_are_one_and_other_sections_are_not_read() {
        let text = "[Unit]\nExecStart=/no\n[Service]\n# a comment\nExecStart=/usr/bin/dockerd --a \\\n  # not this\n  --b \\\n\nKillMode = process\n[Install]\nKillMode=none\n";
        assert_eq!(
            service(text),
            [
                (
                    "ExecStart".to_owned(),
                    "/usr/bin/dockerd --a --b ".trim_end().to_owned()
                ),
                ("KillMode".to_owned(), "process".to_owned()),
            ]
        );
        let settings = service("[Service]\nExecStart=/a\nExecStart=\nExecStart=/b \\");
        assert_eq!(last(&settings, "ExecStart"), Some("/b"));
        assert_eq!(last(&service("[Service]\nA=1\nA=\n"), "A"), None);
    }

    #[test]
    fn words_are_those_that_the_engine_gets() {
        let variables = given(&[("OPTS", "--dns 1.1.1.1 --label 'a=b c'"), ("X", "y")]);
        for (line, expected) in [
            (
                "/d -H fd:// $OPTS",
                "/d|-H|fd://|--dns|1.1.1.1|--label|a=b c",
            ),
            ("/d $NONE ${X}z \"$OPTS\"", "/d|yz|$OPTS"),
            ("/d \"a b\"c 'd' \\$x", "/d|a bc|d|$x"),
            ("", ""),
        ] {
            assert_eq!(words(line, &variables).join("|"), expected, "{line}");
        }
    }

    #[test]
    fn values_come_back_from_the_files_that_they_are_written_to() {
        for value in ["", "plain", "a \"b\" $c `d` \\e %f", "it's", " blanks "] {
            let line = environment_line("NAME", value);
            let read = variables(&line);
            assert_eq!(read["NAME"], value, "{line}");
        }
        let text = "# x\nDOCKER_OPTS=\"\"\nexport A='b c'\nnot a line\n1=2\n";
        assert_eq!(variables(text), given(&[("DOCKER_OPTS", ""), ("A", "b c")]));
    }
}
