//! `millstream hash-password`.

use crate::output::{Failure, print};
use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use service_kit::Exit;
use std::io::BufRead;

pub(super) fn run() -> Result<Exit, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::usage("no password: write it on one line of standard input"));
    }
    let hash = Argon2::default().hash_password(password.as_bytes()).map_err(Failure::failed)?;
    print(&format!("{hash}\n"))?;
    Ok(Exit::Done)
}
