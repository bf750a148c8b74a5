//! The sources of apt, in both of their forms: `*.sources` (deb822) and `*.list` (one line each).

/// A place that packages come from (sources.list(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The mirrors.
    pub uris: String,
    /// The suites.
    pub suites: Vec<String>,
    /// The components.
    pub components: String,
    /// `Signed-By` and the like, as fields of a `*.sources` file, with their continuation lines.
    pub options: Vec<String>,
}

/// The enabled sources of binary packages in the file of this name.
pub fn parse(name: &str, text: &str) -> Vec<Source> {
    if name.ends_with(".sources") {
        paragraphs(text)
    } else {
        text.lines().filter_map(line).collect()
    }
}

fn paragraphs(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    // The empty line at the end closes the last paragraph.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(paragraph(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((field, value)) = line.split_once(':') {
            fields.push((field.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

fn paragraph(fields: &[(String, String)]) -> Option<Source> {
    let mut source = Source::default();
    let mut binary = false;
    for (field, value) in fields {
        match field.to_ascii_lowercase().as_str() {
            "types" => binary = value.split_whitespace().any(|word| word == "deb"),
            "uris" => source.uris.clone_from(value),
            "suites" => source.suites = value.split_whitespace().map(str::to_owned).collect(),
            "components" => source.components.clone_from(value),
            "enabled" if value.eq_ignore_ascii_case("no") => return None,
            "enabled" => {}
            _ => source.options.push(format!("{field}: {value}")),
        }
    }
    (binary && !source.uris.is_empty()).then_some(source)
}

/// `deb [signed-by=/file arch=amd64] URI SUITE COMPONENT…`
fn line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim().strip_prefix("deb")?;
    let line = line.strip_prefix([' ', '\t'])?.trim_start();
    let (options, line) = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", line),
    };
    let mut words = line.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source {
        uris: uri.to_owned(),
        suites: vec![suite.to_owned()],
        components: words.collect::<Vec<_>>().join(" "),
        options: options.split_whitespace().filter_map(option).collect(),
    })
}

/// An option of a line as the field of the other form; sources.list(5) has the names of both.
fn option(option: &str) -> Option<String> {
    let (name, value) = option.split_once('=')?;
    let field = match name.to_ascii_lowercase().as_str() {
        "signed-by" => "Signed-By",
        "arch" => "Architectures",
        "trusted" => "Trusted",
        "check-valid-until" => "Check-Valid-Until",
        _ => return None,
    };
    Some(format!("{field}: {}", value.replace(',', " ")))
}

/// The text of a `*.sources` file for `suite`: mirror, components and keys of the one that offers the
/// release itself, since backports lie beside it.
pub fn backports(sources: &[Source], codename: &str, suite: &str) -> Option<String> {
    let base = sources.iter().find(|source| {
        source
            .suites
            .iter()
            .any(|name| name == codename || name == "stable" || name == "oldstable")
    })?;
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: {}\n",
        base.uris, base.components
    );
    for option in &base.options {
        text.push_str(option);
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_the_same_as_a_paragraph() {
        let list = "# old\ndeb-src http://m/debian bookworm main\n\
                    deb [signed-by=/k.gpg arch=amd64,arm64] http://m/debian bookworm main contrib # here\n";
        let paragraph = "Types: deb\nURIs: http://m/debian\nSuites: bookworm\nComponents: main contrib\n\
                         Signed-By: /k.gpg\nArchitectures: amd64 arm64\n";
        assert_eq!(parse("sources.list", list), parse("x.sources", paragraph));
        assert_eq!(
            backports(
                &parse("sources.list", list),
                "bookworm",
                "bookworm-backports"
            )
            .expect("derived"),
            paragraph.replace("Suites: bookworm", "Suites: bookworm-backports")
        );
    }

    #[test]
    fn disabled_and_source_paragraphs_are_left_out() {
        let text = "Types: deb\nURIs: http://m\nSuites: a\nEnabled: no\n\nTypes: deb-src\nURIs: http://m\nSuites: b\n\n\
                    Types: deb deb-src\nURIs: http://m\nSuites: c d\n";
        let sources = parse("x.sources", text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["c", "d"]);
    }

    #[test]
    fn a_key_of_several_lines_stays_whole() {
        let text = "Types: deb\nURIs: http://m\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";
        let derived = backports(&parse("x.sources", text), "bookworm", "bookworm-backports")
            .expect("derived");
        assert!(
            derived.ends_with("Signed-By: \n -----BEGIN\n .\n abc\n"),
            "{derived}"
        );
    }

    #[test]
    fn the_suite_of_security_updates_is_no_base() {
        let text = "Types: deb\nURIs: http://m/debian-security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            backports(&parse("x.sources", text), "bookworm", "bookworm-backports"),
            None
        );
    }
}
