//! Routes: which MQTT topics go to which topic of the bus.

use super::Mistake;
use crate::topic::TopicFilter;
use std::sync::Arc;

/// Reason word of a message that no route takes.
pub const NO_ROUTE: &str = "no-route";

/// One route of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Name; it becomes the attribute `route_name` of the messages.
    pub name: String,
    /// MQTT topic filter, with `+` and `#`.
    pub filter: String,
    /// Topic of the bus. Several routes may share one.
    pub topic: String,
}

/// The routes without configuration: everything goes to `raw`.
#[must_use]
pub fn default_routes() -> Vec<Route> {
    vec![Route { name: "default".to_owned(), filter: "#".to_owned(), topic: "raw".to_owned() }]
}

/// Place of a topic in [`Routes::topics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicIndex(pub(super) usize);

/// Checked routes.
#[derive(Clone, Debug)]
pub struct Routes {
    routes: Vec<Compiled>,
    topics: Vec<String>,
    warnings: Vec<Mistake>,
}

#[derive(Clone, Debug)]
struct Compiled {
    name: Arc<str>,
    filter: TopicFilter,
    topic: TopicIndex,
}

impl Routes {
    /// Checks `routes` against the topics that exist.
    ///
    /// # Errors
    /// Every mistake at once: no routes, empty or repeated names, filters that are none, topics that do not exist.
    pub fn compile(routes: &[Route], known_topics: &[&str]) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut compiled = Self { routes: Vec::new(), topics: Vec::new(), warnings: Vec::new() };
        if routes.is_empty() {
            let message = "no routes defined in the configuration; `{name: default, filter: \"#\", topic: raw}` takes \
                           everything";
            mistakes.push(Mistake::new("routes", message));
        }
        for (index, route) in routes.iter().enumerate() {
            check_name(index, routes, &mut mistakes);
            if !known_topics.contains(&route.topic.as_str()) {
                let known = known_topics.join(", ");
                let message = format!("`{}` is not a topic; there is: {known}", route.topic);
                mistakes.push(Mistake::new(format!("routes[{index}].topic"), message));
            }
            match parse_filter(&route.filter) {
                Ok(filter) => compiled.add(index, route, filter),
                Err(message) => mistakes.push(Mistake::new(format!("routes[{index}].filter"), message)),
            }
        }
        if mistakes.is_empty() { Ok(compiled) } else { Err(mistakes) }
    }

    fn add(&mut self, index: usize, route: &Route, filter: TopicFilter) {
        if let Some(earlier) = self.routes.iter().find(|earlier| earlier.filter.includes(&filter)) {
            let message =
                format!("never reached: route `{}` (`{}`) takes all of it", earlier.name, earlier.filter);
            self.warnings.push(Mistake::new(format!("routes[{index}].filter"), message));
        }
        let known = self.topics.iter().position(|topic| *topic == route.topic);
        let topic = TopicIndex(known.unwrap_or(self.topics.len()));
        if known.is_none() {
            self.topics.push(route.topic.clone());
        }
        self.routes.push(Compiled { name: Arc::from(route.name.as_str()), filter, topic });
    }

    /// Routes that no message can reach, because an earlier one takes all of theirs.
    #[must_use]
    pub fn warnings(&self) -> &[Mistake] {
        &self.warnings
    }

    /// The topics that routes lead to, each once, in order of first mention.
    #[must_use]
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Name and topic of the first route that takes `mqtt_topic`.
    #[must_use]
    pub fn find(&self, mqtt_topic: &str) -> Option<(&str, TopicIndex)> {
        let route = self.routes.iter().find(|route| route.filter.matches(mqtt_topic))?;
        Some((&route.name, route.topic))
    }
}

fn check_name(index: usize, routes: &[Route], mistakes: &mut Vec<Mistake>) {
    let name = &routes[index].name;
    if name.is_empty() {
        mistakes.push(Mistake::new(format!("routes[{index}].name"), "is empty; give every route a name"));
    } else if let Some(earlier) = routes[..index].iter().position(|route| route.name == *name) {
        let message = format!("`{name}` is already the name of routes[{earlier}]");
        mistakes.push(Mistake::new(format!("routes[{index}].name"), message));
    }
}

fn parse_filter(text: &str) -> Result<TopicFilter, String> {
    let filter = TopicFilter::parse(text).map_err(|error| format!("`{text}` {error}"))?;
    if filter.is_shared() {
        let plain = filter.pattern();
        return Err(format!("`{text}` shares a subscription, which is the broker's matter; write `{plain}`"));
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, filter: &str, topic: &str) -> Route {
        Route { name: name.to_owned(), filter: filter.to_owned(), topic: topic.to_owned() }
    }

    #[test]
    fn the_first_route_that_matches_decides_and_routes_may_share_a_topic() {
        let configured = [
            route("joins", "devices/+/join", "joins"),
            route("ups", "devices/+/up", "raw"),
            route("rest", "devices/#", "raw"),
        ];
        let routes = Routes::compile(&configured, &["raw", "joins"]).unwrap();
        assert_eq!(routes.topics(), ["joins", "raw"]);
        assert_eq!(routes.find("devices/a/join"), Some(("joins", TopicIndex(0))));
        assert_eq!(routes.find("devices/a/up"), Some(("ups", TopicIndex(1))));
        assert_eq!(routes.find("devices/a"), Some(("rest", TopicIndex(1))));
        assert_eq!(routes.find("gateways/a"), None);
        assert_eq!(routes.warnings(), []);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path() {
        let configured =
            [route("a", "x/#/y", "raw"), route("a", "x", "nowhere"), route("", "$share/g/x", "raw")];
        let mistakes = Routes::compile(&configured, &["raw"]).unwrap_err();
        let paths: Vec<_> = mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
        let expected =
            ["routes[0].filter", "routes[1].name", "routes[1].topic", "routes[2].name", "routes[2].filter"];
        assert_eq!(paths, expected);
        let none = Routes::compile(&[], &["raw"]).unwrap_err();
        assert!(none[0].message.contains("no routes defined in the configuration"));
    }

    #[test]
    fn a_route_behind_a_wider_one_is_pointed_out() {
        let configured = [route("all", "#", "raw"), route("late", "devices/+/up", "raw")];
        let routes = Routes::compile(&configured, &["raw"]).unwrap();
        assert_eq!(routes.warnings()[0].path, "routes[1].filter");
        assert!(routes.warnings()[0].message.contains("`all`"));
    }

    #[test]
    fn the_default_takes_everything_to_raw() {
        let routes = Routes::compile(&default_routes(), &["raw", "enriched"]).unwrap();
        assert_eq!(routes.find("any/topic/at/all"), Some(("default", TopicIndex(0))));
        assert_eq!(routes.topics(), ["raw"]);
    }
}
