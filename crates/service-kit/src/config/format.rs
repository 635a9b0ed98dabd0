//! Texts with a form of their own.

use super::{ByteSize, Duration, byte_size, duration};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Checks `text` against the `format` of its schema; unknown formats pass.
pub(super) fn check(format: Option<&str>, text: &str) -> Result<(), String> {
    let told = |fits: bool, what: &str| if fits { Ok(()) } else { Err(format!("{text:?} is not {what}")) };
    match format {
        Some(duration::FORMAT) => text.parse::<Duration>().map(drop).map_err(|error| error.to_string()),
        Some(byte_size::FORMAT) => text.parse::<ByteSize>().map(drop).map_err(|error| error.to_string()),
        Some("ip") => told(text.parse::<IpAddr>().is_ok(), "an IP address such as 127.0.0.1"),
        Some("ipv4") => told(text.parse::<Ipv4Addr>().is_ok(), "an IPv4 address such as 127.0.0.1"),
        Some("ipv6") => told(text.parse::<Ipv6Addr>().is_ok(), "an IPv6 address such as ::1"),
        Some("socket-address") => told(
            text.parse::<SocketAddr>().is_ok(),
            "an address with a port such as 127.0.0.1:8080 or [::1]:8080",
        ),
        _ => Ok(()),
    }
}
