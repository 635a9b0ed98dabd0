//! Messages in, rows and lines out, books balanced across the processes.

use crate::common::{bag, lines_of, recordings, small_recording};
use crate::installation::Installation;
use crate::service::SERVICES;
use testkit::rig::RigOptions;

const DEVICES: &str = "device_id,client_id,location_id,category\n\
    A81758FFFE04B1C1,campus,tour-perret,climate\n\
    d1d1e80000000033,campus,saint-eynard,weather\n\
    0018B20000020CBC,helium,grenoble,tracker\n";

#[test]
fn real_messages_arrive_byte_for_byte_with_enriched_columns_and_the_books_balance_across_the_processes() {
    let test = "real_messages_arrive_byte_for_byte_with_enriched_columns_and_the_books_balance_across_the_processes";
    let Some(files) = recordings(test) else { return };
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    installation.import_devices(DEVICES);
    installation.start_all(1);
    let sent = bag(lines_of(&files));
    let count = sent.values().sum();
    installation.feed(&files, "max");
    installation.wait_for(count);
    installation.stop_all();

    assert_eq!(installation.row_payloads(), sent, "rows differ from the recordings' lines");
    assert_eq!(installation.line_payloads(), sent, "archived lines differ from the recordings' lines");
    let enriched = installation.rig.bigquery.query(
        "SELECT COUNT(*) AS n FROM `millstream.messages` WHERE device_id = 'A81758FFFE04B1C1' AND client_id = 'campus' \
         AND location_id = 'tour-perret' AND category = 'climate'",
    );
    let of_device = sent.iter().filter(|(line, _)| line.windows(16).any(|w| w == b"A81758FFFE04B1C1"));
    let of_device: usize = of_device.map(|(_, count)| count).sum();
    assert_eq!(enriched[0]["n"].to_string().trim_matches('"'), of_device.to_string());
    let report = installation.books(1);
    assert_eq!(report["ledger"]["ids"], count, "{report:#}");
    assert_eq!(report["warehouse"]["digest"], report["archive"]["digest"]);
    assert_eq!(report["ledger"]["digest"], report["archive"]["digest"]);
    assert_eq!((&report["warehouse"]["copies"], &report["archive"]["copies"]), (&0.into(), &0.into()));
}

#[test]
fn sigterm_under_load_ends_each_service_well_and_nothing_is_lost_or_doubled() {
    let test = "sigterm_under_load_ends_each_service_well_and_nothing_is_lost_or_doubled";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", 10_000, 50);
    installation.start_all(1);
    std::thread::scope(|scope| {
        let (mqtt, folder) = (installation.mqtt_url.clone(), installation.rig.folder().to_owned());
        let feed = scope.spawn(move || {
            let file = folder.join("fleet.ndjson");
            crate::common::run(&folder, &["feed", "--broker", &mqtt, "--rate", "1000/s", file.to_str().unwrap()])
        });
        for service in SERVICES {
            crate::common::until("messages flow", || {
                installation.running[&(service, 0)].counter("millstream_messages_out_total", service) > 100
            });
            let (status, log) = installation.running.remove(&(service, 0)).unwrap().stop();
            assert_eq!(status.code(), Some(0), "{service}:\n{log}");
            installation.start(service, 0);
            installation.running.get_mut(&(service, 0)).unwrap().ready();
        }
        assert!(feed.join().unwrap().status.success());
    });
    installation.wait_for(10_000);
    installation.stop_all();
    let sent = bag(lines_of(&[file]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    installation.books(1);
}
