//! A credentials file as Google hands it out: <https://google.aip.dev/auth/4110>.

use serde_json::Value;
use std::path::Path;

/// Whose credentials a file holds: its `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ServiceAccount,
    AuthorizedUser,
    ExternalAccount,
    Impersonated,
}

impl Kind {
    const ALL: [(&'static str, Self); 4] = [
        ("service_account", Self::ServiceAccount),
        ("authorized_user", Self::AuthorizedUser),
        ("external_account", Self::ExternalAccount),
        ("impersonated_service_account", Self::Impersonated),
    ];

    /// What it is of no use without.
    const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::ServiceAccount => &["client_email", "private_key_id", "private_key"],
            Self::AuthorizedUser => &["client_id", "client_secret", "refresh_token"],
            Self::ExternalAccount => &["audience", "subject_token_type", "token_url", "credential_source"],
            Self::Impersonated => &["service_account_impersonation_url", "source_credentials"],
        }
    }
}

/// Reads the file at `path`.
///
/// # Errors
/// What is wrong with it and what would be right; nothing of what it holds.
pub(crate) fn read(path: &Path) -> Result<(Kind, Value), String> {
    const RIGHT: &str = "name a credentials file of Google's, such as the key of a service account";
    if path.as_os_str().is_empty() {
        return Err(format!("is empty: {RIGHT}, or leave it out"));
    }
    let place = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{place} cannot be read ({error}): {RIGHT}"))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| {
        format!("{place} is not JSON (line {}, column {}): {RIGHT}", error.line(), error.column())
    })?;
    let named = json.get("type").and_then(Value::as_str);
    let Some((_, kind)) = Kind::ALL.into_iter().find(|(name, _)| Some(*name) == named) else {
        let known = Kind::ALL.map(|(name, _)| name).join(", ");
        return Err(match named {
            Some(named) => format!("{place} is of type `{named}`: known are {known}"),
            None => format!("{place} has no `type`: {RIGHT}"),
        });
    };
    match kind.fields().iter().find(|field| json.get(**field).is_none_or(Value::is_null)) {
        Some(field) => Err(format!("{place} has no `{field}`: it is cut short or not as Google made it")),
        None => Ok((kind, json)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_says_what_is_wrong_and_nothing_of_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mistake = read(&path).unwrap_err();
            assert!(mistake.contains("key.json") && !mistake.contains("hidden"), "{mistake}");
            mistake
        };
        assert!(read(&folder.path().join("gone.json")).unwrap_err().contains("cannot be read"));
        assert!(read(Path::new("")).unwrap_err().contains("is empty"));
        assert!(refused("{\"private_key\": \"hidden\"").contains("is not JSON (line 1"));
        assert!(refused("\"hidden\"").contains("no `type`"));
        assert!(refused("{\"type\": \"magic\"}").contains("known are service_account, authorized_user"));
        let cut = refused(
            "{\"type\": \"service_account\", \"client_email\": \"hidden\", \"private_key_id\": \"1\"}",
        );
        assert!(cut.contains("no `private_key`"), "{cut}");
        std::fs::write(&path, "{\"type\": \"authorized_user\", \"client_id\": \"a\", \"client_secret\": \"b\", \"refresh_token\": \"c\"}")
            .unwrap();
        assert_eq!(read(&path).unwrap().0, Kind::AuthorizedUser);
    }
}
