//! Configuration → running parts: MQTT consumer → router → publisher, by route.

use crate::letters::NamedLetters;
use crate::{Ingest, IngestionConfig};
use messagepipeline::{
    BatchLimits, BatchingService, BoxConsumer, DeadLetters, PayloadSize, Publisher, ServiceOptions,
    StageHealth,
};
use mqttconverter::broker::{BrokerOptions, Secret};
use mqttconverter::endpoint::{EndpointOptions, User};
use mqttconverter::routing::{DeviceIds, IngestTransformer, MessageIds, Mistake, RoutedPublisher, Routes};
use mqttconverter::tls::{ClientTls, Identity, ServerTls};
use mqttconverter::topic::TopicFilter;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The stage's name.
pub const STAGE: &str = "ingestion";

/// The service, ready to run.
pub type Ingestion = BatchingService<BoxConsumer, PayloadSize<IngestTransformer>, RoutedPublisher>;

/// What the service is given from outside.
pub struct Parts {
    /// Where messages come from.
    pub consumer: BoxConsumer,
    /// One publisher per topic that a route leads to.
    pub publishers: BTreeMap<String, Arc<dyn Publisher>>,
    /// Where messages go that no route takes or that the bus refuses for good.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The stage's line on the health board.
    pub health: StageHealth,
}

/// The parts of the configuration that can be wrong, checked.
#[derive(Debug)]
pub struct Plan {
    routes: Routes,
    device_ids: DeviceIds,
    message_ids: Option<MessageIds>,
    limits: BatchLimits,
    min_payload: usize,
}

impl Plan {
    /// Checks the section against the topics that exist. Opens nothing.
    ///
    /// # Errors
    /// Every mistake at once; their paths are below `ingestion`.
    pub fn new(config: &IngestionConfig, topics: &[&str]) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let routes = keep(Routes::compile(&config.routes, topics), &mut mistakes);
        let device_ids = keep(DeviceIds::compile(&config.device_id), &mut mistakes);
        let message_ids =
            config.message_id.as_ref().and_then(|rule| keep(MessageIds::compile(rule), &mut mistakes));
        match &config.broker {
            Some(broker) => mistakes.extend(below("broker", broker_options(broker, config).mistakes())),
            None => {
                let (options, filters) = endpoint_parts(config);
                mistakes.extend(filters);
                mistakes.extend(options.mistakes().into_iter().map(endpoint_mistake));
            }
        }
        match (routes, device_ids) {
            (Some(routes), Some(device_ids)) if mistakes.is_empty() => Ok(Self {
                routes,
                device_ids,
                message_ids,
                limits: BatchLimits::publishing(config.max_in_flight_bytes.as_usize()),
                min_payload: config.min_payload.as_usize(),
            }),
            _ => Err(mistakes),
        }
    }

    /// Topics that routes lead to.
    #[must_use]
    pub fn topics(&self) -> &[String] {
        self.routes.topics()
    }

    /// Routes that can never match.
    #[must_use]
    pub fn warnings(&self) -> &[Mistake] {
        self.routes.warnings()
    }

    /// The section's rules over `publishers`, without a consumer.
    ///
    /// # Errors
    /// As [`Plan::build`].
    pub fn ingest(&self, publishers: BTreeMap<String, Arc<dyn Publisher>>) -> Result<Ingest, Vec<Mistake>> {
        let publisher = RoutedPublisher::new(&self.routes, publishers)?;
        Ok(Ingest { transformer: self.transformer(), publisher })
    }

    /// The same, whose service gathers messages for `age` before it publishes them: for a bus that takes requests,
    /// which cost by their number.
    #[must_use]
    pub fn gathering(mut self, age: std::time::Duration) -> Self {
        self.limits.age = age;
        self
    }

    fn transformer(&self) -> PayloadSize<IngestTransformer> {
        let router =
            IngestTransformer::new(self.routes.clone(), self.device_ids.clone(), self.message_ids.clone());
        PayloadSize::new(router, self.min_payload, usize::MAX)
    }

    /// The service over `parts`.
    ///
    /// # Errors
    /// When a topic has no publisher or a publisher has no route.
    pub fn build(self, parts: Parts) -> Result<Ingestion, Vec<Mistake>> {
        let Ingest { transformer, publisher } = self.ingest(parts.publishers)?;
        let letters = NamedLetters { inner: parts.dead_letters, device_ids: self.device_ids };
        let options = ServiceOptions {
            dead_letters: Some(Arc::new(letters)),
            health: Some(parts.health),
            ..ServiceOptions::new(STAGE)
        };
        Ok(BatchingService::new(options, self.limits, parts.consumer, transformer, publisher))
    }
}

