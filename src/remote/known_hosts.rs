//! What OpenSSH's `known_hosts` files say of a server: read, never written.
//!
//! The form is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT": names plain, with wildcards, negated, with a port, or
//! hashed; keys that are revoked; authorities that certify servers. Lines that cannot be read say nothing, as for
//! OpenSSH.

use ring::hmac;

use super::keys::{known_as, parse, text};

/// What is known of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its host keys.
    pub keys: Vec<String>,
    /// Keys that may certify its host key.
    pub authorities: Vec<String>,
    /// Keys that it must not show, nor be certified by.
    pub revoked: Vec<String>,
}

impl Known {
    /// What `files` (their contents) say of the server `host` at `port`.
    ///
    /// A line with the plain name counts for another port than 22, too, where none names the port: so does OpenSSH
    /// (`check_host_key` in its sshconnect.c).
    pub fn read<T: AsRef<str>>(files: impl IntoIterator<Item = T>, host: &str, port: u16) -> Self {
        let host = host.to_lowercase();
        let named = known_as(&host, port);
        let (mut exact, mut plain) = (Self::default(), Self::default());
        for file in files {
            for line in file.as_ref().lines() {
                let Some(line) = Line::parse(line) else {
                    continue;
                };
                if matches(line.hosts, &named) {
                    exact.take(&line);
                }
                if matches(line.hosts, &host) {
                    plain.take(&line);
                }
            }
        }
        // A key that was revoked under any name of it is not shown by it in good faith.
        let revoked = [exact.revoked.clone(), plain.revoked.clone()].concat();
        let known = if exact.keys.is_empty() && exact.authorities.is_empty() {
            plain
        } else {
            exact
        };
        Self { revoked, ..known }
    }

    fn take(&mut self, line: &Line<'_>) {
        let list = match line.marker {
            None => &mut self.keys,
            Some("@cert-authority") => &mut self.authorities,
            Some("@revoked") => &mut self.revoked,
            Some(_) => return,
        };
        if let Ok(key) = parse(line.key) {
            list.push(text(&key));
        }
    }
}

/// One line that can be read.
struct Line<'a> {
    marker: Option<&'a str>,
    hosts: &'a str,
    /// The type, the key, and maybe a comment.
    key: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (marker, rest) = match line.strip_prefix('@') {
            Some(_) => {
                let (marker, rest) = line.split_once([' ', '\t'])?;
                (Some(marker), rest.trim_start())
            }
            None => (None, line),
        };
        let (hosts, key) = rest.split_once([' ', '\t'])?;
        Some(Self {
            marker,
            hosts,
            key: key.trim_start(),
        })
    }
}

/// Whether the names of a line are those of `host`, which is in lower case.
fn matches(names: &str, host: &str) -> bool {
    if names.starts_with('|') {
        return hashed(names, host);
    }
    let mut found = false;
    for name in names.split(',') {
        let name = name.to_lowercase();
        match name.strip_prefix('!') {
            Some(name) if like(name, host) => return false,
            Some(_) => {}
            None => found |= like(&name, host),
        }
    }
    found
}

/// `|1|SALT|HASH`: the name's HMAC-SHA1 by the salt, both in base64.
fn hashed(entry: &str, host: &str) -> bool {
    let mut parts = entry.split('|').skip(1);
    let (Some("1"), Some(salt), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (Some(salt), Some(hash)) = (base64(salt), base64(hash)) else {
        return false;
    };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::verify(&key, host.as_bytes(), &hash).is_ok()
}

/// The bytes of a base64 text (RFC 4648, section 4); `None` when it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xFFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xFF) as u8);
        }
    }
    Some(bytes)
}

/// Whether `name` is like `pattern`, in which `*` stands for any characters and `?` for one.
fn like(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last star stood, and how much it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(one) if *one == '?' || *one == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((before, held)) = star else {
                    return false;
                };
                star = Some((before, held + 1));
                at = before + 1;
                seen = held + 1;
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::generate_key;

    fn key() -> String {
        let pair = generate_key("").expect("a key");
        text(&parse(&pair.public_openssh).expect("a key"))
    }

    #[test]
    fn names_are_plain_with_ports_with_wildcards_and_negated() {
        let (one, two, three) = (key(), key(), key());
        let file = format!(
            "# a comment\n\nN1.example,10.0.0.1 {one} admin@desk\n[n1.example]:2222 {two}\n\
             *.example,!n?.example {three}\nnonsense\n@unknown * {one}\nn9 ssh-rsa AAAA\n"
        );
        let keys = |host: &str, port| Known::read([&file], host, port).keys;
        assert_eq!(keys("n1.example", 22), vec![one.clone()]);
        assert_eq!(keys("10.0.0.1", 22), vec![one.clone()]);
        assert_eq!(keys("n1.example", 2222), [two]);
        assert_eq!(keys("N1.Example", 2200), [one], "no line names that port");
        assert_eq!(keys("web.example", 22), [three]);
        assert_eq!(keys("n2.example", 22), Vec::<String>::new());
        assert_eq!(keys("n9", 22), Vec::<String>::new(), "no key at all");
    }

    #[test]
    fn hashed_names_are_found_by_their_hash_alone() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKBmG/8Huz1a4iYx7kVLhRG1D64qd6pWc/XiMigKRyrC";
        // By `ssh-keygen -H` of OpenSSH 9.2, of `n1.example` and of `[n1.example]:2222`.
        let file = format!(
            "|1|NS4sSgs0bV7X4Z9Bbq5y6lcn/0s=|oY9lb/190GJWolEDrJmhtx8FjRw= {key}\n\
             |1|/5hZNutllyJ48gdHNtEui/AFZ38=|tg1FBWB1ONN/cPYfWSF0we1dRN4= {key}\n\
             |1|broken\n|2|a|b {key}\n|1|a b|c {key}\n"
        );
        let known = |host: &str, port| Known::read([&file], host, port).keys;
        assert_eq!(known("N1.example", 22), [key]);
        assert_eq!(known("n1.example", 2222), [key]);
        assert_eq!(known("n2.example", 22), Vec::<String>::new());
        let second = file.lines().nth(1).expect("a line");
        assert!(Known::read([second], "n1.example", 22).keys.is_empty());
    }

    #[test]
    fn authorities_and_revoked_keys_are_kept_apart() {
        let (ca, bad) = (key(), key());
        let file = format!("@cert-authority *.example {ca}\n@revoked * {bad}\n");
        let known = Known::read([&file], "n1.example", 2222);
        assert_eq!(known.keys, Vec::<String>::new());
        assert_eq!(known.authorities, [ca]);
        assert!(known.revoked.contains(&bad));
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, is) in [
            ("*", "", true),
            ("*a*b*", "xaxxbx", true),
            ("*a*b*", "xbxxax", false),
            ("n?", "n1", true),
            ("n?", "n", false),
            ("a*a", "a", false),
            ("[*]:2222", "[n1]:2222", true),
        ] {
            assert_eq!(like(pattern, name), is, "{pattern} {name}");
        }
    }
}
