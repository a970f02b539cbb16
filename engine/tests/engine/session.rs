use datafusion::config::ConfigOptions;
use firesteel_engine::session::option_header::{apply, encode};
use http::HeaderValue;

#[test]
fn changed_options_travel_and_defaults_do_not() {
    let mut sent = ConfigOptions::new();
    sent.set("datafusion.execution.batch_size", "77").unwrap();
    sent.set("datafusion.execution.time_zone", "Europe/Prague & ž").unwrap();
    let headers = encode(&sent).unwrap();
    assert!(headers.values().map(HeaderValue::len).sum::<usize>() < 200, "only what differs travels");
    let mut received = ConfigOptions::new();
    apply(&headers, &mut received).unwrap();
    assert_eq!(received.execution.batch_size.get(), 77);
    assert_eq!(received.execution.time_zone.as_deref(), Some("Europe/Prague & ž"));
}