/// The endpoint's options. User filters are checked here, all else by the options themselves.
///
/// # Errors
/// Every publish filter that is none.
pub fn endpoint_options(config: &IngestionConfig) -> Result<EndpointOptions, Vec<Mistake>> {
    let (options, mistakes) = endpoint_parts(config);
    if mistakes.is_empty() { Ok(options) } else { Err(mistakes) }
}

/// The endpoint's options, and the publish filters that could not be taken into them.
pub(crate) fn endpoint_parts(config: &IngestionConfig) -> (EndpointOptions, Vec<Mistake>) {
    let endpoint = &config.mqtt;
    let mut mistakes = Vec::new();
    let mut users = Vec::new();
    for (index, user) in endpoint.users.iter().enumerate() {
        let mut publish = Vec::new();
        for (place, filter) in user.publish.iter().enumerate() {
            match TopicFilter::parse(filter) {
                Ok(filter) => publish.push(filter),
                Err(error) => mistakes.push(Mistake {
                    path: format!("mqtt.users[{index}].publish[{place}]"),
                    message: format!("`{filter}` {error}"),
                }),
            }
        }
        users.push(User {
            name: user.name.clone(),
            password_hash: user.password_hash.expose().to_owned(),
            publish,
        });
    }
    let options = EndpointOptions {
        listen: endpoint.listen,
        tls: endpoint.tls.as_ref().map(|tls| ServerTls {
            identity: Identity { certificate: tls.cert.clone(), key: tls.key.clone() },
            client_ca: tls.client_ca.clone(),
        }),
        users,
        allow_insecure: endpoint.allow_insecure,
        max_connections: endpoint.max_connections as usize,
        max_packet_bytes: u32::try_from(endpoint.max_packet_size.bytes()).unwrap_or(u32::MAX),
        receive_maximum: endpoint.receive_maximum,
        max_in_flight_messages: config.max_in_flight as usize,
        max_in_flight_bytes: config.max_in_flight_bytes.as_usize(),
        connect_timeout: endpoint.connect_timeout.get(),
        ..EndpointOptions::default()
    };
    (options, mistakes)
}

/// The broker client's options.
#[must_use]
pub fn broker_options(broker: &crate::BrokerConfig, config: &IngestionConfig) -> BrokerOptions {
    let tls = broker.tls.clone().unwrap_or_default();
    let identity = match (tls.cert, tls.key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        _ => None,
    };
    BrokerOptions {
        protocol: broker.version,
        keep_alive: broker.keep_alive.get(),
        session_expiry: broker.session_expiry.get(),
        window_messages: broker.receive_maximum,
        window_bytes: config.max_in_flight_bytes.as_usize(),
        max_packet_size: u32::try_from(broker.max_packet_size.bytes()).unwrap_or(u32::MAX),
        username: broker.user.clone(),
        password: broker.password.as_ref().map(|password| Secret::new(password.expose())),
        allow_anonymous: broker.allow_anonymous,
        tls: ClientTls { ca: tls.ca, identity },
        connect_timeout: broker.connect_timeout.get(),
        reconnect_min: broker.reconnect_min.get(),
        reconnect_max: broker.reconnect_max.get(),
        ..BrokerOptions::new(&broker.url, &broker.client_id, broker.topics.clone())
    }
}

fn keep<T>(result: Result<T, Vec<Mistake>>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|more| mistakes.extend(more)).ok()
}

/// The library's option names as the configuration spells them.
fn below(section: &str, mistakes: Vec<Mistake>) -> impl Iterator<Item = Mistake> {
    let renamed = |path: String| match path.as_str() {
        "username" => "user".to_owned(),
        "window_messages" => "receive_maximum".to_owned(),
        _ => path,
    };
    mistakes.into_iter().map(move |mistake| Mistake {
        path: format!("{section}.{}", renamed(mistake.path)),
        message: mistake
            .message
            .replace("username and password", "`user` and `password` (or `password: {file: PATH}`)"),
    })
}

fn endpoint_mistake(mistake: mqttconverter::endpoint::Mistake) -> Mistake {
    let path = match mistake.setting.as_str() {
        "max_packet_bytes" => "mqtt.max_packet_size".to_owned(),
        "max_in_flight_messages" => "max_in_flight".to_owned(),
        "max_in_flight_bytes" => "max_in_flight_bytes".to_owned(),
        other => format!("mqtt.{other}"),
    };
    let message = mistake.message.replace("max_packet_bytes", "mqtt.max_packet_size");
    Mistake { path, message }
}
