//! What must hold of any text that a peer sends on the control connection; for the fuzzer, which feeds it.

use super::args::{MAX_BLOCK, MAX_STREAMS};
use super::protocol::{Parameters, Results, parse_json};

/// Reads `text` as a client's parameters and as a peer's results. Panics where a property fails.
pub fn check(text: &[u8]) {
    if let Ok(parameters) = parse_json::<Parameters>(text)
        && let Ok(request) = parameters.into_request()
    {
        let options = request.options;
        assert!((1..=MAX_STREAMS).contains(&options.streams), "{options:?}");
        assert!((1..=MAX_BLOCK).contains(&options.block), "{options:?}");
        // What is asked for, asked again in our words, is the same.
        let ours = serde_json::to_vec(&Parameters::from_options(&options)).expect("plain numbers");
        let again = parse_json::<Parameters>(&ours).expect("our own words");
        let again = again.into_request().expect("what was possible before");
        assert_eq!(again.options, options);
    }
    if let Ok(results) = parse_json::<Results>(text) {
        // A number can be what JSON has no word for; then it does not come back.
        let ours = serde_json::to_vec(&results).expect("strings and numbers");
        if let Ok(again) = parse_json::<Results>(&ours) {
            assert_eq!(again.streams.len(), results.streams.len());
            for (a, b) in again.streams.iter().zip(&results.streams) {
                assert_eq!(
                    (a.bytes, a.packets, a.errors),
                    (b.bytes, b.packets, b.errors)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_parameters_and_results_have_the_properties() {
        check(br#"{"tcp":true,"time":10,"parallel":4,"len":131072}"#);
        check(br#"{"udp":true,"num":1048576,"parallel":1,"len":1448,"bandwidth":1000}"#);
        check(br#"{"streams":[{"id":1,"bytes":5,"retransmits":18446744073709551615}]}"#);
        check(b"[[[[[[[[[[[[");
    }
}
