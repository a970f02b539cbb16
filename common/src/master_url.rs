//! `firesteel://h1:7077,h2:7077`: one URL names every master.

use std::fmt;
use std::str::FromStr;

/// The port of a master's gRPC API where the URL names none.
pub const DEFAULT_MASTER_PORT: u16 = 7077;

/// The addresses of all masters, in the order given. `spark://` is accepted as an alias of `firesteel://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterUrl {
    addresses: Vec<(String, u16)>,
}

/// Text that is not a master URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a master URL: {reason}; expected firesteel://HOST:PORT[,HOST:PORT…]")]
pub struct InvalidMasterUrl {
    url: String,
    reason: String,
}

impl MasterUrl {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { addresses: vec![(host.into(), port)] }
    }

    pub fn addresses(&self) -> &[(String, u16)] {
        &self.addresses
    }

    /// Each master as `HOST:PORT`, IPv6 hosts in brackets.
    pub fn authorities(&self) -> impl Iterator<Item = String> + '_ {
        self.addresses.iter().map(|(host, port)| authority(host, *port))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl FromStr for MasterUrl {
    type Err = InvalidMasterUrl;
    fn from_str(url: &str) -> Result<Self, InvalidMasterUrl> {
        let invalid = |reason: String| InvalidMasterUrl { url: url.to_owned(), reason };
        let rest = match url.split_once("://") {
            Some(("firesteel" | "spark", rest)) => rest,
            Some((scheme, _)) => return Err(invalid(format!("unknown scheme {scheme:?}"))),
            None => return Err(invalid("it has no scheme".into())),
        };
        let addresses = rest
            .trim_end_matches('/')
            .split(',')
            .map(|part| parse_address(part).map_err(&invalid))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { addresses })
    }
}

fn parse_address(part: &str) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = part.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("an IPv6 address lacks its ]")?;
        (host, after.strip_prefix(':'))
    } else {
        match part.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (part, None),
        }
    };
    if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
        return Err(format!("{part:?} has no valid host"));
    }
    let port = match port {
        None => DEFAULT_MASTER_PORT,
        Some(text) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("{text:?} is not a port")),
        },
    };
    Ok((host.to_owned(), port))
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("firesteel://")?;
        for (i, authority) in self.authorities().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(&authority)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_one_or_several_masters() {
        let url: MasterUrl = "firesteel://a:1,b,[::1]:3".parse().unwrap();
        assert_eq!(url.to_string(), "firesteel://a:1,b:7077,[::1]:3");
        assert_eq!("spark://h:7077/".parse::<MasterUrl>().unwrap().to_string(), "firesteel://h:7077");
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for (url, reason) in [
            ("h:7077", "no scheme"),
            ("http://h:7077", "unknown scheme"),
            ("firesteel://", "no valid host"),
            ("firesteel://h:x", "not a port"),
            ("firesteel://h:0", "not a port"),
            ("firesteel://h:70777", "not a port"),
            ("firesteel://a,,b", "no valid host"),
            ("firesteel://[::1:7", "lacks its ]"),
            ("firesteel://u@h:1", "no valid host"),
        ] {
            let error = url.parse::<MasterUrl>().unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
