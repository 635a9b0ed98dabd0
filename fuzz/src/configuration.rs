//! What must hold for any configuration file.

use millstream::check::check;
use millstream::config::Config;
use service_kit::config::{Loaded, Place, Problem, Source, load, print_config};
use std::collections::HashMap;

const NAME: &str = "millstream.yaml";

/// `data` is the file.
pub(crate) fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A file that a secret or a certificate is read from is opened; fuzzing must not read the machine's own.
    if text.contains("file") || text.contains("tls") {
        return;
    }
    let environment = HashMap::from([("NAME".to_owned(), "value".to_owned())]);
    match load::<Config>(&Source::text(NAME, text), &environment, &[]) {
        Err(errors) => {
            assert!(!errors.errors.is_empty(), "refused without a reason");
            errors.errors.iter().chain(&errors.warnings).for_each(|problem| place_holds(text, problem));
        }
        Ok(loaded) => accepted_holds(text, &loaded),
    }
}

fn accepted_holds(text: &str, loaded: &Loaded<Config>) {
    match check(loaded) {
        Ok((_, warnings)) => warnings.iter().for_each(|problem| place_holds(text, problem)),
        Err(errors) => {
            assert!(!errors.errors.is_empty(), "refused without a reason");
            errors.errors.iter().chain(&errors.warnings).for_each(|problem| place_holds(text, problem));
        }
    }
    let Ok(printed) = print_config(&loaded.value) else { panic!("it cannot be printed") };
    let again = match load::<Config>(&Source::text(NAME, printed.clone()), &HashMap::new(), &[]) {
        Ok(again) => again,
        Err(errors) => panic!("what was printed is refused: {errors}\n{printed}"),
    };
    assert_eq!(print_config(&again.value).ok().as_ref(), Some(&printed), "printed, read and printed again");
}

/// A place in the file is one that an editor can go to.
fn place_holds(text: &str, problem: &Problem) {
    assert!(!problem.message.is_empty());
    assert!(!problem.to_string().contains('\0'), "a NUL is shown as it is");
    if let Place::File { line, column, .. } = &problem.place {
        // A carriage return alone is a line break too (YAML 1.2, section 5.4).
        let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
        assert!((1..=lines + 1).contains(line), "line {line} of {lines}: {problem}");
        let longest = text.chars().count() + 1;
        assert!((1..=longest).contains(column), "column {column}: {problem}");
    }
}
