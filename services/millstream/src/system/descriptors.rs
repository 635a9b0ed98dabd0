//! File descriptors: as many as the system allows, and a share of them kept from clients.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that databases, the archive, the admin server and refused clients need at the most.
const RESERVED: usize = 256;

/// Raises the process's limit to what the system allows it, and answers how many connections of at most `wanted` can
/// then be taken without taking the stores' descriptors.
pub(super) fn connections(wanted: usize) -> usize {
    let allowed = usize::try_from(raise()).unwrap_or(usize::MAX);
    let most = room(allowed);
    if wanted > most {
        tracing::warn!(
            "ingestion.mqtt.max_connections is {wanted}, but the system allows this process {allowed} open files: at \
             most {most} connections are taken. For more, raise the limit (`ulimit -n`, LimitNOFILE= in systemd)"
        );
    }
    wanted.min(most)
}

/// The share of `allowed` descriptors that is left for clients.
fn room(allowed: usize) -> usize {
    allowed - RESERVED.min(allowed / 4 * 3)
}

fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    // None is no limit at all.
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_the_descriptors_of_the_stores() {
        assert_eq!([0, 64, 160, 1_024, 20_000].map(room), [0, 16, 40, 768, 19_744]);
    }
}
