//! The mosquitto broker.

use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;

use super::server::Description;
use super::{Server, find_program, left_out};

/// A mosquitto broker with a folder of its own, which lives as long as this value.
#[derive(Debug)]
pub struct Mosquitto {
    server: Server,
}

impl Mosquitto {
    /// Starts a broker with the lines `settings` in its configuration; anonymous clients are allowed unless a line says
    /// otherwise, and sessions are kept on disk. `None` means that mosquitto is not installed, which has been said
    /// with the name of `test`.
    ///
    /// # Panics
    /// When it is installed but does not start, or is required and not installed.
    #[must_use]
    pub fn start(test: &str, settings: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(test, folder, settings)
    }

    /// As [`Mosquitto::start`], in a folder that already holds files that the settings name.
    ///
    /// # Panics
    /// As [`Mosquitto::start`].
    #[must_use]
    pub fn start_in(test: &str, folder: tempfile::TempDir, settings: &[&str]) -> Option<Self> {
        let program = find_program("mosquitto").or_else(|| left_out(test, "mosquitto"))?;
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let description = Description {
            name: "mosquitto",
            ports: 1,
            command: Box::new(move |folder, ports| {
                let file = folder.join("mosquitto.conf");
                std::fs::write(&file, configuration(folder, ports[0], &settings))?;
                let mut command = Command::new(&program);
                command.arg("-c").arg(&file);
                Ok(command)
            }),
            ready: Box::new(|ports| TcpStream::connect((Ipv4Addr::LOCALHOST, ports[0])).is_ok()),
        };
        Some(Self { server: Server::start(description, folder) })
    }

    /// Its address as Millstream's configuration takes it: `mqtt://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.server.address())
    }
}

impl Deref for Mosquitto {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Mosquitto {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

fn configuration(folder: &Path, port: u16, settings: &[String]) -> String {
    let folder = folder.display();
    let mut text = format!("listener {port} 127.0.0.1\n");
    // Started as root it would change to a user that may not read the folder.
    text.push_str("user root\nlog_type error\n");
    text.push_str(&format!("persistence true\npersistence_location {folder}/\n"));
    if !settings.iter().any(|line| line.starts_with("allow_anonymous")) {
        text.push_str("allow_anonymous true\n");
    }
    for line in settings {
        text.push_str(&line.replace("$FOLDER", &folder.to_string()));
        text.push('\n');
    }
    text
}
