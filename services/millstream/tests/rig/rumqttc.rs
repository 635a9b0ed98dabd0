//! Devices at QoS 1: rumqttc's own event loops and sessions.

use super::devices::{LOOK, Line, RECONNECT, Shared, Version, device_id};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest packet either way.
const PACKET: usize = 4 << 20;

/// One connection's work: fills its window, waits for acknowledgements, sends again what was lost.
pub(super) async fn publish(shared: Arc<Shared>, client_id: String, line: Line) {
    let (client, events) = Client::new(&client_id, shared.port, line);
    let breaks = Arc::new(Mutex::new(Vec::new()));
    let poller = tokio::spawn(poll(client_id, events, Arc::clone(&shared), Arc::clone(&breaks)));
    let (mut waiting, mut again) = (BTreeSet::new(), VecDeque::new());
    let mut answers = FuturesUnordered::new();
    loop {
        while answers.len() < line.window
            && let Some(number) = again.pop_front().or_else(|| shared.take())
        {
            let answer = client.publish(number, shared.payloads.payload(number)).await;
            waiting.insert(number);
            answers.push(async move { (number, answer.await) });
        }
        let next = if answers.is_empty() {
            tokio::time::sleep(LOOK).await;
            None
        } else {
            tokio::time::timeout(LOOK, answers.next()).await.ok().flatten()
        };
        // All that is known of by now, before a break is charged to what is left.
        let ready = std::iter::from_fn(|| answers.next().now_or_never().flatten());
        let answered: Vec<(usize, Answer)> = next.into_iter().chain(ready).collect();
        let mut record = shared.record.lock();
        for (number, answer) in answered {
            match answer {
                Answer::Acknowledged => {
                    waiting.remove(&number);
                    record.acked.insert(number);
                }
                Answer::Lost => again.push_back(number),
                Answer::Refused(reason) => record.refused.push(format!("message {number}: {reason}")),
            }
        }
        for kill in breaks.lock().drain(..) {
            record.breaks += 1;
            waiting.iter().for_each(|number| record.resent.entry(*number).or_default().push(kill));
        }
        if shared.stop.load(Ordering::Relaxed) && waiting.is_empty() {
            break;
        }
    }
    poller.abort();
}

/// Drives the event loop; a connection that was there and is gone counts as a break.
async fn poll(client_id: String, mut events: Events, shared: Arc<Shared>, breaks: Arc<Mutex<Vec<usize>>>) {
    let mut connected = false;
    loop {
        match events.poll().await {
            Ok(()) if connected => {}
            Ok(()) => {
                connected = true;
                events.start_clean(false);
                shared.connected();
            }
            Err(error) => {
                // A kill between the session's commit and its CONNACK leaves a session that the client does not know
                // of and refuses for ever: it begins anew, as a device would.
                if error.contains("session_present=true") {
                    events.start_clean(true);
                }
                shared.record.lock().trouble.insert(client_id.clone(), error);
                if std::mem::take(&mut connected) {
                    breaks.lock().push(shared.kill.load(Ordering::Relaxed));
                    shared.disconnected();
                }
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

/// How a publish ended.
enum Answer {
    Acknowledged,
    /// The session is gone with it; the device sends it again.
    Lost,
    Refused(String),
}

enum Client {
    V311(rumqttc_v4::AsyncClient),
    V5(rumqttc_v5::AsyncClient),
}

enum Events {
    V311(Box<rumqttc_v4::EventLoop>),
    V5(Box<rumqttc_v5::EventLoop>),
}

impl Events {
    fn start_clean(&mut self, clean: bool) {
        match self {
            Self::V311(_) => {}
            Self::V5(events) => {
                events.options.set_clean_start(clean);
            }
        }
    }

    async fn poll(&mut self) -> Result<(), String> {
        match self {
            Self::V311(events) => events.poll().await.map(drop).map_err(|error| error.to_string()),
            Self::V5(events) => events.poll().await.map(drop).map_err(|error| error.to_string()),
        }
    }
}

impl Client {
    fn new(client_id: &str, port: u16, line: Line) -> (Self, Events) {
        let window = u16::try_from(line.window).unwrap();
        match line.version {
            Version::V311 => {
                let mut options = rumqttc_v4::MqttOptions::new(client_id, ("127.0.0.1", port));
                options.set_session_mode(rumqttc_v4::SessionMode::Persistent);
                options.set_inflight(window).set_max_packet_size(PACKET, PACKET).set_keep_alive(30);
                let (client, events) =
                    rumqttc_v4::AsyncClient::builder(options).capacity(line.window).build();
                (Self::V311(client), Events::V311(Box::new(events)))
            }
            Version::V5 => {
                let mut options = rumqttc_v5::MqttOptions::new(client_id, ("127.0.0.1", port));
                options.set_session_mode(rumqttc_v5::SessionMode::Persistent);
                options.set_outgoing_inflight_upper_limit(window).set_keep_alive(30);
                let (client, events) =
                    rumqttc_v5::AsyncClient::builder(options).capacity(line.window).build();
                (Self::V5(client), Events::V5(Box::new(events)))
            }
        }
    }

    /// Queues a message; answers with how it will have ended.
    async fn publish(&self, number: usize, payload: Vec<u8>) -> BoxFuture<'static, Answer> {
        let topic = format!("devices/{}/up", device_id(number));
        match self {
            Self::V311(client) => {
                use rumqttc_v4::{PublishNoticeError, PublishOptions, QoS};
                let notice = client
                    .publish_tracked(topic, payload, PublishOptions::new(QoS::AtLeastOnce))
                    .await
                    .unwrap();
                Box::pin(async {
                    match notice.wait_completion_async().await {
                        Ok(()) => Answer::Acknowledged,
                        Err(PublishNoticeError::SessionReset) => Answer::Lost,
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                })
            }
            Self::V5(client) => {
                use rumqttc_v5::mqttbytes::QoS;
                use rumqttc_v5::{PublishNoticeError, PublishOptions};
                let notice = client
                    .publish_tracked(topic, payload, PublishOptions::new(QoS::AtLeastOnce))
                    .await
                    .unwrap();
                Box::pin(async {
                    match notice.wait_completion_async().await {
                        Ok(()) => Answer::Acknowledged,
                        Err(PublishNoticeError::SessionReset) => Answer::Lost,
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                })
            }
        }
    }
}
