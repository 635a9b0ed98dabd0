//! What must hold for topic templates, topic filters, routes, JSON Pointers and places of the device id, and for the
//! payloads they look into.

use millstream::pointer::Pointers;
use millstream::template::TopicTemplate;
use mqttconverter::routing::{DeviceIdRule, DeviceIdSource, DeviceIds, Route, Routes};
use mqttconverter::topic::{TopicFilter, validate_name};

/// `data` is a template, filter or pointer; after a line end, a topic; after another, a payload.
pub(crate) fn holds(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let pattern = parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let topic = parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let (Some(pattern), Some(topic)) = (pattern, topic) else { return };
    let payload = parts.next().unwrap_or_default();
    template_holds(pattern, payload);
    filter_holds(pattern, topic);
    device_id_holds(pattern);
    if let (Ok(pointers), Ok(document)) = (Pointers::parse(pattern), std::str::from_utf8(payload)) {
        let _ = pointers.find(document);
    }
}

fn template_holds(text: &str, line: &[u8]) {
    let template: TopicTemplate = match text.parse() {
        Ok(template) => template,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut topic = String::from("before");
    if template.render(line, &mut topic).is_err() {
        return;
    }
    let Some(topic) = topic.strip_prefix("before") else { panic!("what stood before is gone: {topic:?}") };
    assert!(!topic.contains(['+', '#', '\0']), "{topic:?}");
    assert!(topic.is_empty() || validate_name(topic).is_ok(), "{topic:?}");
    assert_eq!(topic.split('/').count(), levels(text), "a value changed the levels of {topic:?}");
}

/// Levels of a topic that `template` makes: slashes within braces belong to pointers.
fn levels(template: &str) -> usize {
    let mut depth = 0;
    1 + template
        .chars()
        .filter(|character| {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            *character == '/' && depth == 0
        })
        .count()
}

fn filter_holds(text: &str, topic: &str) {
    let route = Route { name: "r".to_owned(), filter: text.to_owned(), topic: "raw".to_owned() };
    let routes = Routes::compile(&[route], &["raw"]);
    let Ok(filter) = TopicFilter::parse(text) else {
        assert!(routes.is_err(), "a route with a filter that is none");
        return;
    };
    assert_eq!(filter.as_str(), text);
    assert!(filter.includes(&filter));
    if validate_name(topic).is_err() {
        return;
    }
    let matches = filter.matches(topic);
    assert_eq!(matches, expected(filter.pattern(), topic), "{text:?} and {topic:?}");
    if let Ok(routes) = routes {
        assert_eq!(routes.find(topic).is_some(), matches);
    }
    if let Ok(literal) = TopicFilter::parse(topic) {
        assert!(!filter.includes(&literal) || filter.matches(literal.pattern()));
    }
}

/// MQTT 5, section 4.7, written as recursion over levels.
fn expected(filter: &str, topic: &str) -> bool {
    let hidden = topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#'));
    let filter: Vec<_> = filter.split('/').collect();
    let topic: Vec<_> = topic.split('/').collect();
    !hidden && fits(&filter, &topic)
}

fn fits(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => fits(filter, topic),
        ([level, filter @ ..], [same, topic @ ..]) if level == same => fits(filter, topic),
        _ => false,
    }
}

fn device_id_holds(text: &str) {
    for source in [DeviceIdSource::Topic(text.to_owned()), DeviceIdSource::Pointer(text.to_owned())] {
        if let Err(mistakes) = DeviceIds::compile(&DeviceIdRule(vec![source])) {
            assert_eq!(mistakes.len(), 1);
            assert!(mistakes[0].path.starts_with("device_id[0]."), "{}", mistakes[0]);
        }
    }
}
