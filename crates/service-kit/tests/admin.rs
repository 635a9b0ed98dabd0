//! The admin server as a probe, a scraper and a bad client see it.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use messagepipeline::{Health, Shutdown};
use service_kit::admin::{AdminServer, router, serve};
use service_kit::telemetry::recorder;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

async fn start(health: &Health, shutdown: &Shutdown) -> AdminServer {
    let (recorder, metrics) = recorder().unwrap();
    metrics::with_local_recorder(&recorder, || metrics::counter!("millstream_test_total").increment(2));
    serve(ANY.into(), router(health.clone(), shutdown.clone(), metrics)).await.unwrap()
}

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn readiness_names_every_stage_with_its_reason_and_ends_when_the_shutdown_begins() {
    let (health, shutdown) = (Health::new(), Shutdown::new());
    let admin = start(&health, &shutdown).await;
    let (enrichment, bigquery) = (health.stage("enrichment"), health.stage("bigquery"));
    enrichment.ready();
    bigquery.not_ready("disk full");
    assert_eq!(ask(admin.local_addr(), "GET /healthz").await, (200, "OK".to_owned()));
    let wanted = "{\"ready\":false,\"stages\":[\n\
                  {\"stage\":\"bigquery\",\"ready\":false,\"reason\":\"disk full\"},\n\
                  {\"stage\":\"enrichment\",\"ready\":true}\n]}\n";
    assert_eq!(ask(admin.local_addr(), "GET /readyz").await, (503, wanted.to_owned()));
    bigquery.ready();
    assert_eq!(ask(admin.local_addr(), "GET /readyz").await.0, 200);
    shutdown.begin();
    let (status, body) = ask(admin.local_addr(), "GET /readyz").await;
    assert!(status == 503 && body.contains("shutting down"), "{body}");
    assert_eq!(ask(admin.local_addr(), "GET /healthz").await.0, 200);
    admin.stop().await;
}

#[tokio::test]
async fn metrics_are_served_and_other_paths_and_methods_get_a_json_answer() {
    let admin = start(&Health::new(), &Shutdown::new()).await;
    let (status, body) = ask(admin.local_addr(), "GET /metrics").await;
    assert!(status == 200 && body.contains("millstream_test_total 2"), "{body}");
    for (request, wanted) in [("GET /nothing", 404), ("POST /readyz", 405)] {
        let (status, body) = ask(admin.local_addr(), request).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(status == wanted && body["error"].is_string(), "{request}: {status} {body}");
    }
}

#[tokio::test]
async fn a_taken_port_is_said_in_words() {
    let admin = start(&Health::new(), &Shutdown::new()).await;
    let (_, metrics) = recorder().unwrap();
    let routes = router(Health::new(), Shutdown::new(), metrics);
    let error = serve(admin.local_addr(), routes).await.unwrap_err();
    let wanted = format!("cannot listen for HTTP on {}: port in use", admin.local_addr());
    assert!(error.to_string().starts_with(&wanted), "{error}");
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_client_that_says_nothing() {
    let admin = start(&Health::new(), &Shutdown::new()).await;
    let address = admin.local_addr();
    let mut silent = TcpStream::connect(address).await.unwrap();
    // An answer proves that the server has accepted what was connected before.
    assert_eq!(ask(address, "GET /healthz").await.0, 200);
    admin.stop().await;
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_request_is_thrown_out() {
    let admin = start(&Health::new(), &Shutdown::new()).await;
    let mut slow = TcpStream::connect(admin.local_addr()).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), slow.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "it still has its place after a minute");
}

#[tokio::test]
async fn a_probe_gets_its_answer_while_more_clients_than_there_are_places_do_not_finish_their_requests() {
    let admin = start(&Health::new(), &Shutdown::new()).await;
    let mut unfinished = Vec::new();
    for _ in 0..200 {
        let mut client = TcpStream::connect(admin.local_addr()).await.unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        unfinished.push(client);
    }
    assert_eq!(ask(admin.local_addr(), "GET /healthz").await, (200, "OK".to_owned()));
    // The oldest ones had to go, and the youngest one may still finish.
    assert_eq!(unfinished[0].read(&mut [0; 8]).await.unwrap_or(0), 0);
    let mut youngest = unfinished.pop().unwrap();
    youngest.write_all(b"Host: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    youngest.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
